"""From a comparison's runs to the tables of its report. Pure functions of the frame of `frames.of_comparison`.

NaN stands where there are too few runs for a number.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from lab.inference import interval, total
from lab.rules import PLATEAU, RULES

BASELINE = "adam"
WHO = ["setup", "entrant"]  # in this order
KEY = ["dataset", "network", "optimizer"]
AT = ["learning_rate", "point"]  # what was searched; no table shows points where there are none


def standings(runs: pd.DataFrame) -> pd.DataFrame:
    """How each entrant does on the test set at its best learning rate, beside Adam."""
    rows = []
    for setup, found in _finals(runs):
        values, base = found["test_accuracy"], tested(runs, setup, BASELINE)
        row = _start(found, "dataset", "network", "classes", "optimizer", *AT)
        row |= {"seeds": len(found), "test_accuracy": values.mean(), "deviation": values.std()}
        if row["optimizer"] != BASELINE and len(base):
            row |= _difference("minus_adam", [(1, values.to_numpy()), (-1, base)])
        else:
            row |= dict.fromkeys(("minus_adam", "from", "to"), math.nan)
        rows.append(row)
    return _titled(rows)


def rate_scores(runs: pd.DataFrame) -> pd.DataFrame:
    """What the search found at each learning rate or point: mean validation accuracy, and the runs at chance."""
    search = runs[runs["part"] == "search"]
    found = search.groupby([*WHO, *KEY, *AT])
    scores = found["validation_accuracy"].agg(seeds="size", validation_accuracy="mean", deviation="std")
    scores = scores.assign(at_chance=found["at_chance"].sum()).reset_index().drop(columns=WHO)
    return _titled(scores)


def plateaus(runs: pd.DataFrame) -> pd.DataFrame:
    """How wide the range of good learning rates is: those without a gap around the best that reach 90% of it.

    The end is open, below or above, where the plateau reaches the edge of what was tried. Points have no order.
    """
    rows = []
    for _, found in runs[runs["point"] == ""].groupby(WHO):
        scores = found[found["part"] == "search"].groupby("learning_rate")["validation_accuracy"].mean()
        if scores.empty:
            continue
        final = found[found["chosen"]]
        rates = [*scores.index]
        top = rates.index(final["learning_rate"].iloc[0]) if len(final) else int(np.argmax(scores))
        good = [accuracy >= PLATEAU * scores.iloc[top] for accuracy in scores]
        low = top - len(list(itertools.takewhile(bool, good[top::-1]))) + 1
        high = top + len(list(itertools.takewhile(bool, good[top:]))) - 1
        row = _start(found, *KEY) | {"rates_tried": len(rates), "best_rate": rates[top]}
        row |= {"validation_accuracy": scores.iloc[top], "from": rates[low], "to": rates[high]}
        row["decades"] = round(math.log10(rates[high] / rates[low]), 2)
        ends = [("below", low == 0), ("above", high == len(rates) - 1)]
        rows.append(row | {"open_end": " and ".join(side for side, open_ in ends if open_)})
    return _titled(rows)


def to_target(runs: pd.DataFrame) -> pd.DataFrame:
    """After how many epochs the runs at the best learning rate first reach the target, if all of them do."""
    rows = []
    for _, found in _finals(runs):
        row = _start(found, *KEY) | {"target": RULES[found["dataset"].iloc[0]].target, "seeds": len(found)}
        rows.append(row | {"reached": found["reached"].count(), "epochs": found["reached"].mean(skipna=False)})
    return _titled(rows)


def failures(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs that were not above the chance level after any epoch, and those whose loss was not finite at some time."""
    rows = []
    for _, found in runs.groupby(WHO):
        row = _start(found, *KEY)
        for part in ("search", "final"):
            there = found[found["part"] == part]
            row |= {f"{part}_runs": len(there), f"{part}_at_chance": there["at_chance"].sum()}
            row[f"{part}_diverged"] = there["diverged"].sum()
        rows.append(row)
    return _titled(rows)


def leads(runs: pd.DataFrame) -> pd.DataFrame:
    """Gravity's test accuracy minus another optimizer's, by the number of classes."""
    rows = []
    for setup, found in _finals(runs):
        ours, other = tested(runs, setup, "gravity"), found["optimizer"].iloc[0]
        if other != "gravity" and len(ours):
            row = _start(found, "classes", "dataset", "network") | {"over": other}
            rows.append(row | _difference("lead", [(1, ours), (-1, found["test_accuracy"].to_numpy())]))
    return _titled(rows)


def growths(runs: pd.DataFrame, over: str = BASELINE) -> pd.DataFrame:
    """Does Gravity's lead grow from a dataset to one with more classes?

    Where the same network was trained on both, in the same way, or each for as long as the rule has it.
    """
    rows = []
    first = runs.groupby("setup").first()
    for (few, a), (many, b) in itertools.combinations(first.iterrows(), 2):
        values = [tested(runs, setup, name) for setup in (many, few) for name in ("gravity", over)]
        if _alike(a, b) and a["classes"] < b["classes"] and all(map(len, values)):
            row = {"few": a["dataset"], "many": b["dataset"]}
            row["network"] = " and ".join(dict.fromkeys((a["network"], b["network"])))
            row |= {"over": over} | _difference("change", list(zip((1, -1, -1, 1), values, strict=True)))
            rows.append(row | {"answer": answer(row["from"], row["to"])})
    return _titled(rows)


def answer(low: float, high: float) -> str:
    """In a word, from the interval of a growth: yes and no only where that says so."""
    if math.isnan(low):
        return "cannot be said from one seed"
    return "yes" if low > 0 else "no, it shrinks" if high < 0 else "not shown: the interval contains 0"


def tested(runs: pd.DataFrame, setup: int, optimizer: str) -> np.ndarray:
    """Test accuracies of an entrant's final runs (seeds,)."""
    return runs[(runs["setup"] == setup) & (runs["optimizer"] == optimizer) & runs["chosen"]][
        "test_accuracy"
    ].to_numpy()


def _finals(runs: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    """The final runs of each entrant, with the number of the setup."""
    for (setup, _), found in runs[runs["chosen"]].groupby(WHO):
        yield setup, found


def _start(found: pd.DataFrame, *columns: str) -> dict:
    return {column: found[column].iloc[0] for column in columns}


def _difference(name: str, terms: list[tuple[int, np.ndarray]]) -> dict[str, float]:
    return {name: total(terms)} | dict(zip(("from", "to"), interval(terms), strict=True))


def _titled(rows: pd.DataFrame | list[dict]) -> pd.DataFrame:
    table = pd.DataFrame(rows).rename(columns=lambda name: name.replace("_", " "))
    return table if "point" not in table or table["point"].any() else table.drop(columns="point")


def _alike(few: pd.Series, many: pd.Series) -> bool:
    """Whether leads on the two may be compared: the same but for the dataset and, by the rule, the epochs."""
    same = all(few[name] == many[name] for name in ("model", "width", "batch_size", "limit", "settings"))
    by_rule = all(setup["epochs"] == RULES[setup["dataset"]].epochs for setup in (few, many))
    return same and (few["epochs"] == many["epochs"] or by_rule)
