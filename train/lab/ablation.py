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

import math
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from lab.evidence import tested
from lab.inference import CONFIDENCE, equivalence, holm, permutation_test, welch
from lab.options import label_of
from lab.rules import RULES
from lab.studies import ARMS

BASELINE, CHOSEN = "momentum", "m = k rms"
BETA = 0.9  # Gravity's, in every arm
CELL = ["dataset", "model", "settings"]
_ARM_OF = {label_of(text): arm for arm, text in ARMS.items()}


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each arm of each cell whose final runs are done, momentum's first."""
    rows = []
    for _, found in runs.groupby("setup"):
        arms = dict(_arms(found))
        if BASELINE not in arms:
            continue
        counts = not _failed(_finals(found, arms[BASELINE])).any()
        of_cell = [_row(found, arm, arms) | {"counts": counts} for arm in arms]
        corrected = holm([row["p"] for row in of_cell])
        rows += [row | {"p_holm": p} for row, p in zip(of_cell, corrected, strict=True)]
    return pd.DataFrame(rows)


def pooled(found: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each arm: its test accuracy minus momentum's over all cells that count."""
    rows = []
    for arm, there in found[found["counts"]].groupby("arm", sort=False) if len(found) else []:
        strata = []
        for setup, of_setup in runs.groupby("setup"):
            names = dict(_arms(of_setup))
            if arm != BASELINE and (there[CELL] == of_setup[CELL].iloc[0]).all(axis=1).any():
                strata.append((tested(runs, setup, names[arm]), tested(runs, setup, names[BASELINE])))
        if strata:
            difference, p = permutation_test(strata)
            count = sum(len(ours) for ours, _ in strata)
            rows.append({"arm": arm, "cells": len(strata), "runs": count, "minus_momentum": difference, "p": p})
    corrected = holm([row["p"] for row in rows])
    return pd.DataFrame([row | {"p_holm": p} for row, p in zip(rows, corrected, strict=True)])


def rates(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each arm and learning rate of a cell's search: training loss after the last epoch."""
    search = runs[(runs["part"] == "search") & runs["optimizer"].isin(_ARM_OF)]
    if search.empty:
        return pd.DataFrame()
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


def _failed(found: pd.DataFrame) -> pd.Series:
    """Whether a run never left the chance level, or its loss was not finite at some time."""
    return found["at_chance"] | found["diverged"]


def _finals(found: pd.DataFrame, name: str) -> pd.DataFrame:
    return found[found["chosen"] & (found["optimizer"] == name)]


def _arms(found: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """The arms of a setup whose final runs are done, momentum first, and their entrants; one of the `m = k rms`."""
    counts = found[found["chosen"] & found["optimizer"].isin(_ARM_OF)]["optimizer"].value_counts()
    done = {_ARM_OF[name]: name for name in counts[counts == counts.max()].index}
    factors = [arm for arm in ARMS if arm in done and re.fullmatch(r"m = \d+ rms", arm)]
    if factors:
        done[CHOSEN] = done[max(factors, key=lambda arm: _search_scores(found, done[arm]).max())]
    for arm in sorted(done.keys() - {*factors}, key=lambda arm: [BASELINE, *ARMS, CHOSEN].index(arm)):
        yield arm, done[arm]


def _search_scores(found: pd.DataFrame, name: str) -> pd.Series:
    """Validation accuracy by learning rate, means over the search's seeds."""
    search = found[(found["part"] == "search") & (found["optimizer"] == name)]
    return search.groupby("learning_rate")["validation_accuracy"].mean()


def _row(found: pd.DataFrame, arm: str, arms: dict[str, str]) -> dict:
    runs, rates = _finals(found, arms[arm]), _search_scores(found, arms[arm]).index
    first, lost = runs.iloc[0], int(_failed(runs).sum())
    steps = math.ceil(first["training_pictures"] / first["batch_size"])
    interval = stats.binomtest(lost, len(runs)).proportion_ci(CONFIDENCE, method="exact")
    row = {name: first[name] for name in CELL} | {
        "arm": arm,
        "entrant": arms[arm],
        "learning_rate": first["learning_rate"],
        "inside": rates[0] < first["learning_rate"] < rates[-1],
        "seeds": len(runs),
        "loss": runs["loss"].mean(),
        "loss_sd": runs["loss"].std(),
        "accuracy": runs["test_accuracy"].mean(),
        "accuracy_sd": runs["test_accuracy"].std(),
        "target": RULES[first["dataset"]].target,
        "reached": runs["reached"].count(),
        "steps_to_target": steps * runs["reached"].mean(skipna=False),
        "failed": lost,
        "failed_from": interval.low,
        "failed_to": interval.high,
    }
    if arm == BASELINE:
        return row | dict.fromkeys(("minus_momentum", "from", "to", "p", "p_equivalent"), math.nan)
    ours, theirs = (np.array(_finals(found, arms[one])["test_accuracy"]) for one in (arm, BASELINE))
    test = welch(ours, theirs)
    return row | {"minus_momentum": test.pop("difference")} | test | {"p_equivalent": equivalence(ours, theirs)}
