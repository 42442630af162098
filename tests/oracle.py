"""Gravity in float64 NumPy, written from the paper's equations, and the gradients of a real training run to feed it."""

import itertools

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


def trajectory(gradients, velocity, weight, learning_rate, first_step, beta=0.9):
    """Every velocity and every parameter of one leaf, given the gradients of all steps: Eqs. 20-26."""
    velocities, weights = [], []
    for t, gradient in enumerate(gradients, first_step):
        velocity = velocity_after(gradient, velocity, t, beta)
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
    "max G": (jnp.max, np.max),
    "0.3": (lambda g: 0.3, lambda g: 0.3),
}


def digits():
    """scikit-learn's digits, images in [0, 16] (1797, 64) and labels; skips the test where it is not installed."""
    import pytest  # here, because tests/speed/accelerator.py does without

    return pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)


def recorded_run():
    """A small network trained on the digits with `gravity` (first_step 1), in one jitted loop.

    Five trees: the first parameters and V_0; and at every step (the first axis) the gradients, V and the parameters.
    """
    images, labels = digits()
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels, jnp.int32)
    rng = np.random.default_rng(7)
    params_0 = [
        (jnp.asarray(rng.normal(size=(n, m)) * (2 / n) ** 0.5, jnp.float32), jnp.zeros(m))
        for n, m in itertools.pairwise((64, 32, 24, 10))
    ]

    def loss_of(params, batch):
        hidden = images[batch]
        for i, (w, b) in enumerate(params):
            hidden = (jax.nn.relu(hidden) if i else hidden) @ w + b[None]
        return optax.softmax_cross_entropy_with_integer_labels(hidden, labels[batch]).mean()

    tx = gravity(LEARNING_RATE, key=3)

    def step(carry, batch):
        params, state = carry
        gradients = jax.grad(loss_of)(params, batch)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (gradients, state[0].velocity, params)

    batches = jnp.asarray(rng.integers(0, len(labels), size=(STEPS, 64)), jnp.int32)
    state = tx.init(params_0)
    _, recorded = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))((params_0, state))
    return jax.tree.map(np.asarray, (params_0, state[0].velocity, *recorded))


def worst_error(ours, reference):
    """max|difference| / max|reference|, the worst over the steps (first axis)."""
    largest = lambda x: np.abs(x).reshape(len(x), -1).max(1)
    return np.max(largest(ours - reference) / largest(reference))
