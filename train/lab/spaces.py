"""What `--sampler qmc` searches: a space for each optimizer, and quasi-random points of it. README.md has the reasons.

The points are Halton's sequence without scrambling: the same on every machine, and the first of a longer search are
those of a shorter one. Nothing heavy is imported here; SciPy's sequence, which is the same, takes a second to import.
"""

import dataclasses

BASES = (2, 3, 5, 7)  # of learning rate, 1 - beta, weight decay, warm-up
RATES = (1 / 30, 30.0)  # times the trainer's
WARMUPS = (0.0, 0.05, 0.2)  # of the epochs


@dataclasses.dataclass(frozen=True)
class Space:
    """What is searched beside the learning rate and the warm-up."""

    beta: str | None  # its name, in the trainer's configuration or in the optax function; None: there is none
    one_minus_beta: tuple[float, float]
    weight_decay: tuple[float, float]


_AVERAGE, _SQUARES = (0.005, 0.5), (0.001, 0.5)
SPACES = {
    "gravity": Space("beta", _AVERAGE, (1e-4, 0.1)),
    "sgd": Space(None, _AVERAGE, (1e-4, 0.1)),
    "momentum": Space("momentum", _AVERAGE, (1e-4, 0.1)),
    "nesterov": Space("momentum", _AVERAGE, (1e-4, 0.1)),
    "rmsprop": Space("decay", _SQUARES, (1e-3, 1.0)),
    "adam": Space("b1", _AVERAGE, (1e-3, 1.0)),
    "nadam": Space("b1", _AVERAGE, (1e-3, 1.0)),
    "amsgrad": Space("b1", _AVERAGE, (1e-3, 1.0)),
}


def point(optimizer: str, learning_rate: float, epochs: int, index: int) -> tuple[float, str]:
    """Point `index`, from 0, of a search around this learning rate: its own, and its other settings as text."""
    space = SPACES[optimizer]
    rate, average, decay, warmup = (radical_inverse(index + 1, base) for base in BASES)
    settings = {"weight_decay": _between(space.weight_decay, decay)}
    settings["warmup_epochs"] = WARMUPS[int(warmup * len(WARMUPS))] * epochs
    if space.beta:
        settings[space.beta] = 1 - _between(space.one_minus_beta, average)
    text = " ".join(f"{name}={value:.6g}" for name, value in sorted(settings.items()))
    return float(f"{learning_rate * _between(RATES, rate):.4g}"), text


def settings_of(text: str) -> dict[str, float]:
    """A point's other settings, by name."""
    return {name: float(value) for name, value in (pair.split("=") for pair in text.split())}


def radical_inverse(index: int, base: int) -> float:
    """The digits of `index` in this base, mirrored at the point: a number of Halton's sequence, in [0, 1)."""
    value, scale = 0.0, 1.0
    while index:
        index, digit = divmod(index, base)
        scale /= base
        value += digit * scale
    return value


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] * (ends[1] / ends[0]) ** share
