"""Velocity in fewer bits: what is kept, and that only what is kept is rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compat
import oracle
from gravity_optax import gravity, scale_by_gravity
from trees import F32

PARAMS = {"w": jnp.zeros((30, 40)), "b": jnp.zeros(40)}
GRADIENTS = {"w": jnp.linspace(-2, 3, 1200).reshape(30, 40), "b": jnp.linspace(-0.5, 0.25, 40)}


def dtypes(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (gravity(0.1, key=0), 4),
        (gravity(0.1, key=0, velocity_dtype=jnp.bfloat16), 2),
        (optax.adam(0.1), 8),
    ],
    ids=["float32", "bfloat16", "adam"],
)
def test_state_bytes_per_parameter(tx, expected):
    state = tx.init(PARAMS)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim > 0)
    assert size / sum(p.size for p in jax.tree.leaves(PARAMS)) == expected
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim == 0) <= 4  # the count


def test_the_kept_velocity_is_rounded_and_the_update_is_not():
    tx = scale_by_gravity(0.3, key=0, velocity_dtype=jnp.bfloat16)
    state = tx.init(PARAMS)
    for count in range(3):
        expected = jax.tree.map(lambda g, v, c=count: oracle.velocity_after(g, v, 1 + c), GRADIENTS, state.velocity)
        updates, state = tx.update(GRADIENTS, state)
        for name in PARAMS:
            np.testing.assert_allclose(updates[name], expected[name], **F32)
            np.testing.assert_array_equal(
                np.float32(state.velocity[name]), np.float32(updates[name].astype(jnp.bfloat16))
            )
        assert dtypes(updates) == {"float32"} and dtypes(state.velocity) == {"bfloat16"}


def test_the_first_velocity_is_the_one_of_float32_rounded():
    rounded = gravity(0.1, key=0, velocity_dtype=jnp.bfloat16).init(PARAMS)[0].velocity
    full = gravity(0.1, key=0).init(PARAMS)[0].velocity
    for name in PARAMS:
        np.testing.assert_array_equal(np.float32(rounded[name]), np.float32(full[name].astype(jnp.bfloat16)))


def test_float32_velocity_of_bfloat16_params_keeps_what_their_dtype_would_lose():
    params = jnp.zeros(8, jnp.bfloat16)
    gradient = jnp.full(8, 1e-3, jnp.bfloat16)
    tx = scale_by_gravity(0.0, key=0, velocity_dtype=jnp.float32)
    state = tx.init(params)
    updates, state = tx.update(gradient, state._replace(velocity=jnp.ones(8)))
    assert updates.dtype == state.velocity.dtype == jnp.float32
    np.testing.assert_allclose(state.velocity, oracle.velocity_after(gradient, np.ones(8), t=1), rtol=5e-7)


def test_float64_becomes_float32_unless_x64_is_on():
    build = lambda: scale_by_gravity(key=0, velocity_dtype=jnp.float64)
    assert build().init(jnp.zeros(2)).velocity.dtype == jnp.float32
    with compat.enable_x64():
        assert build().init(jnp.zeros(2, jnp.float32)).velocity.dtype == jnp.float64
