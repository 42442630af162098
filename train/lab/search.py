"""Which runs a comparison consists of: what is searched, the best of it, what is to do.

Pure functions of the finished runs. A candidate of a search is a number: a learning rate by its half decades from
the trainer's, a point of a space by its place in the sequence. Nothing heavy is imported here.
"""

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from lab import spaces
from lab.options import Comparison
from lab.runs import UNKNOWN, Outcomes, Part, Trial


class Search(NamedTuple):
    """The state of an entrant's search."""

    steps: list[int]  # all that are to be tried, as far as known
    scores: dict[int, float]  # of the finished ones: validation accuracy, mean over the search's seeds
    chosen: int | None  # None while it is not finished


def best(scores: Mapping[int, float]) -> int:
    """The step with the highest accuracy; of equal ones, the nearest to the trainer's, then the lower; or the first."""
    return max(scores, key=lambda step: (scores[step], -abs(step), -step))


def trial(comparison: Comparison, entrant: str, step: int | None, seed: int, part: Part) -> Trial:
    """One run of an entrant; without a step, one at the best, which is not known yet."""
    config = comparison.entrants[entrant]
    rate, point = 0.0, UNKNOWN
    if step is not None and comparison.sampler == "qmc":
        rate, point = spaces.point(config.optimizer, config.learning_rate, config.epochs, step)
    elif step is not None:
        rate, point = float(f"{config.learning_rate * 10 ** (step / 2):.4g}"), ""
    shared: dict[str, Any] = {name: getattr(config, name) for name in ("dataset", "model", "epochs", "width")}
    shared |= {"batch_size": config.batch_size, "limit": config.limit, "settings": comparison.settings}
    return Trial(optimizer=entrant, learning_rate=rate, seed=seed, part=part, point=point, **shared)


def search(comparison: Comparison, entrant: str, outcomes: Outcomes) -> Search:
    """The state of an entrant's search: of rates from the middle outwards, and beyond the edge if the best is there."""
    count = comparison.candidates
    steps, scores = [*range(count)], {}
    if comparison.sampler == "grid":
        steps = sorted((step - count // 2 for step in steps), key=lambda step: (abs(step), step))
    for step in steps:  # it grows
        trials = [trial(comparison, entrant, step, seed, "search") for seed in comparison.search_seeds]
        if all(t in outcomes for t in trials):
            scores[step] = statistics.fmean(outcomes[t].validation_accuracy for t in trials)
        if len(scores) == len(steps) < count + comparison.widen and best(scores) in (min(steps), max(steps)):
            steps.append(min(steps) - 1 if best(scores) == min(steps) else max(steps) + 1)
    return Search(steps, scores, best(scores) if len(scores) == len(steps) else None)


def plan(comparison: Comparison, outcomes: Outcomes) -> list[Trial]:
    """All runs of the comparison, done or not, in the order in which they are run.

    The search goes from the trainer's rates outwards, all entrants side by side; the runs at the chosen rates come
    when every search has finished, a seed at a time. Those that are not known yet stand at the end.
    """
    searches = {entrant: search(comparison, entrant, outcomes) for entrant in comparison.entrants}
    trials = [
        trial(comparison, entrant, found.steps[i], seed, "search")
        for i in range(max(len(found.steps) for found in searches.values()))
        for seed in comparison.search_seeds
        for entrant, found in searches.items()
        if i < len(found.steps)
    ]
    finals = [
        trial(comparison, entrant, found.chosen, seed, "final")
        for seed in comparison.seeds
        for entrant, found in searches.items()
    ]
    return trials + sorted(finals, key=lambda final: final.point == UNKNOWN)
