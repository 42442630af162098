"""The numbers of the report's tables: from runs to rows. Everything here is a pure function.

Over seeds: every number at an epoch is over the seeds that have reached it. The spread is the standard deviation over
our own seeds (n - 1 in the denominator), None for one seed: none is borrowed from anywhere else.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paper import published
from paper.published import METRICS, PublishedRun
from paper.results import EPOCHS, Departure, RecordedRun, grouped
from paper.tuning_study import VARIANTS

# Accuracies that every published run of the dataset reaches, the 20-way run aside.
TARGETS = {
    "digits": 0.95,
    "mnist": 0.98,
    "fashion_mnist": 0.9,
    "cifar10": 0.65,
    "cifar100_coarse": 0.5,
    "cifar100_fine": 0.3,
}
MATCHED_EPOCHS = (1, 2, 5, 10, 20, 50, 100)
_SIZES = ("limit", "train_examples", "test_examples", "precision")  # what a variant of the tuning study does not set

Departures = tuple[Departure, ...]


class Missed(NamedTuple):
    """A target that not every seed reaches."""

    reached: int  # seeds that do
    seeds: int


@dataclasses.dataclass(frozen=True)
class CellRow:
    """A row about one cell of the evaluation, or (then optimizer is the variant) of the tuning study."""

    dataset: str
    model: str
    optimizer: str


@dataclasses.dataclass(frozen=True)
class RunsRow(CellRow):
    """Our runs of a cell as far as they are (means over the seeds that got furthest), or a published run at its end."""

    whose: str  # "ours", "published" or "the authors'"
    seeds: int
    epoch: int  # the last
    first_loss: float  # after epoch 1
    loss: float
    validation_accuracy: float
    spread: float | None
    best: float  # validation accuracy at any epoch
    epochs_to_target: float | Missed | None  # None for the tuning study
    seconds_to_target: float | Missed | None  # training and validation without compilation; None: not recorded
    remarks: Departures | str


@dataclasses.dataclass(frozen=True)
class DistanceRow(CellRow):
    """Ours minus the published value of one metric after one epoch."""

    epoch: int
    metric: str
    seeds: int
    ours: float  # mean over the seeds
    spread: float | None
    published: float
    difference: float
    in_spreads: float | None  # the difference divided by the spread
    remarks: Departures


@dataclasses.dataclass(frozen=True)
class MissingRow(CellRow):
    """A cell without a complete run of ours under the published protocol."""

    epochs: int  # of the run under the protocol that got furthest; 0 for none
    others: int  # our runs that do not follow the protocol
    departures: Departures  # of the first of those
    mark: str  # of the published run


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """The ends of the published runs on one dataset and model, and how steady they are.

    A swing is the standard deviation of the validation accuracy over the last 50 epochs.
    """

    dataset: str
    model: str
    gravity: float  # validation accuracy after the last epoch
    adam: float
    rmsprop: float
    lead: float | None  # Gravity's over the better of the others; None where its run is marked
    swing_gravity: float
    swing_adam: float
    swing_rmsprop: float
    mark: str  # of Gravity's run


def values_at(runs: Sequence[RecordedRun | PublishedRun], metric: str, epoch: int) -> list[float]:
    """The metric after that epoch, of each run that has reached it."""
    return [float(run.history[metric][epoch - 1]) for run in runs if len(run.history[metric]) >= epoch]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Over seeds."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def furthest(runs: Sequence[RecordedRun | PublishedRun]) -> int:
    """The last epoch that a run has reached."""
    return max(len(run.history["epoch"]) for run in runs)


def _runs_row(
    optimizer: str, whose: str, runs: Sequence[RecordedRun | PublishedRun], remarks: Departures | str
) -> RunsRow:
    last = furthest(runs)
    there = [run for run in runs if len(run.history["epoch"]) == last]
    first, loss = (float(np.mean(values_at(there, "loss", epoch))) for epoch in (1, last))
    accuracy = mean_and_spread(values_at(there, "val_accuracy", last))
    best = float(np.mean([run.history["val_accuracy"].max() for run in there]))
    to_target = _to_target(there, TARGETS[there[0].dataset])
    cell = (there[0].dataset, there[0].model, optimizer)
    return RunsRow(*cell, whose, len(there), last, first, loss, *accuracy, best, *to_target, remarks)


def summary(dataset: str, runs: Sequence[RecordedRun]) -> list[RunsRow]:
    """Ours and the published runs on one dataset. `runs` may hold others."""
    rows = [
        _runs_row(group[0].optimizer, "ours", group, group[0].departures)
        for group in grouped([run for run in runs if run.dataset == dataset])
    ]
    theirs = [run for run in published.load().values() if run.dataset == dataset]
    rows += [_runs_row(run.optimizer, "published", [run], run.mark) for run in theirs]
    return sorted(rows, key=lambda row: (row.model, row.optimizer, row.whose))


def _to_target(
    runs: Sequence[RecordedRun | PublishedRun], target: float
) -> tuple[float | Missed, float | Missed | None]:
    """Mean epochs and seconds until the validation accuracy is there."""
    epochs, seconds = [], []
    for history in (run.history for run in runs):
        if np.any(reached := history["val_accuracy"] >= target):
            epochs.append(n := int(np.argmax(reached)) + 1)
            if "seconds" in history:
                seconds.append(np.sum(history["seconds"][:n] + history["val_seconds"][:n]))
    if len(epochs) < len(runs):
        return (Missed(len(epochs), len(runs)),) * 2
    # NaN: runs on a machine that was shared are recorded without their times.
    return float(np.mean(epochs)), float(np.mean(seconds)) if np.all(np.isfinite(seconds or np.nan)) else None


def distance(runs: Sequence[RecordedRun]) -> list[DistanceRow]:
    """At a few epochs and the last one that both have.

    Only of runs that follow the published protocol (another precision is remarked), and never from a published run
    that is marked.
    """
    theirs = {cell: run for cell, run in published.load().items() if not run.mark}
    rows = []
    for group in grouped([run for run in runs if run.comparable and run.cell in theirs]):
        cell, last = group[0].cell, min(furthest(group), EPOCHS)
        epochs = sorted({epoch for epoch in MATCHED_EPOCHS if epoch <= last} | {last})
        for epoch, metric in itertools.product(epochs, METRICS):
            values = values_at(group, metric, epoch)
            ours, spread = mean_and_spread(values)
            (value,) = values_at([theirs[cell]], metric, epoch)
            gap = ours - value
            in_spreads, remarks = gap / spread if spread else None, group[0].departures
            row = (*cell, epoch, metric, len(values), ours, spread, value, gap, in_spreads, remarks)
            rows.append(DistanceRow(*row))
    return rows


def at_the_end(rows: Sequence[DistanceRow]) -> list[DistanceRow]:
    """The rows of `distance` at the last epoch of each run."""
    # Other settings, in the remarks, make another run. Epochs come in order: the last one stays.
    last = {(row.dataset, row.model, row.optimizer, row.remarks): row.epoch for row in rows}
    return [row for row in rows if row.epoch == last[row.dataset, row.model, row.optimizer, row.remarks]]


def beyond(rows: Sequence[DistanceRow], spreads: float) -> list[DistanceRow]:
    """The rows of `distance` that lie further than so many of our own spreads from the published value."""
    return [row for row in rows if row.in_spreads is not None and abs(row.in_spreads) > spreads]


def missing(runs: Sequence[RecordedRun]) -> list[MissingRow]:
    """The cells of the paper's evaluation without a complete run under the published protocol."""
    rows = []
    for cell, theirs in sorted(published.load().items()):
        ours = [run for run in runs if run.cell == cell and run.comparable]
        others = [run for run in runs if run.cell == cell and not run.comparable]
        if (epochs := furthest(ours) if ours else 0) < EPOCHS:
            rows.append(MissingRow(*cell, epochs, len(others), others[0].departures if others else (), theirs.mark))
    return rows


