"""`damping`: max|G| and the share of entries that are damped below half of their value."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gravity_optax import damping


@pytest.mark.parametrize("axes", [None, 0, 1, 2])
def test_each_matrix_against_numpy(axes):
    rng = np.random.default_rng(0)
    tree = {"w": np.float32(rng.normal(0, 3, (4, 5, 6))), "b": np.float32(rng.normal(0, 0.3, (4, 5, 1, 7)))}
    for call in (damping, jax.jit(damping, static_argnames="stacked_axes")):
        found = call(tree, stacked_axes=axes)
        for name, leaf in tree.items():
            sizes, within = np.abs(np.float64(leaf)), tuple(range(axes or 0, leaf.ndim))
            max_abs = sizes.max(within, keepdims=True)
            np.testing.assert_array_equal(found.max_abs[name], max_abs.squeeze(within))
            np.testing.assert_allclose(found.share[name], (sizes > 1 / max_abs).mean(within), rtol=1e-6)
    assert axes == 2 or (np.min(found.share["w"]) > 0.5 and np.max(found.share["b"]) == 0)


@pytest.mark.parametrize("axes", [None, 1])
def test_a_max_step_grad_of_ones_own(axes):
    gradient = jnp.array([[0.0, 1.0, -3.0, 4.0]] * 2)
    for m, expected in ((2.0, 0.5), (0.0, 0.75), (np.inf, 0.0), (4.0, 0.0)):
        max_abs, share = damping(gradient, stacked_axes=axes, max_step_grad=lambda g, m=m: m)
        np.testing.assert_array_equal(share, np.full(gradient.shape[: axes or 0], expected))
        np.testing.assert_array_equal(max_abs, np.full(gradient.shape[: axes or 0], 4.0))


def test_nan_stays_in_its_leaf_and_empty_leaves_are_0():
    tree = [jnp.array([1.0, jnp.nan]), jnp.zeros((0, 3)), jnp.array(2.0), jnp.array([1.0, 0.5])]
    max_abs, share = damping(tree)
    np.testing.assert_array_equal(max_abs, [np.nan, 0, 2, 1])
    np.testing.assert_array_equal(share, [np.nan, 0, 1, 0])  # an entry at m keeps half and is not counted
    assert damping({}) == ({}, {})


def test_a_nan_anywhere_in_a_large_leaf_makes_its_numbers_nan():
    whole, stacked = jax.jit(damping), jax.jit(functools.partial(damping, stacked_axes=1))
    for place in (0, 1, 300_007, 2**19 - 1):
        leaf = np.full((2, 2**19), 0.5, np.float32)
        leaf[0, place] = np.nan
        for number, clean in zip(stacked(leaf), (0.5, 0), strict=True):
            np.testing.assert_array_equal(number, [np.nan, clean])
        assert np.isnan(whole(leaf)).all()
