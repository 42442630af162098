"""What a study's runs say: each arm beside SGD with momentum, with statistics for few seeds.

A cell is a workload, a setting of the network and a schedule. In each, an arm's final runs at its best learning rate
are compared with momentum's at its own, by test accuracy: Welch's t test, its p values corrected by Holm's method over
the cell's arms, and two one-sided Welch tests of equivalence within MARGIN. Over all cells that count, an arm has one
permutation test, in which runs change places within their cell only. A cell counts where momentum trains with every
seed; elsewhere it is the start that is compared. If an arm has several entrants (factors of m, weight decays), the one
with the best score in the search counts, as with learning rates.

The spread over seeds does not include the search: on few held-out pictures (143 digits) it may pick a rate half a
decade off the best for one arm and not for another, and p does not account for that. So the tables also show the
search's training losses at all rates; the counterpart of Gravity's l for momentum is l (1 - beta).
"""

import numpy as np
import pandas as pd
from scipy import stats

from lab.inference import CONFIDENCE, holm, permutation_test, welch
from lab.rules import RULES
from lab.studies import Arms, arm_of

BASELINE = "momentum"
BETA = 0.9  # Gravity's, in every arm
CELL = ["dataset", "model", "width", "settings"]


def cells(runs: pd.DataFrame, arms: Arms) -> pd.DataFrame:
    """A row for each arm of each cell whose final runs are done, momentum's first."""
    finals = final_runs(runs, arms)
    if finals.empty:
        return pd.DataFrame(columns=CELL)
    table = (
        finals.groupby(["setup", *CELL, "arm"], sort=False)
        .agg(
            entrant=("optimizer", "first"),
            learning_rate=("learning_rate", "first"),
            inside=("inside", "first"),
            seeds=("seed", "size"),
            loss=("loss", "mean"),
            loss_sd=("loss", "std"),
            accuracy=("test_accuracy", "mean"),
            accuracy_sd=("test_accuracy", "std"),
            target=("target", "first"),
            reached=("reached", "count"),
            steps_to_target=("steps_to_target", lambda steps: steps.mean(skipna=False)),
            failed=("failed", "sum"),
        )
        .reset_index()
    )
    intervals = [
        stats.binomtest(failed, seeds).proportion_ci(CONFIDENCE, method="exact")
        for failed, seeds in zip(table["failed"], table["seeds"], strict=True)
    ]
    table["failed_from"], table["failed_to"] = [i.low for i in intervals], [i.high for i in intervals]
    accuracies = finals.groupby(["setup", "arm"])["test_accuracy"].apply(np.array)
    tests = [
        welch(accuracies[setup, arm], accuracies[setup, BASELINE]) if arm != BASELINE else {}
        for setup, arm in zip(table["setup"], table["arm"], strict=True)
    ]
    table = table.join(pd.DataFrame(tests, columns=["difference", "from", "to", "df", "p", "p_equivalent"]))
    table = table.rename(columns={"difference": "minus_momentum"})
    momentums = table[table["arm"] == BASELINE].set_index("setup")["failed"]
    table["counts"] = table["setup"].map(momentums) == 0
    table["p_holm"] = table.groupby("setup")["p"].transform(holm)
    return table.drop(columns="setup")


def pooled(runs: pd.DataFrame, arms: Arms) -> pd.DataFrame:
    """A row for each arm: its test accuracy minus momentum's over all cells that count."""
    finals, rows = final_runs(runs, arms), []
    for arm in _ordered(arms)[1:]:
        strata = []
        for _, found in finals.groupby("setup"):
            ours, theirs = (found[found["arm"] == name] for name in (arm, BASELINE))
            if len(ours) and not theirs["failed"].any():
                strata.append((ours["test_accuracy"].to_numpy(), theirs["test_accuracy"].to_numpy()))
        if strata:
            difference, p = permutation_test(strata)
            count = sum(len(ours) for ours, _ in strata)
            rows.append({"arm": arm, "cells": len(strata), "runs": count, "minus_momentum": difference, "p": p})
    table = pd.DataFrame(rows, columns=["arm", "cells", "runs", "minus_momentum", "p"])
    return table.assign(p_holm=holm(table["p"]))


