"""Runs the paper's evaluation: `python train/benchmark.py --workdir RESULTS`, `--help` for the rest."""

import dataclasses
import pathlib
import sys

from paper.plan import Options, plan
from paper.work_queue import listing
from trainer import command
from trainer.config import UserError, local_path_given
from trainer.flags import parse_command


def main() -> int:
    """The exit code.

    0; 1 if a cell failed or nothing can be written; 2 for invalid flags; 75 for SIGTERM and SIGHUP, or a trainer's 75
    (the same command resumes); 130 for Ctrl-C.
    """
    return command.run(_main)


def _main(arguments: list[str]) -> int:
    options = parse_command(Options, "train/benchmark.py", arguments)
    options = dataclasses.replace(options, workdir=local_path_given("--workdir", options.workdir))
    cells = plan(options)
    if options.list_only:
        sys.stdout.write(listing(cells))
        return 0
    try:
        pathlib.Path(options.workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir is {options.workdir}, no folder can be made there ({error.strerror}).") from error
    from paper.runner import Runner

    return Runner(options.workdir, cells).run()


if __name__ == "__main__":
    command.leave(main())
