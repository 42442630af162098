"""The optimizers by name, in the settings of the published runs (Keras' names and values of July 2021)."""

from typing import Any

import jax
import optax
from config import Config

from gravity_optax import gravity

_TABLE: dict[str, Any] = {
    "sgd": optax.sgd,
    "momentum": lambda rate, momentum=0.9: optax.sgd(rate, momentum=momentum),
    "adagrad": optax.adagrad,
    "adadelta": optax.adadelta,
    "rmsprop": optax.rmsprop,
    "nesterov": lambda rate, momentum=0.9: optax.sgd(rate, momentum=momentum, nesterov=True),
    "adam": optax.adam,
    "adamax": optax.adamax,
    "nadam": optax.nadam,
    "amsgrad": optax.amsgrad,
    "gravity": gravity,
}


def make(name: str, learning_rate: optax.ScalarOrSchedule, **hyperparameters: Any) -> optax.GradientTransformation:
    """The optimizer of that name; `hyperparameters` are those of its optax function (Gravity's need `key`)."""
    if name not in _TABLE:
        raise ValueError(f"there is no optimizer {name!r}; choose one of {', '.join(_TABLE)}.")
    return _TABLE[name](learning_rate, **hyperparameters)


def build(config: Config, key: jax.Array) -> optax.GradientTransformation:
    """The optimizer of a resolved configuration; `key` draws Gravity's initial velocity."""
    learning_rate = config.learning_rate
    match config.optimizer:
        case "gravity":
            return gravity(learning_rate, config.alpha, config.beta, key=key, first_step=config.first_step)
        case "adam":  # w -= l m_hat / (sqrt(v_hat) + epsilon)
            return optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-7)
        case "rmsprop":  # w -= l g / (sqrt(v) + epsilon): no momentum, not centred, epsilon outside the root
            return optax.rmsprop(learning_rate, decay=0.9, eps=1e-7, eps_in_sqrt=False)
    raise ValueError(f"no optimizer {config.optimizer!r}")
