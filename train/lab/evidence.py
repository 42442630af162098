"""From a comparison's runs to the tables of its report. Pure functions of the frame of `frames.of_comparison`.

Each docstring is the table's title and note on the page. NaN stands where there are too few runs for a number.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lab.inference import welch
from lab.rules import PLATEAU, RULES

BASELINE = "adam"
WHO = ["setup", "entrant"]  # in this order
KEY = ["dataset", "network", "optimizer"]
AT = ["learning_rate", "point"]  # what was searched; tables without points have no such column


def standings(runs: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy at the best learning rate

    Mean over the seeds, standard deviation, difference from Adam's mean, and the 95% interval of that difference by
    Welch's t test, with its degrees of freedom (df). The test set was used once, after the last epoch.
    """
    finals = runs[runs["chosen"]].groupby([*WHO, "dataset", "network", "classes", "optimizer", *AT])["test_accuracy"]
    table = finals.agg(seeds="size", test_accuracy="mean", deviation="std").reset_index()
    differences = []
    for setup, optimizer in zip(table["setup"], table["optimizer"], strict=True):
        ours, base = tested(runs, setup, optimizer), tested(runs, setup, BASELINE)
        compared = optimizer != BASELINE and len(base)
        differences.append(_difference("minus_adam", ours, base) if compared else {})
    table = table.join(pd.DataFrame(differences, columns=["minus_adam", "from", "to", "df"]))
    return _titled(table.drop(columns=WHO))


def leads(runs: pd.DataFrame) -> pd.DataFrame:
    """Gravity's lead, by the number of classes

    Test accuracy of Gravity minus the other's, and its 95% interval by Welch's t test.
    """
    rows = []
    others = runs[runs["chosen"] & (runs["optimizer"] != "gravity")]
    for (setup, _, *key), found in others.groupby([*WHO, "classes", *KEY]):
        if len(ours := tested(runs, setup, "gravity")):
            named = dict(zip(("classes", "dataset", "network", "over"), key, strict=True))
            rows.append(named | _difference("lead", ours, found["test_accuracy"].to_numpy()))
    return _titled(pd.DataFrame(rows))


def growths(runs: pd.DataFrame) -> pd.DataFrame:
    """Does Gravity's lead over Adam grow with the number of classes?

    The lead on the second dataset minus the lead on the first, and its 95% interval by Welch's t test.
    """
    rows = []
    for (few, a), (many, b) in itertools.combinations(runs.groupby("setup").first().iterrows(), 2):
        values = [tested(runs, setup, name) for setup in (many, few) for name in ("gravity", BASELINE)]
        if _alike(a, b) and a["classes"] < b["classes"] and all(map(len, values)):
            networks = " and ".join(dict.fromkeys((a["network"], b["network"])))
            row = {"few": a["dataset"], "many": b["dataset"], "network": networks, "over": BASELINE}
            row |= _difference("change", *values, signs=(1, -1, -1, 1))
            rows.append(row | {"answer": answer(row["from"], row["to"])})
    return _titled(pd.DataFrame(rows))


def plateaus(runs: pd.DataFrame) -> pd.DataFrame:
    """How wide is the range of good learning rates?

    The learning rates around the best with at least 90% of its validation accuracy. Open end: the search did not find
    the edge of the plateau on that side.
    """
    rows = []
    for _, found in runs[runs["point"] == ""].groupby(WHO):
        scores = found[found["part"] == "search"].groupby("learning_rate")["validation_accuracy"].mean()
        if scores.empty:
            continue
        final = found["learning_rate"][found["chosen"]]
        best = final.iloc[0] if len(final) else scores.idxmax()
        reaching = scores >= PLATEAU * scores[best]
        gaps = (~reaching).cumsum()
        good = scores.index[reaching & (gaps == gaps[best])]
        row = {column: found[column].iloc[0] for column in KEY} | {"rates_tried": len(scores), "best_rate": best}
        row |= {"validation_accuracy": scores[best], "from": good[0], "to": good[-1]}
        row["decades"] = round(math.log10(good[-1] / good[0]), 2)
        ends = {"below": good[0] == scores.index[0], "above": good[-1] == scores.index[-1]}
        rows.append(row | {"open_end": " and ".join(side for side, is_open in ends.items() if is_open)})
    return _titled(pd.DataFrame(rows))


