"""What was fixed before the runs: how long and how wide, which accuracy counts as trained, what counts as chance.

**How wide, how long.** Two CPU cores should get through a dataset in about an hour. So VGG16 has an eighth of its width
(0.53 of 33.6 million parameters), and a run a few epochs. What makes such short runs incomparable is the time at the
chance level, where a network without normalisation may stay for epochs. A pilot said how long that is, by training
losses, with the trainer's learning rates and seed 0:

    python train/main.py --dataset DATASET --width 0.125 --batch-size BATCH --optimizer OPTIMIZER --epochs N

On CIFAR-10, in batches of 64, all four optimizers learn: Adam and RMSProp from the start, Gravity in the first epoch (a
loss of 2.24, then 1.77; chance is 2.30), SGD with momentum in the second (2.30, then 2.02). Batches of 128 need as many
epochs and more time for each; in batches of 32 SGD with momentum did not learn in three epochs, neither at its 0.01 nor
at three times that. On CIFAR-100 (fine), in batches of 64, Gravity leaves the chance level late in the third epoch, and
SGD with momentum did not in three.

The rule: batches of 64, and one and a half times the epochs of the slowest optimizer that leaves the chance level, for
all optimizers alike. That is 3 with ten classes and 5 on CIFAR-100. No run is longer, whatever the curves say.

The digits have eight epochs of VGG11 at an eighth of its width.

**Targets.** Accuracies on the validation part to count epochs to. In the pilot, two epochs of CIFAR-10 ended between
0.23 (RMSProp) and 0.41 (Gravity), hence 0.35; the others are guesses. None was changed after a run.
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
