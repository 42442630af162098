"""The optimizers by name, in the settings of the published runs (Keras' names and values of July 2021)."""

import jax
import optax
from config import Config

from gravity_optax import gravity


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
