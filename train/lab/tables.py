"""The tables of the evaluation's report, from the frames of `frames.load` and `published.epochs`. Pure functions.

Over seeds: every number at an epoch is over the seeds that have reached it. The spread is the standard deviation over
our own seeds (n - 1 in the denominator), NaN for one seed: none is borrowed from anywhere else.
"""

import math
from typing import Any

import pandas as pd

from lab import published
from lab.frames import EPOCHS
from lab.grid import VARIANTS
from lab.published import CELL, METRICS

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


def summary(dataset: str, epochs: pd.DataFrame) -> pd.DataFrame:
    """Ours on one dataset as far as they are, and the published runs at their end."""
    theirs, target = published.epochs(), TARGETS[dataset]
    ours = epochs[(epochs["dataset"] == dataset) & ~epochs["study"]]
    both = pd.concat([ours.assign(mark=""), theirs[theirs["dataset"] == dataset]])
    key = ["model", "optimizer", "whose", "departures", "mark"]
    rows = [
        dict(zip(key, of, strict=True)) | _ends(found) | _to_target(found, target) for of, found in both.groupby(key)
    ]
    table = pd.DataFrame(rows).assign(remarks=lambda made: made["departures"] + made["mark"])
    columns = "model|optimizer|whose|seeds|epoch|validation accuracy|spread|best|loss|epochs to {0:g}|seconds to {0:g}"
    return table[[*columns.format(target).split("|"), "remarks"]]


def _furthest(found: pd.DataFrame) -> pd.DataFrame:
    """The runs that got as far as any of them."""
    return found[found["run"].isin(found["run"][found["epoch"] == found["epoch"].max()])]


def _ends(found: pd.DataFrame) -> dict[str, Any]:
    """Means over the runs that got furthest, after their first and last epoch."""
    there = _furthest(found)
    last = there[there["epoch"] == there["epoch"].max()]
    return {
        "seeds": len(last),
        "epoch": last["epoch"].iloc[0],
        "loss after epoch 1": there["loss"][there["epoch"] == 1].mean(),
        "loss": last["loss"].mean(),
        "validation accuracy": last["val_accuracy"].mean(),
        "spread": last["val_accuracy"].std(),
        "best": there.groupby("run")["val_accuracy"].max().mean(),
    }


def _to_target(found: pd.DataFrame, target: float) -> dict[str, float | str]:
    """Mean epochs, and seconds of training and validation without compilation, until the target is reached."""
    there = _furthest(found)
    first = there[there["val_accuracy"] >= target].groupby("run")["epoch"].min()
    if len(first) < (seeds := there["run"].nunique()):
        epochs = seconds = f"{len(first)} of {seeds} seeds" if len(first) else "not reached"
    else:
        # NaN: runs on a machine that was shared are recorded without their times.
        until = there[there["epoch"] <= there["run"].map(first)]
        total = (until["seconds"] + until["val_seconds"]).sum(skipna=False) / seeds
        epochs, seconds = first.mean(), "not recorded" if math.isnan(total) else total
    return {f"epochs to {target:g}": epochs, f"seconds to {target:g}": seconds}


def distance(epochs: pd.DataFrame) -> pd.DataFrame:
    """Ours minus theirs at a few epochs and the last one that both have, for each metric.

    Only of runs that follow the published protocol (another precision is remarked), and never from a published run
    that is marked.
    """
    key, theirs = [*CELL, "departures"], published.epochs()
    ours = epochs[epochs["comparable"] & ~epochs["study"]]
    last = ours.groupby(key)["epoch"].transform("max")
    ours = ours[ours["epoch"].isin(MATCHED_EPOCHS) | (ours["epoch"] == last)]
    long = ours.melt([*key, "epoch"], METRICS, "metric")
    found = long.groupby([*key, "epoch", "metric"], sort=False)["value"].agg(seeds="size", ours="mean", spread="std")
    values = theirs[theirs["comparable"]].melt([*CELL, "epoch"], METRICS, "metric", "published")
    both = found.reset_index().merge(values, on=[*CELL, "epoch", "metric"])
    both["ours - published"] = both["ours"] - both["published"]
    both["in spreads"] = (both["ours - published"] / both["spread"]).where(both["spread"] > 0)
    group = both.groupby(key, sort=False).ngroup()
    both = both.assign(group=group, place=both["metric"].map(METRICS.index)).sort_values(["group", "epoch", "place"])
    columns = [*CELL, "epoch", "metric", "seeds", "ours", "spread", "published", "ours - published", "in spreads"]
    return both.rename(columns={"departures": "remarks"})[[*columns, "remarks"]].reset_index(drop=True)


