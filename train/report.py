"""Shows the results of `benchmark.py` beside the published runs: `python train/report.py RESULTS`."""

import dataclasses
import sys
from typing import Annotated

import tyro

from paper import page, results
from trainer import standard_streams
from trainer.config import UserError, local_path_given
from trainer.flags import parse_command


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Shows the results of train/benchmark.py beside the published runs: RESULTS/report.html."""

    results: Annotated[str, tyro.conf.Positional]
    """The --workdir of train/benchmark.py."""


def main() -> int:
    """The exit code: 0, or 2 if the results cannot be read."""
    try:
        options = parse_command(ReportOptions, "train/report.py", sys.argv[1:])
        written = page.write(results.load(local_path_given("RESULTS", options.results)))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"the report is {written}\n")
    return 0


if __name__ == "__main__":
    sys.exit(standard_streams.run(main))
