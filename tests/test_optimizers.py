"""Adam and RMSProp against their published formulae, in float64, with the settings of the published runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optimizers
import pytest
from config import Config, resolve


def adam(w, gradients, rate, b1=0.9, b2=0.999, epsilon=1e-7):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
    return w


def rmsprop(w, gradients, rate, rho=0.9, epsilon=1e-7):
    v = 0.0
    for g in gradients:
        v = rho * v + (1 - rho) * g**2
        w = w - rate * g / (np.sqrt(v) + epsilon)
    return w


@pytest.mark.parametrize(("name", "formula"), [("adam", adam), ("rmsprop", rmsprop)])
def test_the_update_is_the_published_formula(name, formula):
    # Gradients around epsilon, so that its size and its place (outside the root) are seen.
    gradients = np.random.default_rng(0).normal(size=(20, 50)) * np.logspace(-9, 0, 50)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        tx = optimizers.build(resolve(Config(optimizer=name, learning_rate=0.01)), jax.random.key(0))
        w = jnp.ones(50)
        state = tx.init(w)
        for g in gradients:
            updates, state = tx.update(jnp.asarray(g), state, w)
            w = w + updates
        np.testing.assert_allclose(w - 1, formula(1.0, gradients, 0.01) - 1, rtol=1e-9)


def test_gravity_takes_its_four_settings_from_the_flags():
    config = resolve(Config(learning_rate=0.5, alpha=0.0, beta=0.0, first_step=0))
    tx = optimizers.build(config, jax.random.key(0))
    w = jnp.zeros(1)
    updates, _ = tx.update(jnp.array([1.0]), tx.init(w))
    # From rest, m = 1: zeta = 1/2; t = 0: V = zeta / 2; the step is -l V.
    np.testing.assert_allclose(updates, [-0.5 * 0.25])