def rate_scores(runs: pd.DataFrame) -> pd.DataFrame:
    """What the search found

    Accuracy on the validation part after the last epoch, mean over the search's seeds.
    """
    found = runs[runs["part"] == "search"].groupby([*WHO, *KEY, *AT])
    scores = found["validation_accuracy"].agg(seeds="size", validation_accuracy="mean", deviation="std")
    return _titled(scores.assign(at_chance=found["at_chance"].sum()).reset_index().drop(columns=WHO))


def to_target(runs: pd.DataFrame) -> pd.DataFrame:
    """Epochs to a target

    The epoch after which the final runs first reach the target on the validation part, mean over the seeds; the targets
    were fixed before the runs.
    """
    finals = runs[runs["chosen"]].groupby([*WHO, *KEY])["reached"]
    table = finals.agg(seeds="size", reached="count", epochs=lambda epochs: epochs.mean(skipna=False)).reset_index()
    targets = table["dataset"].map(lambda dataset: RULES[dataset].target)
    table.insert(table.columns.get_loc("seeds"), "target", targets)
    return _titled(table.drop(columns=WHO))


def failures(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs that never left the chance level, or diverged

    At chance: not more than three standard errors above an equal share after any epoch. Diverged: the loss was not
    finite.
    """
    whats = {"runs": True, "at_chance": runs["at_chance"], "diverged": runs["diverged"]}
    parts = {part: runs["part"] == part for part in ("search", "final")}
    counted = {f"{part}_{name}": here & what for part, here in parts.items() for name, what in whats.items()}
    table = runs.assign(**counted).groupby([*WHO, *KEY])[[*counted]].sum()
    return _titled(table.reset_index().drop(columns=WHO))


TABLES = (standings, leads, growths, plateaus, rate_scores, to_target, failures)  # in the page's order


def answer(low: float, high: float) -> str:
    """In a word, from the interval of a growth: yes and no only where that says so."""
    if math.isnan(low):
        return "cannot be said from one seed"
    return "yes" if low > 0 else "no, it shrinks" if high < 0 else "not shown: the interval contains 0"


def tested(runs: pd.DataFrame, setup: int, optimizer: str) -> np.ndarray:
    """Test accuracies of an entrant's final runs (seeds,)."""
    wanted = runs["chosen"] & (runs["setup"] == setup) & (runs["optimizer"] == optimizer)
    return runs["test_accuracy"][wanted].to_numpy()


def _difference(name: str, *groups: np.ndarray, signs: Sequence[int] = (1, -1)) -> dict[str, float]:
    """The sum of the groups' means with these signs and what Welch's test says of it, to six decimals as in files."""
    found = welch(*groups, signs=signs)
    return {name: round(found["difference"], 6)} | {at: round(found[at], 6) for at in ("from", "to", "df")}


def _titled(table: pd.DataFrame) -> pd.DataFrame:
    table = table.rename(columns=lambda name: name.replace("_", " "))
    return table if "point" not in table or table["point"].any() else table.drop(columns="point")


def _alike(few: pd.Series, many: pd.Series) -> bool:
    """Whether leads on the two may be compared: the same but for the dataset and, by the rule, the epochs."""
    same = all(few[name] == many[name] for name in ("model", "width", "batch_size", "limit", "settings"))
    by_rule = all(setup["epochs"] == RULES[setup["dataset"]].epochs for setup in (few, many))
    return same and (few["epochs"] == many["epochs"] or by_rule)
