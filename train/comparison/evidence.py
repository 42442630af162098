"""From the runs to what they say: the report's numbers. Pure functions; a row of a table is a dataclass.

Standard deviations have n - 1 in the denominator; None stands where there are too few runs for a number. An interval
is Welch's, at 95%: by Student's t with Satterthwaite's degrees of freedom, each optimizer's runs with a variance of
their own. A bootstrap over three seeds would cover the truth in 77 to 81% of cases.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from comparison.ledger import Outcome, Outcomes, Setup, Trial
from comparison.rules import PLATEAU, RULES, chance_level

BASELINE = "adam"
_CONFIDENCE = 0.95

Runs = list[tuple[Trial, Outcome]]


@dataclasses.dataclass(frozen=True)
class Standing:
    """How an entrant does on the test set at its best learning rate."""

    dataset: str
    network: str
    classes: int
    optimizer: str
    learning_rate: float
    seeds: int
    test_accuracy: float  # mean over the seeds
    deviation: float | None  # its standard deviation over the seeds
    minus_adam: float | None  # difference of the means
    from_: float | None  # its interval
    to: float | None


@dataclasses.dataclass(frozen=True)
class RateScore:
    """What the search found at one learning rate."""

    dataset: str
    network: str
    optimizer: str
    learning_rate: float
    seeds: int
    validation_accuracy: float  # mean over the seeds
    deviation: float | None
    at_chance: int  # runs


@dataclasses.dataclass(frozen=True)
class Plateau:
    """How wide the range of good learning rates is: those without a gap around the best that reach 90% of it."""

    dataset: str
    network: str
    optimizer: str
    rates_tried: int
    best_rate: float
    validation_accuracy: float  # at the best
    from_: float
    to: float
    decades: float  # between these two
    open_end: str  # "below" or "above" where the plateau reaches the edge of what was tried


@dataclasses.dataclass(frozen=True)
class ToTarget:
    """After how many epochs the runs at the best learning rate first reach the target on the validation part."""

    dataset: str
    network: str
    optimizer: str
    target: float
    seeds: int
    reached: int  # seeds
    epochs: float | None  # mean over those, if all reached it


@dataclasses.dataclass(frozen=True)
class Failures:
    """Runs that were not above the chance level after any epoch, and those whose loss was not finite at some time."""

    dataset: str
    network: str
    optimizer: str
    search_runs: int
    search_at_chance: int
    search_diverged: int
    final_runs: int
    final_at_chance: int
    final_diverged: int


@dataclasses.dataclass(frozen=True)
class Lead:
    """Gravity's test accuracy minus another optimizer's, by the number of classes."""

    classes: int
    dataset: str
    network: str
    over: str
    lead: float
    from_: float | None
    to: float | None


@dataclasses.dataclass(frozen=True)
class Growth:
    """Does Gravity's lead over another optimizer grow from a dataset with few classes to one with many?"""

    few: str  # dataset
    many: str
    network: str
    over: str
    change: float  # the lead on the latter minus that on the former
    from_: float | None
    to: float | None

    @property
    def answer(self) -> str:
        """In a word: yes and no only where the interval says so."""
        if self.from_ is None or self.to is None:
            return "cannot be said from one seed"
        return "yes" if self.from_ > 0 else "no, it shrinks" if self.to < 0 else "not shown: the interval contains 0"


def network(setup: Setup) -> str:
    """What is trained and for how long: `vgg16 x 0.125, 3 epochs`, and more where it departs from the rule."""
    text = f"{setup.model} x {setup.width:g}, {setup.epochs} epoch{'s' * (setup.epochs > 1)}"
    if setup.batch_size != RULES[setup.dataset].batch_size:
        text += f", batch {setup.batch_size}"
    text += f", first {setup.limit} pictures" if setup.limit else ""
    return f"{text}, {setup.settings}" if setup.settings else text


def setups(outcomes: Outcomes) -> list[Setup]:
    """By the number of classes, then as they come in the file."""
    found = list(dict.fromkeys(trial.setup for trial in outcomes))
    classes = {trial.setup: outcome.classes for trial, outcome in outcomes.items()}
    return sorted(found, key=lambda setup: (classes[setup], list(RULES).index(setup.dataset), found.index(setup)))


