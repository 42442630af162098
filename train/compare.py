"""Compares optimizers, each at its best learning rate: `python train/compare.py --workdir FOLDER`."""

import logging
import pathlib
import sys

from comparison import ledger, studies
from comparison.driver import Driver, listing
from comparison.options import CompareOptions, comparisons
from trainer import command
from trainer.config import UsageError, UserError, local_path_given
from trainer.flags import parse_command

log = logging.getLogger("train")


def main() -> int:
    """The exit code.

    0; 1 if a dataset is not available or nothing can be written; 2 for invalid flags; 75 for SIGTERM and SIGHUP (the
    same command goes on from there); 130 for Ctrl-C.
    """
    return command.run(lambda arguments: compare(parse_command(CompareOptions, "train/compare.py", arguments)))


def compare(options: CompareOptions) -> int:
    """Makes the runs and writes the report; or only lists the runs; or only reports."""
    folder = pathlib.Path(local_path_given("--workdir", options.workdir))
    every = studies.expanded(options) if options.study else [options]
    wanted = [comparison for flags in every for comparison in comparisons(flags)]
    if options.list_only:
        sys.stdout.write(listing(wanted, ledger.read(folder / "runs.csv")))
        return 0
    if options.report_only and not ledger.read(folder / "runs.csv"):
        raise UsageError(f"--workdir is {folder}, where runs.csv has no run to report on yet: leave --report out.")
    code = 0
    if not options.report_only:
        line = command.prepare_jax()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "runs.csv").touch()
        except OSError as error:
            raise UserError(f"--workdir is {folder}, where nothing can be written ({error.strerror}).") from error
        if line:
            log.info(line)
        code = Driver(folder, wanted).run()
    if outcomes := ledger.read(folder / "runs.csv"):
        from comparison import ablation, writeup

        write = ablation.write if options.study else writeup.write
        log.info(f"the report is {write(folder, outcomes)}")
    return code


if __name__ == "__main__":
    command.leave(main())
