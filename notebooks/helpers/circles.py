"""A small classification task: which of two noisy circles, one inside the other, a point belongs to."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from helpers.minimize import Trajectory, minimize


class Points(NamedTuple):
    """Points of the plane with the circle each belongs to: 0 the outer, 1 the inner."""

    x: np.ndarray  # (n, 2), float32
    label: np.ndarray  # (n,), float32


class Classifier(nn.Module):
    """Two hidden layers of 16, tanh: points (..., 2) -> the logit (...) of the inner circle."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.tanh(nn.Dense(16)(x))
        return nn.Dense(1)(x)[..., 0]


@functools.cache
def points() -> tuple[Points, Points]:
    """400 training and 400 test points, with a radius of 1 or 0.5 and noise of standard deviation 0.1."""
    from sklearn.datasets import make_circles

    x, label = make_circles(800, noise=0.1, factor=0.5, random_state=1)
    x, label = x.astype(np.float32), label.astype(np.float32)
    return Points(x[:400], label[:400]), Points(x[400:], label[400:])


def loss(params: dict) -> jax.Array:
    """The mean cross-entropy over the training points, in nats."""
    train, _ = points()
    return jnp.mean(optax.sigmoid_binary_cross_entropy(_logits(params, train.x), train.label))


def train(tx: optax.GradientTransformation, steps: int, seed: int = 0) -> Trajectory:
    """The parameters after each of `steps` steps on all training points at once."""
    params = Classifier().init(jax.random.key(seed), jnp.zeros(2))["params"]
    return minimize(loss, params, tx, steps=steps)


@jax.jit
def inside(params: dict, x: jax.Array) -> jax.Array:
    """The probability (...) of the inner circle at points (..., 2)."""
    return nn.sigmoid(_logits(params, x))


def accuracy(params: dict) -> float:
    """The part of the test points that are classified rightly."""
    _, test = points()
    return float(np.mean((np.asarray(inside(params, test.x)) > 0.5) == (test.label > 0.5)))


def _logits(params: dict, x: jax.typing.ArrayLike) -> jax.Array:
    logits: Any = Classifier().apply({"params": params}, x)
    return logits
