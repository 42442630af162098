"""`damping`: max|G| and the share of entries that are damped below half of their value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gravity_optax import damping

RNG = np.random.default_rng(0)
TREE = {
    "w": jnp.asarray(RNG.normal(0, 3, (4, 5, 6)), jnp.float32),
    "b": jnp.asarray(RNG.normal(0, 0.3, 7), jnp.float32),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_leaf_at_a_time_against_numpy(compiled):
    max_abs, share = (jax.jit(damping) if compiled else damping)(TREE)
    for name, leaf in TREE.items():
        sizes = np.abs(np.float64(leaf))
        assert float(max_abs[name]) == sizes.max()
        np.testing.assert_allclose(share[name], np.mean(sizes > 1 / sizes.max()), rtol=1e-6)
    assert 0.5 < share["w"] < 1 and share["b"] == 0


@pytest.mark.parametrize("axes", [1, 2])
def test_each_stacked_matrix_has_its_own(axes):
    stack = TREE["w"]
    max_abs, share = damping([stack], stacked_axes=axes)
    assert max_abs[0].shape == share[0].shape == stack.shape[:axes]
    for i in np.ndindex(stack.shape[:axes]):
        alone = damping([stack[i]])
        assert max_abs[0][i] == alone.max_abs[0]
        np.testing.assert_allclose(share[0][i], alone.share[0], rtol=1e-6)


@pytest.mark.parametrize("axes", [None, 1])
@pytest.mark.parametrize(("m", "expected"), [(2.0, 0.5), (0.0, 0.75), (np.inf, 0.0), (4.0, 0.0)])
def test_a_max_step_grad_of_ones_own(m, expected, axes):
    gradient = jnp.array([[0.0, 1.0, -3.0, 4.0]] * 2)
    max_abs, share = damping(gradient, stacked_axes=axes, max_step_grad=lambda g: m)
    np.testing.assert_array_equal(share, np.full(gradient.shape[: axes or 0], expected))
    np.testing.assert_array_equal(max_abs, np.full(gradient.shape[: axes or 0], 4.0))


def test_nan_stays_in_its_leaf_and_empty_leaves_are_0():
    max_abs, share = damping([jnp.array([1.0, jnp.nan]), jnp.zeros((0, 3)), jnp.array(2.0)])
    assert np.isnan(max_abs[0]) and np.isnan(share[0])
    assert damping(jnp.array([1.0, 0.5])) == (1.0, 0.0)  # an entry at m keeps half and is not counted
    assert [float(x) for x in (max_abs[1], share[1], max_abs[2], share[2])] == [0, 0, 2, 1]


@pytest.mark.parametrize("place", [0, 1, 300_007, 2**19 - 1])
def test_a_nan_anywhere_in_a_large_leaf_makes_its_numbers_nan(place):
    leaf = jnp.full(2**19, 0.5).at[place].set(jnp.nan).reshape(512, 1024)
    max_abs, share = jax.jit(damping)({"w": leaf, "b": jnp.full(2**17, 0.25)})
    assert np.isnan(max_abs["w"]) and np.isnan(share["w"])
    assert (max_abs["b"], share["b"]) == (0.25, 0)
    max_abs, _ = damping(jnp.stack([leaf, jnp.ones_like(leaf)]), stacked_axes=1)
    np.testing.assert_array_equal(max_abs, [np.nan, 1])
