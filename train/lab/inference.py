"""What few seeds allow to say: Welch's intervals and tests, equivalence, Holm's correction, permutations.

Standard deviations have n - 1 in the denominator. An interval is Welch's, at 95%: by Student's t with Satterthwaite's
degrees of freedom, each optimizer's runs with a variance of their own. There is no bootstrap: over three seeds it would
cover the truth in 77 to 81% of cases.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
MARGIN = 0.005  # test accuracies that are no further apart are as good as equal
PERMUTATIONS = 99_999

Terms = Sequence[tuple[int, np.ndarray]]  # a sum of means, each with a sign: [(1, values), (-1, values), ...]


def total(terms: Terms) -> float:
    """The sum, to the six decimals that the file has."""
    return round(sum(sign * float(np.mean(values)) for sign, values in terms), 6)


def interval(terms: Terms) -> tuple[float, float]:
    """Welch's, of such a sum; NaN if a mean is of a single value."""
    if any(len(values) < 2 for _, values in terms):
        return math.nan, math.nan
    middle, parts = total(terms), [(np.var(values, ddof=1) / len(values), len(values) - 1) for _, values in terms]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / count for part, count in parts) if variance else 1
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return round(middle - half, 6), round(middle + half, 6)


def welch(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Difference of the means, its Welch interval, and p of no difference."""
    test = _t_test(ours, theirs)
    low, high = test.confidence_interval(CONFIDENCE)
    return {"difference": ours.mean() - theirs.mean(), "from": low, "to": high, "p": test.pvalue}


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
