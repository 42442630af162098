"""How long and how wide the runs of a comparison are, which accuracy counts as trained, and what counts as chance.

All was fixed before the runs; README.md has the pilot that it comes from.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Rule:
    """What holds for a dataset unless a flag says otherwise."""

    epochs: int
    width: float
    batch_size: int
    target: float  # validation accuracy
    search_seeds: int
    seeds: int


RULES: dict[str, Rule] = {
    "digits": Rule(epochs=8, width=0.125, batch_size=32, target=0.8, search_seeds=3, seeds=5),
    "mnist": Rule(epochs=3, width=0.125, batch_size=64, target=0.9, search_seeds=1, seeds=3),
    "fashion_mnist": Rule(epochs=3, width=0.125, batch_size=64, target=0.75, search_seeds=1, seeds=3),
    "cifar10": Rule(epochs=3, width=0.125, batch_size=64, target=0.35, search_seeds=1, seeds=3),
    "cifar100_coarse": Rule(epochs=5, width=0.125, batch_size=64, target=0.15, search_seeds=1, seeds=3),
    "cifar100_fine": Rule(epochs=5, width=0.125, batch_size=64, target=0.05, search_seeds=1, seeds=3),
}
# A learning rate is on the plateau of an optimizer if it reaches this share of its best validation accuracy.
PLATEAU = 0.9
_STANDARD_ERRORS = 3


def chance_level(classes: int, pictures: int) -> float:
    """The accuracy that a run must exceed to have left the chance level.

    Three standard errors above the share of a class, where `pictures` are scored.
    """
    share = 1 / classes
    return share + _STANDARD_ERRORS * math.sqrt(share * (1 - share) / pictures)
