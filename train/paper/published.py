"""The runs that the paper's authors published, as data: `load()` and `load_tuning()`.

The numbers are facts taken from the result archives that Dariush Bahrami and Sadegh Pouriyan Zadeh published with their
code (github.com/dariush-bahrami/gravity.optimizer, state of July 2021); the paper is arXiv 2101.09192. None of their
code is here. `published_histories.csv` holds the 30 runs of Figures 10-19, `published_tuning.csv` 28 earlier runs of
Gravity with the authors' comment on each. One run per cell (dataset, model, optimizer);
no seed was recorded.

The protocol of the 30 runs: Keras' VGG16 and VGG19 for 32 x 32 pictures, glorot-uniform kernels, no dropout and no
normalisation; pixels divided by 255; MNIST and Fashion-MNIST with one channel, resized from 28 x 28 inside the model;
the training set reshuffled every epoch; batches of 128, the last partial one kept; 100 epochs; float32. `loss` and
`accuracy` are running means over the epoch, `val_loss` and `val_accuracy` are over the whole test set after it.
Gravity: alpha 0.01, beta 0.9, t = 0 at the first update.
"""

import csv
import dataclasses
import pathlib

import numpy as np

METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")
CLASSES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100_coarse": 20, "cifar100_fine": 100}
_FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """One published run."""

    dataset: str
    model: str
    optimizer: str
    learning_rate: float
    num_outputs: int  # width of the last layer in the stored model
    history: dict[str, np.ndarray]  # "epoch" (int) and METRICS (float64), each (100,)

    @property
    def mark(self) -> str:
        """The name of a run with the wrong number of outputs, "20-way run"; empty for the others."""
        return "" if self.num_outputs == CLASSES[self.dataset] else f"{self.num_outputs}-way run"


@dataclasses.dataclass(frozen=True)
class TuningRun:
    """One run of the authors' tuning study: a row of published_tuning.csv."""

    dataset: str
    model: str
    learning_rate: float
    beta: float
    epochs: int
    authors_comment: str
    first_epoch_loss: float
    final_loss: float
    final_val_accuracy: float
    best_val_accuracy: float


def load() -> dict[tuple[str, str, str], PublishedRun]:
    """The 30 benchmark runs by (dataset, model, optimizer).

    ("cifar100_fine", "vgg19", "gravity") is marked as a 20-way run: its last layer is 20 wide, as for the coarse
    labels, and its first epoch's loss, 2.87, fits that (chance is ln 20 = 3.00; the other fine-label runs, where chance
    is ln 100 = 4.61, end their first epoch between 4.35 and 4.48). It did not train on the 100 fine labels and is not
    comparable with the others.
    """
    rows: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in _read("published_histories.csv"):
        rows.setdefault((row["dataset"], row["model"], row["optimizer"]), []).append(row)
    return {cell: _run(cell, history) for cell, history in rows.items()}


def load_tuning() -> list[TuningRun]:
    """The 28 runs of the authors' tuning study, in the order of their notes."""
    types = {field.name: field.type for field in dataclasses.fields(TuningRun)}
    return [
        TuningRun(**{name: types[name](value) for name, value in row.items()})  # type: ignore[operator]
        for row in _read("published_tuning.csv")
    ]


def _read(name: str) -> list[dict[str, str]]:
    with open(_FOLDER / name, newline="") as file:
        return list(csv.DictReader(file))


def _run(cell: tuple[str, str, str], rows: list[dict[str, str]]) -> PublishedRun:
    history = {metric: np.array([float(row[metric]) for row in rows]) for metric in METRICS}
    history["epoch"] = np.array([int(row["epoch"]) for row in rows])
    return PublishedRun(*cell, float(rows[0]["learning_rate"]), int(rows[0]["num_outputs"]), history)
