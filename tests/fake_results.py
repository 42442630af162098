"""Results folders as the trainer would leave them, written by hand."""

import dataclasses
import json
import pathlib

from trainer.config import Config, resolve

COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second", "val_seconds")


def write(root, cell, seed, rows, seconds=10.0, **config):
    """A run with these rows of (loss, accuracy, val_loss, val_accuracy), epochs of so long; a validation takes 2 s."""
    folder = pathlib.Path(root, *cell, f"seed_{seed}")
    folder.mkdir(parents=True)
    dataset, model, optimizer = cell[-3:]
    settings = {"optimizer": optimizer, "width": 1.0, "batch_size": 128, "seed": seed}
    if optimizer == "gravity" or "study" in cell:
        settings |= {"optimizer": "gravity", "first_step": 0}
    facts = {"train_examples": 60_000 if "mnist" in dataset else 50_000, "test_examples": 10_000}
    facts |= {"devices": ["cpu"], "versions": {"jax": "0.10.1"}}
    run = dataclasses.asdict(resolve(Config(dataset, model, **settings)))
    (folder / "config.json").write_text(json.dumps(run | facts | config))
    lines = [",".join(COLUMNS)]
    lines += [",".join(map(str, (epoch, *row, seconds, 6000.0, 2.0))) for epoch, row in enumerate(rows, 1)]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    return folder
