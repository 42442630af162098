"""Evaluates a run of `main.py` from one of its checkpoints: `python train/evaluate.py WORKDIR`."""

import dataclasses
import sys
from typing import Annotated

import tyro

from trainer import command
from trainer.config import path_given
from trainer.flags import parse_command


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """Loss and accuracy on the test set, overall and for each class, and a picture of the errors."""

    workdir: Annotated[str, tyro.conf.Positional]
    """The --workdir of train/main.py; the run may be finished, interrupted or still running."""
    checkpoint: int | None = None
    """The number of a checkpoint in WORKDIR/checkpoints. Default: the newest."""
    predictions: str | None = None
    """Write a row per test picture to this CSV file."""
    export: str | None = None
    """Write the weights to this file, in the safetensors format."""
    confusion: str | None = None
    """Draw the confusion matrix to this PNG file. Default: WORKDIR/confusion.png, if it can be written."""
    data_dir: str | None = None
    """Folder of the prepared datasets. Default: the run's own."""


def main() -> int:
    """The exit code: 0, 1 for an error, 2 for invalid flags, or 130 for Ctrl-C."""
    return command.run(_main)


def _main(arguments: list[str]) -> int:
    options = dataclasses.asdict(parse_command(EvaluationOptions, "train/evaluate.py", arguments))
    labels = {name: f"--{name.replace('_', '-')}" for name in ("predictions", "export", "confusion", "data_dir")}
    labels["workdir"] = "WORKDIR"
    options |= {key: path_given(label, options[key]) for key, label in labels.items() if options[key] is not None}
    command.prepare_jax()
    from trainer import evaluation

    evaluation.evaluate(**options, tell=sys.stdout.write)
    return 0


if __name__ == "__main__":
    command.leave(main())
