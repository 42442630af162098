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
import pathlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from comparison import evidence
from comparison.ledger import Outcome, Outcomes, Setup
from comparison.options import label_of
from comparison.rules import RULES
from comparison.studies import ARMS

BASELINE, CHOSEN = "momentum", "m = k rms"
MARGIN = 0.005  # test accuracies that are no further apart are as good as equal
CONFIDENCE = 0.95
BETA = 0.9  # Gravity's, in every arm
PERMUTATIONS = 99_999
CELL = ["dataset", "model", "settings"]
_ARM_OF = {label_of(text): arm for arm, text in ARMS.items()}


def write(folder: pathlib.Path, outcomes: Outcomes) -> pathlib.Path:
    """Writes arms.csv, pooled.csv and rates.csv to report/, and the page that shows them, whose path it returns."""
    found = cells(outcomes)
    tables = {"arms": found, "pooled": pooled(found, outcomes), "rates": rates(outcomes)}
    (folder / "report").mkdir(exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / "report" / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    page = folder / "report.md"
    page.write_text(render(*tables.values()))
    return page


def cells(outcomes: Outcomes) -> pd.DataFrame:
    """A row for each arm of each cell whose final runs are done, momentum's first."""
    rows = []
    for setup in evidence.setups(outcomes):
        arms = dict(_arms(outcomes, setup))
        if BASELINE not in arms:
            continue
        counts = not any(map(failed, _outcomes(outcomes, setup, arms[BASELINE])))
        of_cell = [_row(outcomes, setup, arm, arms) | {"counts": counts} for arm in arms]
        corrected = holm([row["p"] for row in of_cell if row["arm"] != BASELINE])
        for row in of_cell:
            row["p_holm"] = math.nan if row["arm"] == BASELINE else corrected.pop(0)
        rows += of_cell
    return pd.DataFrame(rows)


def pooled(found: pd.DataFrame, outcomes: Outcomes) -> pd.DataFrame:
    """A row for each arm: its test accuracy minus momentum's over all cells that count."""
    rows = []
    arms = dict.fromkeys(found["arm"]) if len(found) else {}
    for arm in [arm for arm in arms if arm != BASELINE]:
        there = found[(found["arm"] == arm) & found["counts"]]
        strata = []
        for setup in evidence.setups(outcomes):
            if len(there[(there[CELL] == [setup.dataset, setup.model, setup.settings]).all(axis=1)]):
                names = dict(_arms(outcomes, setup))
                ours, theirs = (_accuracies(outcomes, setup, names[one]) for one in (arm, BASELINE))
                strata.append((ours, theirs))
        if strata:
            difference, p = permutation_test(strata)
            runs = sum(len(ours) for ours, _ in strata)
            rows.append({"arm": arm, "cells": len(strata), "runs": runs, "minus_momentum": difference, "p": p})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return pd.DataFrame(rows)


def rates(outcomes: Outcomes) -> pd.DataFrame:
    """A row for each arm and learning rate of a cell's search: training loss after the last epoch."""
    rows = []
    for setup in evidence.setups(outcomes):
        for name in evidence.entrants(outcomes, setup):
            found = evidence.runs(outcomes, setup, name, "search") if name in _ARM_OF else []
            for rate in sorted({trial.learning_rate for trial, _ in found}):
                there = [outcome for trial, outcome in found if trial.learning_rate == rate]
                losses = np.array([outcome.loss_by_epoch[-1] for outcome in there])
                row = {column: getattr(setup, column) for column in CELL} | {"arm": _ARM_OF[name]}
                row["momentum_rate"] = float(f"{rate * (1 - BETA):.4g}") if name.startswith("gravity") else rate
                row |= {"learning_rate": rate, "seeds": len(there), "loss": losses.mean()}
                row["loss_sd"] = evidence.deviation(losses)
                row["validation_accuracy"] = np.mean([outcome.validation_accuracy for outcome in there])
                rows.append(row)
    return pd.DataFrame(rows)


def welch(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Difference of the means, its Welch interval, and p of no difference."""
    test = _t_test(ours, theirs)
    low, high = test.confidence_interval(CONFIDENCE)
    return {"minus_momentum": ours.mean() - theirs.mean(), "from": low, "to": high, "p": test.pvalue}


def equivalence(ours: np.ndarray, theirs: np.ndarray, margin: float = MARGIN) -> float:
    """p of means that differ by `margin` or more: the larger of two one-sided Welch tests'."""
    above = _t_test(ours + margin, theirs, alternative="greater").pvalue
    below = _t_test(ours - margin, theirs, alternative="less").pvalue
    return float(max(above, below))


def _t_test(ours: np.ndarray, theirs: np.ndarray, **options: str) -> Any:
    """Welch's. It warns of runs that all end alike, as those at the chance level do; they may."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return stats.ttest_ind(ours, theirs, equal_var=False, **options)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; a NaN stays one and does not count."""
    corrected, largest = [math.nan] * len(p_values), 0.0
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def permutation_test(strata: Sequence[tuple[np.ndarray, np.ndarray]], count: int = PERMUTATIONS) -> tuple[float, float]:
    """The difference of two groups' means, averaged over strata, and its two-sided p; runs keep to their stratum."""
    rng = np.random.default_rng(0)
    observed, drawn = 0.0, np.zeros(count)
    for ours, theirs in strata:
        everyone = np.concatenate([ours, theirs])
        orders = rng.permuted(np.broadcast_to(everyone, (count, len(everyone))), axis=1)
        drawn += orders[:, : len(ours)].mean(1) - orders[:, len(ours) :].mean(1)
        observed += ours.mean() - theirs.mean()
    extreme = np.sum(np.abs(drawn) >= abs(observed) - 1e-12)
    return observed / len(strata), (1 + int(extreme)) / (1 + count)


def failed(outcome: Outcome) -> bool:
    """Whether a run never left the chance level, or its loss was not finite at some time."""
    return evidence.at_chance(outcome) or evidence.diverged(outcome)


def render(arms: pd.DataFrame, over_all: pd.DataFrame, by_rate: pd.DataFrame) -> str:
    """The page, Markdown."""
    parts = ["# Which parts of Gravity matter?", (__doc__ or "").partition("\n\n")[2].strip()]
    for key, table in arms.groupby(CELL, sort=False) if len(arms) else []:
        dataset, model, settings = key
        note = "" if table["counts"].all() else " (momentum fails with some seed: this cell does not count)"
        parts += [f"## {dataset}, {model}, {settings or 'as in the paper'}{note}", _markdown(table.drop(columns=CELL))]
    parts += ["## All cells that count", _markdown(over_all)]
    parts.append("## Training loss after the last epoch, by momentum's rate or its counterpart (seeds 0, 1, 2)")
    comparable = by_rate[by_rate["arm"] != "AdamW"] if len(by_rate) else by_rate  # its rates mean something else
    for key, table in comparable.groupby(CELL, sort=False) if len(by_rate) else []:
        wide = table.pivot(index="arm", columns="momentum_rate", values="loss").reindex(dict.fromkeys(table["arm"]))
        parts += [f"### {', '.join(key[:2])}, {key[2] or 'as in the paper'}", _markdown(wide.reset_index())]
    return "\n\n".join(parts) + "\n"


def _markdown(table: pd.DataFrame) -> str:
    shown = lambda x: f"{x:.4g}" if isinstance(x, float) and not math.isnan(x) else "" if x != x else str(x)
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(map(shown, line)) + " |" for line in lines)


def _arms(outcomes: Outcomes, setup: Setup) -> Iterator[tuple[str, str]]:
    """The arms whose final runs are done, momentum first, and their entrants; one of the `m = k rms`."""
    names = {_ARM_OF[name]: name for name in evidence.entrants(outcomes, setup) if name in _ARM_OF}
    seeds = max((len(evidence.finals(outcomes, setup, name)) for name in names.values()), default=0)
    done = {arm: name for arm, name in names.items() if len(evidence.finals(outcomes, setup, name)) == seeds > 0}
    factors = [arm for arm in done if re.fullmatch(r"m = \d+ rms", arm)]
    if factors:
        score = lambda arm: max(_search_scores(outcomes, setup, done[arm]).values())
        done[CHOSEN] = done[max(factors, key=score)]
    for arm in sorted(done.keys() - set(factors), key=lambda arm: [BASELINE, *ARMS, CHOSEN].index(arm)):
        yield arm, done[arm]


def _search_scores(outcomes: Outcomes, setup: Setup, name: str) -> dict[float, float]:
    """Validation accuracy by learning rate, means over the search's seeds."""
    by_rate: dict[float, list[float]] = {}
    for trial, outcome in evidence.runs(outcomes, setup, name, "search"):
        by_rate.setdefault(trial.learning_rate, []).append(outcome.validation_accuracy)
    return {rate: float(np.mean(values)) for rate, values in sorted(by_rate.items())}


def _outcomes(outcomes: Outcomes, setup: Setup, name: str) -> list[Outcome]:
    return [outcome for _, outcome in evidence.finals(outcomes, setup, name)]


def _accuracies(outcomes: Outcomes, setup: Setup, name: str) -> np.ndarray:
    return evidence.test_accuracies(evidence.finals(outcomes, setup, name))


def _row(outcomes: Outcomes, setup: Setup, arm: str, arms: dict[str, str]) -> dict:
    found = evidence.finals(outcomes, setup, arms[arm])
    runs, rate = [outcome for _, outcome in found], found[0][0].learning_rate
    rates = list(_search_scores(outcomes, setup, arms[arm]))
    accuracies, losses = _accuracies(outcomes, setup, arms[arm]), np.array([run.loss_by_epoch[-1] for run in runs])
    steps = math.ceil(runs[0].training_pictures / setup.batch_size)
    target = RULES[setup.dataset].target
    reached = [
        next((i for i, accuracy in enumerate(run.accuracy_by_epoch, 1) if accuracy >= target), None) for run in runs
    ]
    lost = sum(map(failed, runs))
    interval = stats.binomtest(lost, len(runs)).proportion_ci(CONFIDENCE, method="exact")
    row = {
        **{name: getattr(setup, name) for name in CELL},
        "arm": arm,
        "entrant": arms[arm],
        "learning_rate": rate,
        "inside": rates[0] < rate < rates[-1],
        "seeds": len(runs),
        "loss": losses.mean(),
        "loss_sd": losses.std(ddof=1),
        "accuracy": accuracies.mean(),
        "accuracy_sd": accuracies.std(ddof=1),
        "target": target,
        "reached": sum(epoch is not None for epoch in reached),
        "steps_to_target": math.nan if None in reached else steps * float(np.mean([e for e in reached if e])),
        "failed": lost,
        "failed_from": interval.low,
        "failed_to": interval.high,
    }
    if arm == BASELINE:
        return row | dict.fromkeys(("minus_momentum", "from", "to", "p", "p_equivalent"), math.nan)
    theirs = _accuracies(outcomes, setup, arms[BASELINE])
    return row | welch(accuracies, theirs) | {"p_equivalent": equivalence(accuracies, theirs)}
