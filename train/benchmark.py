"""Runs the paper's evaluation: `python train/benchmark.py --workdir RESULTS`, `--help` for the rest."""

import dataclasses
import pathlib
import sys

from lab.grid import BenchmarkOptions, plan
from trainer import command
from trainer.config import local_path_given
from trainer.flags import parse_command


def main() -> int:
    """The exit code.

    0; 1 if a cell failed or nothing can be written; 2 for invalid flags; 75 for SIGTERM and SIGHUP, or a trainer's 75
    (the same command resumes); 130 for Ctrl-C.
    """
    return command.run(_main)


def _main(arguments: list[str]) -> int:
    options = parse_command(BenchmarkOptions, "train/benchmark.py", arguments)
    options = dataclasses.replace(options, workdir=local_path_given("--workdir", options.workdir))
    planned = plan(options)
    from lab.cells import CellWorker

    worker = CellWorker(pathlib.Path(options.workdir), options.storage, planned, write=not options.list_only)
    if options.list_only:
        sys.stdout.write(worker.listing())
        return 0
    return worker.work()


if __name__ == "__main__":
    command.leave(main())