def entrants(outcomes: Outcomes, setup: Setup) -> list[str]:
    """Who was compared there."""
    return list(dict.fromkeys(trial.optimizer for trial in outcomes if trial.setup == setup))


def runs(outcomes: Outcomes, setup: Setup, optimizer: str, part: str) -> Runs:
    """Of one entrant, as they come in the file."""
    wanted = (setup, optimizer, part)
    return [(trial, o) for trial, o in outcomes.items() if (trial.setup, trial.optimizer, trial.part) == wanted]


def finals(outcomes: Outcomes, setup: Setup, optimizer: str) -> Runs:
    """An entrant's runs with new seeds, at the learning rate that was chosen last if that ever changed."""
    found = runs(outcomes, setup, optimizer, "final")
    return [(trial, outcome) for trial, outcome in found if trial.learning_rate == found[-1][0].learning_rate]


def test_accuracies(found: Runs) -> np.ndarray:
    """(seeds,)"""
    return np.array([outcome.test_accuracy for _, outcome in found], float)


def deviation(values: Sequence[float] | np.ndarray) -> float | None:
    """Standard deviation; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def total(terms: Sequence[tuple[int, np.ndarray]]) -> float:
    """A sum of means, each with a sign: [(1, values), (-1, values), ...]; to the six decimals that the file has."""
    return round(sum(sign * float(values.mean()) for sign, values in terms), 6)


def interval(terms: Sequence[tuple[int, np.ndarray]]) -> tuple[float | None, float | None]:
    """Welch's, of such a sum; (None, None) if a mean is of a single value."""
    if any(len(values) < 2 for _, values in terms):
        return None, None
    middle, parts = total(terms), [(values.var(ddof=1) / len(values), len(values) - 1) for _, values in terms]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / count for part, count in parts) if variance else 1
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return round(middle - half, 6), round(middle + half, 6)


def standings(outcomes: Outcomes) -> list[Standing]:
    rows = []
    for setup in setups(outcomes):
        baseline = test_accuracies(finals(outcomes, setup, BASELINE))
        for name in entrants(outcomes, setup):
            if not (found := finals(outcomes, setup, name)):
                continue
            values = test_accuracies(found)
            difference, low, high = None, None, None
            if name != BASELINE and len(baseline):
                difference = total([(1, values), (-1, baseline)])
                low, high = interval([(1, values), (-1, baseline)])
            rows.append(
                Standing(
                    setup.dataset,
                    network(setup),
                    found[0][1].classes,
                    name,
                    found[0][0].learning_rate,
                    len(values),
                    float(values.mean()),
                    deviation(values),
                    difference,
                    low,
                    high,
                )
            )
    return rows


def rate_scores(outcomes: Outcomes) -> list[RateScore]:
    """By learning rate within an entrant."""
    rows = []
    for setup, name in _everyone(outcomes):
        found = runs(outcomes, setup, name, "search")
        for rate in sorted({trial.learning_rate for trial, _ in found}):
            there = [outcome for trial, outcome in found if trial.learning_rate == rate]
            values = [outcome.validation_accuracy for outcome in there]
            chance = sum(map(at_chance, there))
            mean = float(np.mean(values))
            rows.append(
                RateScore(setup.dataset, network(setup), name, rate, len(values), mean, deviation(values), chance)
            )
    return rows


def plateaus(outcomes: Outcomes) -> list[Plateau]:
    rows = []
    scores = rate_scores(outcomes)
    for setup, name in _everyone(outcomes):
        key = (setup.dataset, network(setup), name)
        there = [row for row in scores if (row.dataset, row.network, row.optimizer) == key]
        if not there:
            continue
        accuracies = [row.validation_accuracy for row in there]
        rates = [row.learning_rate for row in there]
        final = finals(outcomes, setup, name)
        top = rates.index(final[0][0].learning_rate) if final else int(np.argmax(accuracies))
        good = [accuracy >= PLATEAU * accuracies[top] for accuracy in accuracies]
        low = top - len(list(itertools.takewhile(bool, good[top::-1]))) + 1
        high = top + len(list(itertools.takewhile(bool, good[top:]))) - 1
        ends = [("below", low == 0), ("above", high == len(there) - 1)]
        first, last = rates[low], rates[high]
        rows.append(
            Plateau(
                *key,
                len(there),
                rates[top],
                accuracies[top],
                first,
                last,
                round(math.log10(last / first), 2),
                " and ".join(side for side, open_ in ends if open_),
            )
        )
    return rows


