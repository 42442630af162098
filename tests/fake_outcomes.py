"""Comparisons of given flags, and results of their runs, without training."""

from lab import search
from lab.options import CompareOptions, comparisons
from lab.runs import UNKNOWN, Outcome, Trial


def outcome(*accuracies, test=None, losses=None, seconds=1.0, classes=10, pictures=(900, 100, 200)):
    return Outcome(classes, *pictures, losses or (2.0,) * len(accuracies), accuracies, test, seconds)


def only(**flags):
    """The comparison that these flags make."""
    (one,) = comparisons(CompareOptions("unused", **flags))
    return one


def known(comparison, outcomes=()):
    """Its runs, but for those at a rate or point that is not known yet."""
    return [trial for trial in search.plan(comparison, dict(outcomes)) if trial.point != UNKNOWN]


def work_through(comparison, accuracy, outcomes=()):
    """Makes all runs, with `accuracy(trial)` as their result; the runs in the order in which they were made."""
    outcomes, made = dict(outcomes), []
    while todo := [trial for trial in known(comparison, outcomes) if trial not in outcomes]:
        made.append(todo[0])
        value = accuracy(todo[0])
        outcomes[todo[0]] = outcome(*[value] * todo[0].epochs, test=value if todo[0].part == "final" else None)
    return made, outcomes


def entrant(optimizer, scores, tested=(), outcome=outcome, **fields):
    """Runs of an optimizer: two of the search at each rate, 0.02 around its score, and final runs at the best rate.

    `scores` are by learning rate; the validation accuracies of a final run are 0.2, 0.4 and its test accuracy.
    """
    fields = {"dataset": "cifar10", "model": "vgg16", "width": 0.125, "batch_size": 64, "settings": ""} | fields
    trial = Trial(optimizer=optimizer, learning_rate=0, seed=0, part="search", epochs=3, limit=None, **fields)
    runs = {
        trial._replace(learning_rate=rate, seed=seed): outcome(0.1, 0.2, score + shift)
        for rate, score in scores.items()
        for seed, shift in enumerate((-0.02, 0.02))
    }
    final = trial._replace(part="final", learning_rate=max(scores, key=scores.get))
    return runs | {
        final._replace(seed=seed): outcome(0.2, 0.4, value, test=value) for seed, value in enumerate(tested, 100)
    }
