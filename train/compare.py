"""Compares optimizers, each at its best learning rate: `python train/compare.py --workdir FOLDER`."""

import logging
import pathlib
import sys

from lab import studies
from lab.options import CompareOptions
from trainer import command
from trainer.config import UsageError, local_path_given
from trainer.flags import parse_command

log = logging.getLogger("train")


def main() -> int:
    """The exit code.

    0; 1 if a dataset is not available or nothing can be written; 2 for invalid flags; 75 for SIGTERM and SIGHUP (the
    same command resumes); 130 for Ctrl-C.
    """
    return command.run(lambda arguments: compare(parse_command(CompareOptions, "train/compare.py", arguments)))


def compare(options: CompareOptions) -> int:
    """Makes the runs and writes the report; or only lists the runs; or only reports."""
    folder = pathlib.Path(local_path_given("--workdir", options.workdir))
    wanted = [] if options.report_only else studies.plan(options)
    from lab.comparing import TrialWorker

    code, write = 0, not (options.list_only or options.report_only)
    worker = TrialWorker(folder, options.storage, wanted, write)
    if options.list_only:
        sys.stdout.write(worker.listing())
        return 0
    if write:
        if line := command.prepare_jax():
            log.info(line)
        code = worker.work()
    if outcomes := worker.outcomes():
        from lab import page

        name = options.study
        report = page.write_study(folder, outcomes, name) if name else page.write_comparison(folder, outcomes)
        log.info(f"the report is {report}")
    elif options.report_only:
        raise UsageError(f"--workdir is {folder}, where runs.csv has no run to report on yet: leave --report out.")
    return code


if __name__ == "__main__":
    command.leave(main())
