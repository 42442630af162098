"""Runs the paper's evaluation: `python train/benchmark.py --workdir RESULTS`, `--help` for the rest."""

import logging
import pathlib
import sys

import tyro

from paper.plan import Options, plan
from paper.runner import Runner
from paper.work_queue import listing
from trainer.config import UsageError

log = logging.getLogger("train")


def main() -> int:
    """The exit code.

    0; 1 if a cell failed or nothing can be written; 2 for invalid flags; 75 for SIGTERM, or a trainer's 75 (the same
    command resumes); 130 for Ctrl-C.
    """
    try:
        options = tyro.cli(Options, prog="train/benchmark.py", config=(tyro.conf.FlagCreatePairsOff,))
        cells = plan(options)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.list_only:
        sys.stdout.write(listing(cells))
        return 0
    try:
        pathlib.Path(options.workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.stderr.write(f"error: --workdir is {options.workdir}, no folder can be made there ({error.strerror}).\n")
        return 1
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.setLevel(logging.INFO)
    log.propagate = False
    return Runner(options.workdir, cells).run()


if __name__ == "__main__":
    sys.exit(main())
