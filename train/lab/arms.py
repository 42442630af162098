"""What the ablation's runs say: each arm beside SGD with momentum, with statistics for few seeds.

A cell is a workload, a setting of the network and a schedule. In each, an arm's final runs at its best learning rate
are compared with momentum's at its own, by test accuracy: Welch's t test, its p values corrected by Holm's method over
the cell's arms, and two one-sided Welch tests of equivalence within MARGIN. Over all cells that count, an arm has one
permutation test, in which runs change places within their cell only. A cell counts where momentum trains with every
seed: elsewhere it is the start that is compared. Of the arms `m = k rms`, the k with the best search is taken, as it is
with learning rates.

The seeds' spread does not hold what the search may choose: on 143 held-out digits it can take a rate half a decade
beside the best, for one arm and not for another, and p does not know. So the search's training losses stand beside, at
all rates, where momentum's counterpart of Gravity's l is l (1 - beta).
"""

import numpy as np
import pandas as pd
from scipy import stats

from lab.inference import CONFIDENCE, holm, permutation_test, welch
from lab.options import label_of
from lab.rules import RULES
from lab.studies import ARMS

BASELINE, CHOSEN = "momentum", "m = k rms"
BETA = 0.9  # Gravity's, in every arm
CELL = ["dataset", "model", "settings"]
_ARM_OF = {label_of(text): arm for arm, text in ARMS.items()}
_FACTORS = [arm for arm in ARMS if arm.startswith("m = ")]
_ORDER = [*dict.fromkeys((BASELINE, *ARMS)), CHOSEN]


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each arm of each cell whose final runs are done, momentum's first."""
    finals = final_runs(runs)
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
    tests: list[dict[str, float]] = []
    for setup, arm in zip(table["setup"], table["arm"], strict=True):
        compared = arm != BASELINE
        tests.append(welch(accuracies[setup, arm], accuracies[setup, BASELINE]) if compared else {})
    table = table.join(pd.DataFrame(tests, columns=["difference", "from", "to", "p", "p_equivalent"]))
    table = table.rename(columns={"difference": "minus_momentum"})
    momentums = table[table["arm"] == BASELINE].set_index("setup")["failed"]
    table["counts"] = table["setup"].map(momentums) == 0
    table["p_holm"] = table.groupby("setup")["p"].transform(holm)
    return table.drop(columns="setup")


def pooled(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each arm: its test accuracy minus momentum's over all cells that count."""
    finals, rows = final_runs(runs), []
    for arm in _ORDER[1:]:
        strata = []
        for _, found in finals.groupby("setup"):
            ours, theirs = (found[found["arm"] == name] for name in (arm, BASELINE))
            if len(ours) and not theirs["failed"].any():
                strata.append((ours["test_accuracy"].to_numpy(), theirs["test_accuracy"].to_numpy()))
        if strata:
            difference, p = permutation_test(strata)
            count = sum(len(ours) for ours, _ in strata)
            rows.append({"arm": arm, "cells": len(strata), "runs": count, "minus_momentum": difference, "p": p})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"])) if rows else table


def rates(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each arm and learning rate of a cell's search: training loss after the last epoch."""
    search = runs[(runs["part"] == "search") & runs["optimizer"].isin(_ARM_OF)]
    found = search.groupby(["setup", "entrant", *CELL, "optimizer", "learning_rate"])
    columns = {"seeds": ("loss", "size"), "loss": ("loss", "mean"), "loss_sd": ("loss", "std")}
    table = found.agg(**columns, validation_accuracy=("validation_accuracy", "mean")).reset_index()
    gravitys = table["optimizer"].str.startswith("gravity")
    momentums = (table["learning_rate"] * (1 - BETA)).map(lambda rate: float(f"{rate:.4g}"))
    table["momentum_rate"] = momentums.where(gravitys, table["learning_rate"])
    table["arm"] = table["optimizer"].map(_ARM_OF)
    return table[[*CELL, "arm", "momentum_rate", "learning_rate", *columns, "validation_accuracy"]]


def by_momentums_rate(table: pd.DataFrame) -> pd.DataFrame:
    """One cell of `rates` with a column for each rate of momentum. AdamW's rates mean something else."""
    there = table[table["arm"] != "AdamW"]
    wide = there.pivot(index="arm", columns="momentum_rate", values="loss").reindex(dict.fromkeys(there["arm"]))
    return wide.rename(columns=lambda rate: f"{rate:.4g}").reset_index()


def final_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The final runs of the arms that are done, by cell and arm, momentum's first; of the factors only the best."""
    kept = []
    for _, found in runs[runs["optimizer"].isin(_ARM_OF)].groupby("setup"):
        search, finals = found[found["part"] == "search"], found[found["chosen"]]
        counts = finals["optimizer"].value_counts()
        arms = {name: _ARM_OF[name] for name in counts[counts == counts.max()].index}
        if BASELINE not in arms.values():
            continue
        tried = search.groupby("optimizer")["learning_rate"].agg(["min", "max"])
        scores = search.groupby(["optimizer", "learning_rate"])["validation_accuracy"].mean()
        factors = sorted((name for name in arms if arms[name] in _FACTORS), key=lambda n: _FACTORS.index(arms[n]))
        if factors:
            arms[max(factors, key=lambda name: scores[name].max())] = CHOSEN
        arms = {name: arm for name, arm in arms.items() if arm not in _FACTORS}
        finals = finals[finals["optimizer"].isin(arms)]
        lowest, highest = (finals["optimizer"].map(tried[end]) for end in ("min", "max"))
        rate, first = finals["learning_rate"], finals.iloc[0]
        steps = np.ceil(first["training_pictures"] / first["batch_size"])
        finals = finals.assign(
            arm=finals["optimizer"].map(arms),
            inside=(lowest < rate) & (rate < highest),
            target=RULES[first["dataset"]].target,
            steps_to_target=steps * finals["reached"],
            failed=finals["at_chance"] | finals["diverged"],
        )
        kept.append(finals.sort_values("arm", key=lambda arm: arm.map(_ORDER.index), kind="stable"))
    return pd.concat(kept) if kept else pd.DataFrame(columns=["setup", "arm"])