def rates(runs: pd.DataFrame, arms: Arms) -> pd.DataFrame:
    """A row for each entrant and learning rate of a cell's search: training loss after the last epoch."""
    search = _known(runs, arms).query("part == 'search'")
    found = search.groupby(["setup", "entrant", *CELL, "arm", "optimizer", "learning_rate"])
    columns = {"seeds": ("loss", "size"), "loss": ("loss", "mean"), "loss_sd": ("loss", "std")}
    table = found.agg(**columns, validation_accuracy=("validation_accuracy", "mean")).reset_index()
    gravitys = table["optimizer"].str.startswith("gravity")
    momentums = (table["learning_rate"] * (1 - BETA)).map(lambda rate: float(f"{rate:.4g}"))
    table["momentum_rate"] = momentums.where(gravitys, table["learning_rate"])
    several = table["arm"].map(lambda arm: len(arms[arm]) > 1)
    table["arm"] = table["arm"].where(~several, table["optimizer"])
    return table[[*CELL, "arm", "momentum_rate", "learning_rate", *columns, "validation_accuracy"]]


def by_momentums_rate(table: pd.DataFrame) -> pd.DataFrame:
    """One cell of `rates` with a column for each rate of momentum. Adam's and RMSProp's rates mean something else."""
    there = table[~table["arm"].str.startswith(("adam", "AdamW", "rmsprop"))]
    wide = there.pivot(index="arm", columns="momentum_rate", values="loss").reindex(dict.fromkeys(there["arm"]))
    return wide.rename(columns=lambda rate: f"{rate:.4g}").reset_index()


def final_runs(runs: pd.DataFrame, arms: Arms) -> pd.DataFrame:
    """The final runs of the arms that are done, by cell and arm, momentum's first; of each arm the best entrant's."""
    kept, order = [], _ordered(arms)
    for _, found in _known(runs, arms).groupby("setup"):
        search, finals = found[found["part"] == "search"], found[found["chosen"]]
        counts = finals["optimizer"].value_counts()
        finals = finals[finals["optimizer"].isin(counts[counts == counts.max()].index)]
        if BASELINE not in set(finals["arm"]):
            continue
        scores = search.groupby(["optimizer", "learning_rate"])["validation_accuracy"].mean().groupby("optimizer").max()
        best = scores.reindex(finals["optimizer"].unique()).groupby(arm_of(arms)).idxmax()
        finals = finals[finals["optimizer"] == finals["arm"].map(best)]
        tried = search.groupby("optimizer")["learning_rate"].agg(["min", "max"])
        lowest, highest = (finals["optimizer"].map(tried[end]) for end in ("min", "max"))
        rate, first = finals["learning_rate"], finals.iloc[0]
        steps = np.ceil(first["training_pictures"] / first["batch_size"])
        finals = finals.assign(
            inside=(lowest < rate) & (rate < highest),
            target=RULES[first["dataset"]].target,
            steps_to_target=steps * finals["reached"],
            failed=finals["at_chance"] | finals["diverged"],
        )
        kept.append(finals.sort_values("arm", key=lambda arm: arm.map(order.index), kind="stable"))
    return pd.concat(kept) if kept else pd.DataFrame(columns=["setup", "arm"])


def _known(runs: pd.DataFrame, arms: Arms) -> pd.DataFrame:
    """The runs of the arms, with the name of each one's."""
    return runs.assign(arm=runs["optimizer"].map(arm_of(arms))).dropna(subset="arm")


def _ordered(arms: Arms) -> list[str]:
    return [*dict.fromkeys((BASELINE, *arms))]
