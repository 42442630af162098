"""The report's tables, from runs to numbers. Everything here is a pure function.

Over seeds: every figure at an epoch is over the seeds that have reached it. The spread is the standard deviation over
our own seeds (n - 1 in the denominator). With one seed there is none, and none is taken from anywhere else.
"""

import csv
import dataclasses
import io
import itertools
from collections.abc import Sequence

import numpy as np

from paper import published
from paper.published import METRICS
from paper.results import EPOCHS, RecordedRun, grouped
from paper.tuning_study import VARIANTS

NOT_AVAILABLE = "not available"
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

Value = str | int | float


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and rows; numbers are rounded when shown and whole in the CSV."""

    columns: list[str]
    rows: list[tuple[Value, ...]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *([shown(x) for x in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines) + "\n"

    def csv(self) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()


def shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def values_at(runs: Sequence[RecordedRun], metric: str, epoch: int) -> list[float]:
    """The metric after that epoch, of each seed that has reached it."""
    return [float(run.history[metric][epoch - 1]) for run in runs if run.epochs >= epoch]


def spread(values: Sequence[float]) -> float | str:
    """Over seeds; not available for one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else NOT_AVAILABLE


def furthest(runs: Sequence[RecordedRun]) -> int:
    """The last epoch that a seed has reached."""
    return max(run.epochs for run in runs)


def summary(dataset: str, runs: Sequence[RecordedRun]) -> Table:
    """Ours and the published runs on one dataset. `runs` may hold others."""
    target = TARGETS[dataset]
    columns = ["model", "optimizer", "whose", "seeds", "epoch", "validation accuracy", "spread", "best", "loss"]
    columns += [f"epochs to {target:g}", f"seconds to {target:g}", "remarks"]
    rows: list[tuple[Value, ...]] = []
    for group in grouped([run for run in runs if run.dataset == dataset]):
        epoch = furthest(group)
        there = [run for run in group if run.epochs == epoch]
        accuracies = values_at(there, "val_accuracy", epoch)
        best = [float(run.history["val_accuracy"].max()) for run in there]
        to_target = _to_target([run.history for run in there], target)
        rows.append(
            (
                *group[0].cell[1:],
                "ours",
                len(there),
                epoch,
                float(np.mean(accuracies)),
                spread(accuracies),
                float(np.mean(best)),
                float(np.mean(values_at(there, "loss", epoch))),
                *to_target,
                ", ".join(group[0].departures),
            )
        )
    for theirs in published.load().values():
        if theirs.dataset == dataset:
            accuracy = theirs.history["val_accuracy"]
            epochs, _ = _to_target([theirs.history], target)
            last = (float(accuracy[-1]), NOT_AVAILABLE, float(accuracy.max()), float(theirs.history["loss"][-1]))
            name = (theirs.model, theirs.optimizer, "published", 1, len(accuracy))
            rows.append((*name, *last, epochs, "not recorded", theirs.mark))
    return Table(columns, sorted(rows, key=lambda row: (row[0], row[1], row[2])))


def _to_target(histories: Sequence[dict[str, np.ndarray]], target: float) -> tuple[Value, Value]:
    """Epochs, and seconds of training and validation without compilation, until the validation accuracy is there."""
    reached = [history for history in histories if np.any(history["val_accuracy"] >= target)]
    if len(reached) < len(histories):
        return (f"{len(reached)} of {len(histories)} seeds" if reached else "not reached",) * 2
    epochs = [int(np.argmax(history["val_accuracy"] >= target)) + 1 for history in histories]
    if "seconds" not in histories[0]:
        return float(np.mean(epochs)), NOT_AVAILABLE
    pairs = zip(histories, epochs, strict=True)
    seconds = [np.sum(history["seconds"][:n] + history["val_seconds"][:n]) for history, n in pairs]
    return float(np.mean(epochs)), float(np.mean(seconds))


def distance(runs: Sequence[RecordedRun]) -> Table:
    """Ours minus theirs at matched epochs, in units of our own spread over seeds.

    Only runs that follow the published protocol (another precision is remarked), and no run is held against the
    published one that is marked.
    """
    columns = ["dataset", "model", "optimizer", "epoch", "metric", "seeds", "ours", "spread", "published"]
    columns += ["ours - published", "in spreads", "remarks"]
    theirs = published.load()
    rows: list[tuple[Value, ...]] = []
    for group in grouped([run for run in runs if run.comparable and run.cell in theirs]):
        cell = group[0].cell
        if theirs[cell].mark:
            continue
        for epoch, metric in itertools.product(_matched(furthest(group)), METRICS):
            ours = values_at(group, metric, epoch)
            published_value = float(theirs[cell].history[metric][epoch - 1])
            difference = float(np.mean(ours)) - published_value
            own = spread(ours)
            in_spreads = difference / own if isinstance(own, float) and own > 0 else NOT_AVAILABLE
            remarks = ", ".join(group[0].departures)
            numbers = (len(ours), float(np.mean(ours)), own, published_value, difference, in_spreads, remarks)
            rows.append((*cell, epoch, metric, *numbers))
    return Table(columns, rows)


