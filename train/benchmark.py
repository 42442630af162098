"""Runs the paper's evaluation: `python train/benchmark.py --workdir RESULTS`, `--help` for the rest."""

import dataclasses
import logging
import pathlib
import sys

from paper.plan import Options, plan
from paper.runner import Runner
from paper.work_queue import listing
from trainer import standard_streams
from trainer.config import UsageError, local_path_given
from trainer.flags import parse_command

log = logging.getLogger("train")


def main() -> int:
    """The exit code.

    0; 1 if a cell failed or nothing can be written; 2 for invalid flags; 75 for SIGTERM, or a trainer's 75 (the same
    command resumes); 130 for Ctrl-C.
    """
    try:
        options = parse_command(Options, "train/benchmark.py", sys.argv[1:])
        options = dataclasses.replace(options, workdir=local_path_given("--workdir", options.workdir))
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
    sys.exit(standard_streams.run(main))