def at_the_end(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `distance` at the last epoch of each run; other settings, in the remarks, make another run."""
    return rows[rows["epoch"] == rows.groupby([*CELL, "remarks"])["epoch"].transform("max")]


def beyond(rows: pd.DataFrame, spreads: float) -> pd.DataFrame:
    """The rows of `distance` that lie more than `spreads` of our own spreads from the published value."""
    return rows[rows["in spreads"].abs() > spreads]


def missing(epochs: pd.DataFrame) -> pd.DataFrame:
    """The cells of the paper's evaluation without a complete run under the published protocol."""
    rows = []
    for cell, theirs in published.ends().iterrows():
        found = epochs[(epochs[CELL] == list(cell)).all(axis=1) & ~epochs["study"]]
        ours, others = found[found["comparable"]], found[~found["comparable"]]
        text = f"{ours['epoch'].max()} of {EPOCHS} epochs" if len(ours) else "no run"
        if len(others):
            text += f"; {others['run'].nunique()} of another kind ({others['departures'].iloc[0]})"
        if ours.empty or ours["epoch"].max() < EPOCHS:
            rows.append((*cell, text, f"published: a {theirs['mark']}" if theirs["mark"] else ""))
    return pd.DataFrame(rows, columns=[*CELL, "ours", "remarks"])


def published_ends() -> pd.DataFrame:
    """What the published runs end at, for each dataset and model, and how steady they are.

    A lead is Gravity's over the better of the others. A swing is the standard deviation of the validation accuracy over
    the last 50 epochs.
    """
    theirs, names = published.epochs(), ["gravity", "adam", "rmsprop"]
    table = published.ends()["val_accuracy"].unstack()[names]
    marks = published.ends()["mark"].unstack()["gravity"]
    table["Gravity's lead"] = (table["gravity"] - table[["adam", "rmsprop"]].max(axis=1)).where(marks == "")
    late = theirs[theirs["epoch"] > EPOCHS - 50].groupby(CELL)["val_accuracy"].std(ddof=0).round(6).unstack()
    table = table.join(late[names].add_prefix("swing, "))
    table["remarks"] = ("gravity: " + marks).where(marks != "", "")
    return table.reset_index().rename_axis(columns=None)


def study(epochs: pd.DataFrame) -> pd.DataFrame:
    """The variants of the tuning study that we ran, beside each of the authors' runs of them."""
    rows, names = [], {"epochs": "epoch", "first_epoch_loss": "loss after epoch 1", "final_loss": "loss"}
    names |= {"final_val_accuracy": "validation accuracy", "best_val_accuracy": "best", "authors_comment": "remarks"}
    theirs = published.tuning().rename(columns=names).assign(whose="the authors'", seeds=1)
    for variant in VARIANTS:
        start = {"dataset": variant.dataset, "variant": variant.name}
        of = epochs["study"] & (epochs["dataset"] == variant.dataset) & (epochs["optimizer"] == variant.name)
        for sizes, found in epochs[of].groupby("sizes"):
            rows.append(_ends(found) | start | {"whose": "ours", "remarks": sizes})
        rows += [run | start for run in theirs.iloc[[*variant.rows] if of.any() else []].to_dict("records")]
    columns = "dataset|variant|whose|seeds|epoch|loss after epoch 1|loss|validation accuracy|spread|best|remarks"
    table = pd.DataFrame(rows, columns=columns.split("|"))
    return table.rename(columns={"epoch": "epochs", "loss": "final loss"})
