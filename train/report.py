"""Shows the results of `benchmark.py` beside the published runs: `python train/report.py RESULTS`."""

import dataclasses
import sys
from typing import Annotated

import tyro

from trainer import command
from trainer.config import UsageError, UserError, local_path_given
from trainer.flags import parse_command


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Shows the results of train/benchmark.py beside the published runs: RESULTS/report.html."""

    results: Annotated[str, tyro.conf.Positional]
    """The --workdir of train/benchmark.py."""


def main() -> int:
    """The exit code: 0, 1 if the report cannot be written, or 2 if the results cannot be read."""
    return command.run(_main)


def _main(arguments: list[str]) -> int:
    options = parse_command(ReportOptions, "train/report.py", arguments)
    from lab import frames, page

    try:
        found = frames.load(local_path_given("RESULTS", options.results))
    except UserError as error:
        raise UsageError(str(error)) from error
    sys.stdout.write(f"the report is {page.write_benchmark(found)}\n")
    return 0


if __name__ == "__main__":
    command.leave(main())