def published_ends() -> list[PublishedRow]:
    """What the published runs end at: a row for each dataset and model."""
    runs, rows = published.load(), []
    for dataset, model in sorted({cell[:2] for cell in runs}):
        accuracies = [runs[dataset, model, name].history["val_accuracy"] for name in ("gravity", "adam", "rmsprop")]
        gravity, adam, rmsprop = (float(accuracy[-1]) for accuracy in accuracies)
        swing, swing_adam, swing_rmsprop = (round(float(np.std(accuracy[-50:])), 6) for accuracy in accuracies)
        mark = runs[dataset, model, "gravity"].mark
        lead = None if mark else gravity - max(adam, rmsprop)
        row = (dataset, model, gravity, adam, rmsprop, lead, swing, swing_adam, swing_rmsprop, mark)
        rows.append(PublishedRow(*row))
    return rows


def study(runs: Sequence[RecordedRun]) -> list[RunsRow]:
    """The variants of the tuning study that we ran, beside each of the authors' runs of them."""
    rows, tuning = [], published.load_tuning()
    for variant in VARIANTS:
        ours = [run for run in runs if (run.dataset, run.optimizer) == (variant.dataset, variant.name)]
        for group in grouped(ours):
            sizes = tuple(departure for departure in group[0].departures if departure.name in _SIZES)
            rows.append(_runs_row(variant.name, "ours", group, sizes))
        for run in (tuning[i] for i in variant.rows if ours):
            cell, losses = (run.dataset, run.model, variant.name), (run.first_epoch_loss, run.final_loss)
            accuracies = (run.final_val_accuracy, None, run.best_val_accuracy)
            row = (*cell, "the authors'", 1, run.epochs, *losses, *accuracies, None, None, run.authors_comment)
            rows.append(RunsRow(*row))
    return rows