def to_target(outcomes: Outcomes) -> list[ToTarget]:
    rows = []
    for setup, name in _everyone(outcomes):
        target = RULES[setup.dataset].target
        found = finals(outcomes, setup, name)
        epochs = [
            next((i for i, accuracy in enumerate(outcome.accuracy_by_epoch, 1) if accuracy >= target), None)
            for _, outcome in found
        ]
        reached = [epoch for epoch in epochs if epoch is not None]
        if found:
            mean = float(np.mean(reached)) if len(reached) == len(found) else None
            rows.append(ToTarget(setup.dataset, network(setup), name, target, len(found), len(reached), mean))
    return rows


def failures(outcomes: Outcomes) -> list[Failures]:
    rows = []
    for setup, name in _everyone(outcomes):
        counts: list[int] = []
        for part in ("search", "final"):
            found = [outcome for _, outcome in runs(outcomes, setup, name, part)]
            counts += [len(found), sum(map(at_chance, found)), sum(map(diverged, found))]
        rows.append(Failures(setup.dataset, network(setup), name, *counts))
    return rows


def leads(outcomes: Outcomes) -> list[Lead]:
    """By the number of classes, over each other entrant."""
    rows = []
    for setup, other in _everyone(outcomes):
        ours, theirs = (test_accuracies(finals(outcomes, setup, name)) for name in ("gravity", other))
        if other != "gravity" and len(ours) and len(theirs):
            classes = runs(outcomes, setup, other, "final")[0][1].classes
            bounds = interval([(1, ours), (-1, theirs)])
            lead = total([(1, ours), (-1, theirs)])
            rows.append(Lead(classes, setup.dataset, network(setup), other, lead, *bounds))
    return rows


def growths(outcomes: Outcomes, over: str = BASELINE) -> list[Growth]:
    """From each dataset to each with more classes, where the same network was trained on both.

    In the same way, or each for as long as the rule has it.
    """
    rows = []
    for few, many in itertools.combinations(setups(outcomes), 2):
        values = [test_accuracies(finals(outcomes, setup, name)) for setup in (many, few) for name in ("gravity", over)]
        classes = [next(o.classes for trial, o in outcomes.items() if trial.setup == setup) for setup in (few, many)]
        if _alike(few, many) and classes[0] < classes[1] and all(map(len, values)):
            terms = list(zip((1, -1, -1, 1), values, strict=True))
            name = " and ".join(dict.fromkeys((network(few), network(many))))
            rows.append(Growth(few.dataset, many.dataset, name, over, total(terms), *interval(terms)))
    return rows


def _alike(*pair: Setup) -> bool:
    """Whether leads on the two may be compared: the same but for the dataset and, by the rule, the epochs."""
    epochs = {setup.epochs for setup in pair}
    by_rule = all(setup.epochs == RULES[setup.dataset].epochs for setup in pair)
    return len({setup._replace(dataset="", epochs=0) for setup in pair}) == 1 and (len(epochs) == 1 or by_rule)


def at_chance(outcome: Outcome) -> bool:
    """Whether it never left the chance level."""
    return max(outcome.accuracy_by_epoch) <= chance_level(outcome.classes, outcome.validation_pictures)


def diverged(outcome: Outcome) -> bool:
    return not all(map(math.isfinite, outcome.loss_by_epoch))


def _everyone(outcomes: Outcomes) -> list[tuple[Setup, str]]:
    return [(setup, name) for setup in setups(outcomes) for name in entrants(outcomes, setup)]
