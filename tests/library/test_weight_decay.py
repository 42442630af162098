"""Decoupled weight decay, as optax.adamw composes it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracle
from gravity_optax import gravity, scale_by_gravity
from trees import GRADIENTS, assert_trees_close, assert_trees_identical

PARAMS = {"w": jnp.linspace(-1, 2, 12).reshape(3, 4), "b": jnp.linspace(0.5, 1, 4)}
MASK = {"w": True, "b": False}
MASKS = pytest.mark.parametrize("mask", [None, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)])


def after(tx, steps=4):
    """Parameters and state after `steps` steps of the same gradients."""
    update = jax.jit(tx.update)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@MASKS
def test_it_is_the_chain_written_out(mask):
    written_out = optax.chain(
        scale_by_gravity(0.01 / 0.2, key=0),
        optax.add_decayed_weights(0.3, mask),
        optax.scale_by_learning_rate(0.2),
    )
    ours = after(gravity(0.2, key=0, weight_decay=0.3, weight_decay_mask=mask))
    assert_trees_identical(ours, after(written_out))


def test_none_adds_nothing_to_the_chain_and_0_a_part():
    plain = gravity(0.1, key=0)
    plain.update(GRADIENTS, plain.init(PARAMS))  # without the parameters
    for decay, length in ((None, 2), (0.0, 3), (0.1, 3)):
        assert len(gravity(0.1, key=0, weight_decay=decay).init(PARAMS)) == length


@MASKS
def test_a_schedule_agrees_with_the_oracle(mask):
    tx = gravity(0.2, key=0, weight_decay=optax.linear_schedule(0.4, 0.0, 4), weight_decay_mask=mask)
    params, _ = after(tx)
    for name, first in {"w": 0.4, "b": 0.4 if mask is None else 0.0}.items():
        weight = np.asarray(PARAMS[name], np.float64)
        velocity = tx.init(PARAMS)[0].velocity[name]
        for t in range(1, 5):
            velocity = oracle.velocity_after(GRADIENTS[name], velocity, t)
            weight = weight - 0.2 * (velocity + first * (1 - (t - 1) / 4) * weight)
        np.testing.assert_allclose(params[name], weight, rtol=2e-6, atol=1e-6)


def test_it_can_be_injected_and_changed():
    tx = optax.inject_hyperparams(gravity)(0.2, key=0, weight_decay=0.3, weight_decay_mask=MASK)
    assert_trees_close(after(tx)[0], after(gravity(0.2, key=0, weight_decay=0.3, weight_decay_mask=MASK))[0])
    state, plain = tx.init(PARAMS), gravity(0.2, key=0)
    state.hyperparams["weight_decay"] = jnp.float32(0.0)
    expected, _ = plain.update(GRADIENTS, plain.init(PARAMS))
    assert_trees_close(jax.jit(tx.update)(GRADIENTS, state, PARAMS)[0], expected)