def at_the_end(distances: Table) -> Table:
    """The rows of `distance` at the last epoch of each run."""
    cells = [(*row[:3], row[-1]) for row in distances.rows]  # settings, in the remarks, make another run
    last = {cell: row[3] for cell, row in zip(cells, distances.rows, strict=True)}  # epochs come in order
    rows = [row for cell, row in zip(cells, distances.rows, strict=True) if row[3] == last[cell]]
    return Table(distances.columns, rows)


def _matched(last: int) -> list[int]:
    """The epochs to compare at: a few, and the last that both have."""
    last = min(last, EPOCHS)
    return sorted({epoch for epoch in MATCHED_EPOCHS if epoch <= last} | {last})


def missing(runs: Sequence[RecordedRun]) -> Table:
    """The cells of the paper's evaluation without a complete run as the published ones were, and how far they are."""
    rows: list[tuple[Value, ...]] = []
    for cell, theirs in published.load().items():
        ours = [run for run in runs if run.cell == cell and run.comparable]
        others = [run for run in runs if run.cell == cell and not run.comparable]
        epochs = furthest(ours) if ours else 0
        if epochs < EPOCHS:
            what = f"{epochs} of {EPOCHS} epochs" if ours else "no run"
            if others:
                what += f"; {len(others)} of another kind ({', '.join(others[0].departures)})"
            rows.append((*cell, what, f"published: a {theirs.mark}" if theirs.mark else ""))
    return Table(["dataset", "model", "optimizer", "ours", "remarks"], sorted(rows))


def published_finals() -> Table:
    """What the published runs end at, and how steady they are: one row for each dataset and model.

    The lead is Gravity's validation accuracy after the last epoch minus the better of the other two; "swing" is the
    standard deviation of the validation accuracy over the last 50 epochs.
    """
    optimizers = ("gravity", "adam", "rmsprop")
    columns = ["dataset", "model", *optimizers, "Gravity's lead", *(f"swing, {name}" for name in optimizers), "remarks"]
    runs = published.load()
    rows: list[tuple[Value, ...]] = []
    for dataset, model in dict.fromkeys((run.dataset, run.model) for run in runs.values()):
        accuracies = [runs[dataset, model, name].history["val_accuracy"] for name in optimizers]
        finals = [float(accuracy[-1]) for accuracy in accuracies]
        swings = [round(float(np.std(accuracy[-50:])), 6) for accuracy in accuracies]
        mark = runs[dataset, model, "gravity"].mark
        lead = NOT_AVAILABLE if mark else finals[0] - max(finals[1:])
        rows.append((dataset, model, *finals, lead, *swings, f"gravity: {mark}" if mark else ""))
    return Table(columns, sorted(rows))


def study(runs: Sequence[RecordedRun]) -> Table:
    """The variants of the tuning study that we ran, beside each of the authors' runs of them."""
    columns = ["dataset", "variant", "whose", "seeds", "epochs", "loss after epoch 1", "final loss"]
    columns += ["validation accuracy", "spread", "best", "remarks"]
    rows: list[tuple[Value, ...]] = []
    tuning = published.load_tuning()
    for variant in VARIANTS:
        ours = [run for run in runs if (run.dataset, run.optimizer) == (variant.dataset, variant.name)]
        for group in grouped(ours):
            epoch = furthest(group)
            there = [run for run in group if run.epochs == epoch]
            accuracies = values_at(there, "val_accuracy", epoch)
            rows.append(
                (
                    variant.dataset,
                    variant.name,
                    "ours",
                    len(there),
                    epoch,
                    float(np.mean(values_at(there, "loss", 1))),
                    float(np.mean(values_at(there, "loss", epoch))),
                    float(np.mean(accuracies)),
                    spread(accuracies),
                    float(np.mean([run.history["val_accuracy"].max() for run in there])),
                    ", ".join(x for x in group[0].departures if x.startswith(("limit", "train", "test", "precision"))),
                )
            )
        if ours:
            for row in (tuning[i] for i in variant.rows):
                losses = (row.first_epoch_loss, row.final_loss)
                accuracies_of = (row.final_val_accuracy, NOT_AVAILABLE, row.best_val_accuracy)
                name = (variant.dataset, variant.name, "the authors'", 1, row.epochs)
                rows.append((*name, *losses, *accuracies_of, row.authors_comment))
    return Table(columns, rows)


def claim() -> str:
    """What the 20-way run does to the paper's claim, in a sentence."""
    final = {cell: float(run.history["val_accuracy"][-1]) for cell, run in published.load().items()}
    fine = {(model, optimizer): value for (dataset, model, optimizer), value in final.items() if dataset == _FINE}
    lead = fine["vgg16", "gravity"] - max(fine["vgg16", "adam"], fine["vgg16", "rmsprop"])
    return (
        "The abstract's strongest claim, greater validation accuracy on datasets with more classes such as CIFAR-100"
        f" (fine), rests on Figure 19 ({fine['vgg19', 'gravity']:.3f} for Gravity against"
        f" {fine['vgg19', 'adam']:.3f} for Adam with VGG19), where Gravity's run had 20 outputs and the others 100, so"
        " that the figure compares different tasks; what is left of the claim is VGG16"
        f" ({fine['vgg16', 'gravity']:.3f} against Adam's {fine['vgg16', 'adam']:.3f} and RMSProp's"
        f" {fine['vgg16', 'rmsprop']:.3f}), one run each, which cannot say whether a lead of {lead:.3f} is more than"
        " two seeds differ by."
    )


_FINE = "cifar100_fine"
