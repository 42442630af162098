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


def after(tx, steps=4):
    """Parameters and state after `steps` steps of the same gradients."""
    update = jax.jit(tx.update)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("mask", [None, MASK, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)])
def test_it_is_the_chain_written_out(mask):
    written_out = optax.chain(
        scale_by_gravity(0.01 / 0.2, key=0),
        optax.add_decayed_weights(0.3, mask),
        optax.scale_by_learning_rate(0.2),
    )
    ours = after(gravity(0.2, key=0, weight_decay=0.3, weight_decay_mask=mask))
    assert_trees_identical(ours, after(written_out))


def test_none_adds_nothing_to_the_chain():
    plain, none = gravity(0.1, key=0), gravity(0.1, key=0, weight_decay=None)
    assert jax.tree.structure(none.init(PARAMS)) == jax.tree.structure(plain.init(PARAMS))
    assert len(none.init(PARAMS)) == 2 and len(gravity(0.1, key=0, weight_decay=0.1).init(PARAMS)) == 3
    none.update(GRADIENTS, none.init(PARAMS))  # without the parameters


@pytest.mark.parametrize("mask", [None, MASK, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)])
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
    state = tx.init(PARAMS)
    state.hyperparams["weight_decay"] = jnp.float32(0.0)
    assert_trees_close(
        tx.update(GRADIENTS, state, PARAMS)[0],
        gravity(0.2, key=0).update(GRADIENTS, gravity(0.2, key=0).init(PARAMS))[0],
    )
