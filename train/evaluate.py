"""Evaluates a run of `main.py` from one of its checkpoints: `python train/evaluate.py WORKDIR`."""

import dataclasses
import sys
from typing import Annotated

import tyro

from trainer import standard_streams
from trainer.config import UserError, path_given
from trainer.flags import parse_command
from trainer.jaxlib_fault import work_around


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """Loss and accuracy over the test set, for each class too, and WORKDIR/confusion.png."""

    workdir: Annotated[str, tyro.conf.Positional]
    """The --workdir of train/main.py; the run may be finished, interrupted or under way."""
    checkpoint: int | None = None
    """The number of a checkpoint in WORKDIR/checkpoints. Default: the newest."""
    predictions: str | None = None
    """Write a row per test picture to this CSV file."""
    export: str | None = None
    """Write the weights to this file, in the safetensors format."""
    data_dir: str | None = None
    """Folder of the prepared datasets. Default: where the run had it."""


def main() -> int:
    """The exit code: 0, 1 for what went wrong, or 2 for invalid flags."""
    try:
        options = dataclasses.asdict(parse_command(EvaluationOptions, "train/evaluate.py", sys.argv[1:]))
        labels = {"workdir": "WORKDIR", "predictions": "--predictions", "export": "--export", "data_dir": "--data-dir"}
        options |= {key: path_given(label, options[key]) for key, label in labels.items() if options[key] is not None}
        work_around()  # before jax is imported
        from trainer import evaluation

        report = evaluation.evaluate(**options)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(report)
    return 0


if __name__ == "__main__":
    sys.exit(standard_streams.run(main))
