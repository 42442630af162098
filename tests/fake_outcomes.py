"""Comparisons of given flags, and results of their runs, without training."""

from lab import search
from lab.options import CompareOptions, comparisons
from lab.runs import Outcome


def outcome(*accuracies, test=None, losses=None, seconds=1.0):
    return Outcome(10, 900, 100, 200, losses or (2.0,) * len(accuracies), accuracies, test, seconds)


def only(**flags):
    """The comparison that these flags make."""
    (one,) = comparisons(CompareOptions("unused", **flags))
    return one


def work_through(comparison, accuracy, outcomes=None):
    """Makes all runs, with `accuracy(trial)` as their result; the runs in the order in which they were made."""
    outcomes, made = dict(outcomes or {}), []
    while todo := [trial for trial in search.known(comparison, outcomes) if trial not in outcomes]:
        made.append(todo[0])
        value = accuracy(todo[0])
        outcomes[todo[0]] = outcome(*[value] * todo[0].epochs, test=value if todo[0].part == "final" else None)
    return made, outcomes
