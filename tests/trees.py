"""A small tree of parameters with its gradients, and when two trees are equal."""

import jax
import jax.numpy as jnp
import numpy as np

PARAMS = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}
GRADIENTS = {"w": jnp.linspace(-2, 3, 12).reshape(3, 4), "b": jnp.array([0.5, -0.25, 0.0, 0.1])}
F32 = {"rtol": 2e-6, "atol": 1e-7}
# The same draw compiled for another layout: from jax 0.11 on it may differ in the last digits.
SAME_DRAW = {"rtol": 1e-6, "atol": 1e-8}


def assert_trees_close(ours, expected, **tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), **(tolerance or F32))


def assert_trees_identical(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
