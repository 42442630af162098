"""What the authors tried on the way to Gravity: other rules for Max-Step Grad and other initial velocities.

The names are those of their notes (published_tuning.csv). The initial velocities are Keras' initialisers, with Keras'
default sizes. `tuning_study.py` says which of them make up which of the authors' runs. Two rules for m are not theirs:
without damping, and one that does not depend on the scale of the loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from trainer.config import ResolvedConfig

_EPSILON = 1e-7  # the authors'

# The rule for m -> `gravity`'s argument max_step_grad; the first is Eq. 20. Of m only the size counts.
MAX_STEP_GRAD: dict[str, Callable[[jax.Array], Any] | None] = {
    "inverse_max_abs": None,
    "inverse_range": lambda g: 1 / (jnp.max(g) - jnp.min(g) + _EPSILON),
    "inverse_std": lambda g: 1 / (jnp.std(g) + _EPSILON),
    "max": jnp.max,
    "max_abs": lambda g: jnp.max(jnp.abs(g)),
    "none": lambda g: jnp.inf,  # zeta = G
    "rms": lambda g: jnp.sqrt(jnp.mean(jnp.square(g))),
}
# Arguments of jax.nn.initializers.variance_scaling: scale, mode, distribution.
_SCALED: dict[str, tuple[Any, ...]] = {
    "glorot_normal": (1.0, "fan_avg", "truncated_normal"),
    "glorot_uniform": (1.0, "fan_avg", "uniform"),
    "he_normal": (2.0, "fan_in", "truncated_normal"),
    "he_uniform": (2.0, "fan_in", "uniform"),
    "lecun_normal": (1.0, "fan_in", "truncated_normal"),
    "lecun_uniform": (1.0, "fan_in", "uniform"),
}
_FIXED = {
    "random_normal": jax.nn.initializers.normal(0.05),
    "random_uniform": lambda *args: jax.nn.initializers.uniform(0.1)(*args) - 0.05,
    "truncated_normal": jax.nn.initializers.truncated_normal(0.05),
}
INITIALIZERS = (*_SCALED, *_FIXED)


def max_step_grad(config: ResolvedConfig) -> Callable[[jax.Array], Any] | None:
    """The rule for m of a resolved configuration; that of Eq. 20 for an optimizer that is not Gravity."""
    rule, factor = MAX_STEP_GRAD[config.max_step_grad or "inverse_max_abs"], config.max_step_grad_factor
    return rule if rule is None or factor is None else lambda g: factor * rule(g)


def start_from(tx: optax.GradientTransformation, name: str, key: jax.Array) -> optax.GradientTransformation:
    """Gravity `tx` with its first velocity drawn from the initialiser `name`, one of INITIALIZERS."""

    def init(params: optax.Params) -> optax.OptState:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        velocity = [_draw(name, k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        return optax.tree.set(tx.init(params), velocity=jax.tree.unflatten(treedef, velocity))

    return optax.GradientTransformation(init, tx.update)


def _draw(name: str, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    if name in _FIXED:
        return _FIXED[name](key, shape, dtype)
    scale, mode, distribution = _SCALED[name]
    if len(shape) == 1:  # a bias of n: for Keras both its fans are n
        return jax.nn.initializers.variance_scaling(scale, "fan_in", distribution)(key, (*shape, 1), dtype)[:, 0]
    return jax.nn.initializers.variance_scaling(scale, mode, distribution)(key, shape, dtype)
