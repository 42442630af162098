"""Shows the results of `benchmark.py` beside the published runs: `python train/report.py RESULTS`."""

import dataclasses
import sys
from typing import Annotated

import tyro

from paper import page, results
from trainer.config import UserError


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Shows the results of train/benchmark.py beside the published runs: RESULTS/report.html."""

    results: Annotated[str, tyro.conf.Positional]
    """The --workdir of train/benchmark.py."""


def main() -> int:
    """The exit code: 0, or 2 if the results cannot be read."""
    options = tyro.cli(ReportOptions, prog="train/report.py")
    try:
        written = page.write(results.load(options.results))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"the report is {written}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
