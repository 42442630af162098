"""Gravity in float64 NumPy, written from the paper's equations, and the gradients of a real training run to feed it."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gravity_optax import gravity

STEPS = 320
LEARNING_RATE = 0.1


def inverse(x):
    """1 / x, inf for 0."""
    return 1 / x if x else np.inf


def velocity_after(gradient, velocity, t, beta=0.9, m=None):
    """Eqs. 20-22 and 26 on one leaf; `m` (None: Eq. 20) may be 0 (zeta = 0) or inf (zeta = G)."""
    gradient, velocity = np.asarray(gradient, np.float64), np.asarray(velocity, np.float64)
    if m is None:
        m = inverse(np.max(np.abs(gradient), initial=0))
    zeta = gradient / (1 + (gradient / m) ** 2) if m else np.zeros_like(gradient)
    beta_hat = (beta * t + 1) / (t + 2)
    return beta_hat * velocity + (1 - beta_hat) * zeta


def trajectory(gradients, velocity, params, learning_rate, first_step, beta=0.9):
    """Every velocity and every parameter of one leaf, given the gradients of all steps: Eqs. 20-26."""
    velocities, weights = [], []
    weight = np.asarray(params, np.float64)
    for count, gradient in enumerate(gradients):
        velocity = velocity_after(gradient, velocity, first_step + count, beta)
        weight = weight - learning_rate * velocity
        velocities.append(velocity)
        weights.append(weight)
    return np.stack(velocities), np.stack(weights)


# The authors' trials of Max-Step Grad, by name: as an argument of `gravity`, and its float64 value of one matrix.
TRIALS = {
    "1/max|G|": (lambda g: 1 / jnp.max(jnp.abs(g)), lambda g: inverse(np.max(np.abs(g)))),
    "1/(max G - min G)": (lambda g: 1 / (jnp.max(g) - jnp.min(g)), lambda g: inverse(np.max(g) - np.min(g))),
    "1/std G": (lambda g: 1 / jnp.std(g), lambda g: inverse(np.std(g))),
    "max|G|": (lambda g: jnp.max(jnp.abs(g)), lambda g: np.max(np.abs(g))),
    "max G": (lambda g: jnp.max(g), lambda g: np.max(g)),
    "0.3": (lambda g: 0.3, lambda g: 0.3),
}


class Run(NamedTuple):
    """A training run's results: trees whose leaves have the step as first axis, except for the starting values."""

    params_0: dict
    velocity_0: dict
    gradients: dict
    velocities: dict
    params: dict
    losses: np.ndarray


def digits():
    """scikit-learn's digits: images in [0, 16] (1797, 64) and labels; skips the test where it is not installed."""
    import pytest  # here, because tests/speed/accelerator.py does without

    return pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)


@functools.cache
def recorded_run(first_step):
    """Trains a small network on scikit-learn's digits with `gravity`, one jitted loop, and keeps what each step saw."""
    images, labels = digits()
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    widths = (64, 32, 24, 10)
    rng = np.random.default_rng(7)
    params_0 = {
        f"layer{i}": {
            "w": jnp.asarray(rng.normal(size=(n, m)) * (2 / n) ** 0.5, jnp.float32),
            "b": jnp.asarray(np.zeros(m), jnp.float32),
        }
        for i, (n, m) in enumerate(itertools.pairwise(widths))
    }

    def loss_of(params, batch):
        hidden = images[batch]
        for i in range(3):
            layer = params[f"layer{i}"]
            hidden = hidden @ layer["w"] + layer["b"][None]
            hidden = hidden if i == 2 else jax.nn.relu(hidden)
        return optax.softmax_cross_entropy_with_integer_labels(hidden, labels[batch]).mean()

    tx = gravity(LEARNING_RATE, key=3, first_step=first_step)

    def step(carry, batch):
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (gradients, state[0].velocity, params, loss)

    batches = jnp.asarray(rng.integers(0, len(labels), size=(STEPS, 64)), jnp.int32)
    state = tx.init(params_0)
    _, recorded = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))((params_0, state))
    return Run(*jax.tree.map(np.asarray, (params_0, state[0].velocity, *recorded)))


def worst_error(ours, reference):
    """max|difference| / max|reference|, the worst over the steps (first axis)."""
    difference, reference = np.abs(ours - reference), np.abs(reference)
    steps = len(reference)
    return np.max(difference.reshape(steps, -1).max(1) / reference.reshape(steps, -1).max(1))
