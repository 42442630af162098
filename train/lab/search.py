"""Which runs a comparison consists of: what is searched, the best of it, what is to do.

Pure functions of the finished runs. A candidate of a search is a number: a learning rate by its half decades from
the trainer's, a point of a space by its place in the sequence. Nothing heavy is imported here.
"""

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from lab import spaces
from lab.options import Comparison
from lab.runs import Outcomes, Part, Trial


class Search(NamedTuple):
    """The state of an entrant's search."""

    steps: list[int]  # all that are to be tried, as far as known
    scores: dict[int, float]  # of the finished ones: validation accuracy, mean over the search's seeds
    chosen: int | None  # None while it is not finished


def learning_rate(centre: float, step: int) -> float:
    """The rate `step` half decades above `centre`, to four digits, as the file of runs has it."""
    return float(f"{centre * 10 ** (step / 2):.4g}")


def grid(count: int) -> list[int]:
    """The first `count` (odd) steps, from the middle outwards."""
    return sorted(range(-(count // 2), count // 2 + 1), key=lambda step: (abs(step), step))


def best(scores: Mapping[int, float]) -> int:
    """The step with the highest accuracy; of equal ones, the nearest to the trainer's, then the lower; or the first."""
    return max(scores, key=lambda step: (scores[step], -abs(step), -step))


def wider(scores: Mapping[int, float], count: int, widen: int) -> int | None:
    """The next step of a search whose first `count` are done: beyond the edge if the best lies there; None: finished.

    Each widening adds one, and there are at most `widen`.
    """
    top = best(scores)
    if len(scores) - count >= widen or top not in (min(scores), max(scores)):
        return None
    return top - 1 if top == min(scores) else top + 1


def trial(comparison: Comparison, entrant: str, step: int | None, seed: int, part: Part) -> Trial:
    """One run of an entrant; without a step, "the best", which is not known yet."""
    config = comparison.entrants[entrant]
    rate, point = 0.0, "the best"
    if step is not None and comparison.sampler == "qmc":
        rate, point = spaces.point(config.optimizer, config.learning_rate, config.epochs, step)
    elif step is not None:
        rate, point = learning_rate(config.learning_rate, step), ""
    shared: dict[str, Any] = {name: getattr(config, name) for name in ("dataset", "model", "epochs", "width")}
    shared |= {"batch_size": config.batch_size, "limit": config.limit, "settings": comparison.settings}
    return Trial(optimizer=entrant, learning_rate=rate, seed=seed, part=part, point=point, **shared)


def search(comparison: Comparison, entrant: str, outcomes: Outcomes) -> Search:
    """The state of an entrant's search."""
    count = comparison.candidates
    steps, scores = grid(count) if comparison.sampler == "grid" else [*range(count)], {}
    for step in steps:  # it grows
        trials = [trial(comparison, entrant, step, seed, "search") for seed in comparison.search_seeds]
        if all(t in outcomes for t in trials):
            scores[step] = statistics.fmean(outcomes[t].validation_accuracy for t in trials)
        if len(scores) == len(steps) and (further := wider(scores, count, comparison.widen)) is not None:
            steps.append(further)
    return Search(steps, scores, best(scores) if len(scores) == len(steps) else None)


def known(comparison: Comparison, outcomes: Outcomes) -> list[Trial]:
    """All runs of the comparison, done or not, as far as they are known; in the order in which they are made.

    The search goes from the trainer's rates outwards, all entrants side by side; the runs at the chosen rates come
    when every search has finished, a seed at a time.
    """
    searches = {entrant: search(comparison, entrant, outcomes) for entrant in comparison.entrants}
    trials = [
        trial(comparison, entrant, found.steps[i], seed, "search")
        for i in range(max(len(found.steps) for found in searches.values()))
        for seed in comparison.search_seeds
        for entrant, found in searches.items()
        if i < len(found.steps)
    ]
    chosen = {name: found.chosen for name, found in searches.items() if found.chosen is not None}
    return trials + _finals(comparison, chosen)


def undecided(comparison: Comparison, outcomes: Outcomes) -> list[Trial]:
    """The final runs that `known` lacks, at the best rate or point, which is not known yet."""
    unfinished = [name for name in comparison.entrants if search(comparison, name, outcomes).chosen is None]
    return _finals(comparison, dict.fromkeys(unfinished))


def _finals(comparison: Comparison, chosen: Mapping[str, int | None]) -> list[Trial]:
    return [trial(comparison, name, step, seed, "final") for seed in comparison.seeds for name, step in chosen.items()]
