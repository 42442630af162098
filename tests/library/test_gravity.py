"""The arithmetic of Gravity: against the float64 oracle, for every dtype and kind of leaf."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import compat
import oracle
from gravity_optax import ScaleByGravityState, gravity, gravity_term, scale_by_gravity
from trees import GRADIENTS, PARAMS, assert_trees_close, assert_trees_identical


def zeta(gradient):
    """What a leaf's gradient becomes, read off a step from rest at t = 0, where V = zeta / 2."""
    tx = scale_by_gravity(0.0, key=0, first_step=0)
    velocity, _ = tx.update(gradient, tx.init(gradient))
    return 2 * np.asarray(velocity, np.float64)


# ---- against the oracle over a training run


def test_training_run_agrees_with_the_oracle_at_every_step_and_not_with_one_a_step_off():
    run = oracle.recorded_run(first_step=1)
    trees = [*map(jax.tree.leaves, (run.gradients, run.velocity_0, run.params_0, run.velocities, run.params))]

    def errors(first_step):
        """The worst relative error of the velocity and of the parameters over leaves and steps."""
        found = []
        for gradients, velocity_0, params_0, velocities, params in zip(*trees, strict=True):
            reference = oracle.trajectory(gradients, velocity_0, params_0, oracle.LEARNING_RATE, first_step)
            found.append([oracle.worst_error(velocities, reference[0]), oracle.worst_error(params, reference[1])])
        return np.max(found, axis=0)

    assert max(errors(1)) <= 2e-6
    assert min(errors(0)) > 1e-3 and min(errors(2)) > 1e-3


@pytest.mark.parametrize(("beta", "first"), [(0.0, 1), (0.5, 5), (0.9, 0), (0.9, 1), (1.0, 1)])
def test_three_steps_agree_with_the_oracle_for_other_betas_and_first_steps(beta, first):
    tx = scale_by_gravity(0.3, beta, key=1, first_step=first)
    state = tx.init(PARAMS)
    expected = state.velocity
    for count in range(3):
        gradients = jax.tree.map(lambda g, c=count: np.asarray(g) * (c + 1), GRADIENTS)
        expected = jax.tree.map(
            functools.partial(oracle.velocity_after, t=first + count, beta=beta), gradients, expected
        )
        updates, state = tx.update(gradients, state)
        assert_trees_close(state.velocity, expected)
        assert_trees_close(updates, expected)
        assert state.count == count + 1


def test_one_minus_beta_hat_does_not_cancel_at_large_t():
    t, state = 10**6, ScaleByGravityState(jnp.int32(10**6), jnp.zeros(2))
    for beta in (1.0, 0.999999, 0.9):
        tx = scale_by_gravity(0.0, beta, key=0, first_step=0)
        updates, _ = tx.update(jnp.array([1.0, -1.0]), state)  # m = 1, so that zeta is 1/2 and -1/2
        take = ((1 - beta) * t + 1) / (t + 2)
        np.testing.assert_allclose(updates, [take / 2, -take / 2], rtol=5e-7)


def test_the_count_saturates_instead_of_wrapping():
    largest = jnp.array(2**31 - 1, jnp.int32)
    tx = scale_by_gravity(0.0, 0.9, key=0)
    updates, state = tx.update(jnp.array([1.0]), ScaleByGravityState(largest, jnp.ones(1)))
    assert state.count == largest
    np.testing.assert_allclose(updates, [0.9 + 0.1 * 0.5], rtol=1e-6)


# ---- what the gradient term does to gradients


def test_gravity_term_has_the_true_value_at_every_magnitude():
    g = np.float32([1e-38, 1e-20, 1e-3, 1, 1e3, 1e19, 1e25, 1e38, 3e38])
    g, m = np.concatenate([g, -g])[:, None], np.float32([[1e-30, 1e-10, 1, 1e10, 1e37]])
    exact = lambda g, m: np.float64(g) / (1 + (np.float64(g) / np.float64(m)) ** 2)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1.2e-38)  # smaller ones are flushed to zero
    for term in (gravity_term, jax.jit(gravity_term)):
        close(term(g, m), exact(g, m))
        for x in np.ravel(g):  # XLA divides by an m that is broadcast as a product, whose other factor is flushed here
            close(term(x, np.float32(1e38)), exact(x, np.float32(1e38)))


def test_gravity_term_at_the_limits_of_m_and_of_the_gradient():
    g = jnp.array([0.0, 1e-20, 1.0, 1e38])
    np.testing.assert_allclose(gravity_term(g, 0.0), np.zeros(4), atol=1e-37)
    np.testing.assert_array_equal(gravity_term(g, jnp.inf), g)
    for m in (0.0, 1e-38, 1.0, jnp.inf):
        assert gravity_term(jnp.float32(0), m) == 0
        assert not np.isfinite(gravity_term(jnp.array([jnp.inf, -jnp.inf, jnp.nan]), m)).any()
    assert np.isnan(gravity_term(jnp.float32(1), jnp.nan))


def test_gravity_term_takes_integers_and_broadcasts_m():
    for value in (gravity_term(2, 1), gravity_term(jnp.int32(2), 1), gravity_term(np.int64(2), 1.0)):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, 0.4, rtol=1e-6)
    rows = gravity_term(jnp.ones((2, 3)), jnp.array([[1.0], [2.0]]))
    np.testing.assert_allclose(rows, [[0.5] * 3, [0.8] * 3], rtol=1e-6)


def test_max_is_taken_per_leaf_and_of_absolute_values():
    tx = scale_by_gravity(0.0, key=0, first_step=0)
    both = [jnp.array([0.5, -4.0]), jnp.array([0.5])]
    updates, _ = tx.update(both, tx.init(both))
    np.testing.assert_allclose(updates[0], [0.25 / (1 + 4.0), -2 / (1 + 256)], rtol=1e-6)
    np.testing.assert_allclose(updates[1], [0.25 / (1 + 0.0625)], rtol=1e-6)


@pytest.mark.parametrize("shape", [(70_001,), (3, 3, 83, 101)])
def test_the_maximum_of_a_large_leaf_is_found_wherever_it_is(shape):
    for where in (0, 25_901, -1):
        gradient = np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)
        gradient.flat[where] = -0.9
        np.testing.assert_allclose(zeta(gradient), gradient / (1 + (gradient * np.float64(0.9)) ** 2), rtol=1e-6)
        gradient.flat[where] = np.nan  # which XLA:CPU's maximum of a large array ignores
        assert np.isnan(zeta(gradient).flat[where])


# ---- dtypes


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("kept", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("param", ["float32", "bfloat16"])
def test_updates_have_the_dtype_that_momentum_and_adam_give(param, kept):
    for gradient in ("float32", "bfloat16"):
        params, gradients = jnp.zeros(3, param), jnp.full(3, 0.3, gradient)
        tx = scale_by_gravity(0.1, key=0, velocity_dtype=kept)
        state = tx.init(params)
        expected = oracle.velocity_after(gradients, state.velocity, t=1)
        updates, new = tx.update(gradients, state, params)
        momentum = [optax.trace(0.9, accumulator_dtype=kept)]
        # Adam's second moment keeps the parameter's dtype, whatever mu_dtype says.
        for other in momentum if kept else [*momentum, optax.scale_by_adam()]:
            step = lambda gradients, params, other=other: other.update(gradients, other.init(params), params)[0]
            assert updates.dtype == jax.eval_shape(step, gradients, params).dtype
        assert new.velocity.dtype == (kept or param)
        rounded = {"float32": 2e-6, "bfloat16": 2**-8}
        np.testing.assert_allclose(np.float64(updates), expected, rtol=rounded[updates.dtype.name])


def test_the_kept_velocity_is_rounded_and_the_update_is_not():
    tx, full = scale_by_gravity(0.3, key=0, velocity_dtype=jnp.bfloat16), scale_by_gravity(0.3, key=0)
    rounded = functools.partial(jax.tree.map, lambda x: np.asarray(x.astype(jnp.bfloat16)))
    state = tx.init(PARAMS)
    assert_trees_identical(state.velocity, rounded(full.init(PARAMS).velocity))
    for t in (1, 2):
        expected = jax.tree.map(functools.partial(oracle.velocity_after, t=t), GRADIENTS, state.velocity)
        updates, state = tx.update(GRADIENTS, state)
        assert_trees_close(updates, expected)
        assert_trees_identical(state.velocity, rounded(updates))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 2 * (12 + 4) + 4  # 2 a parameter, and the count
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(full.init(PARAMS))) == 4 * (12 + 4) + 4


def test_float32_velocity_of_bfloat16_params_keeps_what_their_dtype_would_lose():
    gradient = jnp.full(8, 1e-3, jnp.bfloat16)
    tx = scale_by_gravity(0.0, key=0, velocity_dtype=jnp.float32)
    updates, state = tx.update(gradient, tx.init(gradient)._replace(velocity=jnp.ones(8)))
    assert updates.dtype == state.velocity.dtype == jnp.float32
    np.testing.assert_allclose(state.velocity, oracle.velocity_after(gradient, np.ones(8), t=1), rtol=5e-7)


def test_a_velocity_of_float64_is_float32_unless_x64_is_on():
    build = lambda: scale_by_gravity(key=0, velocity_dtype=jnp.float64)
    assert build().init(jnp.zeros(2)).velocity.dtype == jnp.float32
    with compat.enable_x64():
        assert build().init(jnp.zeros(2, jnp.float32)).velocity.dtype == jnp.float64


def test_float64_leaves_are_computed_in_float64():
    with compat.enable_x64():
        rng = np.random.default_rng(0)
        params = params_0 = rng.normal(size=(5, 6))
        gradients = rng.normal(size=(20, 5, 6)) * 3
        tx = gravity(0.1, key=0)
        state, update = tx.init(params), jax.jit(tx.update)
        velocity_0 = np.asarray(state[0].velocity)
        assert velocity_0.dtype == np.float64
        assert (velocity_0 != np.float32(velocity_0)).any()  # drawn in float64 too
        for gradient in gradients:
            updates, state = update(gradient, state)
            params = params + np.asarray(updates)
        velocities, weights = oracle.trajectory(gradients, velocity_0, params_0, 0.1, 1)
        assert state[0].velocity.dtype == updates.dtype == jnp.float64
        assert oracle.worst_error(np.asarray(state[0].velocity)[None], velocities[-1:]) < 1e-12
        assert oracle.worst_error(params[None], weights[-1:]) < 1e-12


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_draws_beyond_the_range_of_the_velocitys_dtype_are_clamped(dtype):
    largest = float(jnp.finfo(dtype).max)
    for params, kept in ((jnp.zeros(1000, dtype), None), (jnp.zeros(1000), dtype)):
        velocity = scale_by_gravity(0.9 * largest, key=0, velocity_dtype=kept).init(params).velocity
        assert velocity.dtype == dtype
        assert np.abs(np.float64(velocity)).max() == largest


# ---- kinds of leaves


def test_holes_in_the_trees_stay_holes_and_trees_may_be_empty():
    tx, gradient = gravity(0.1, key=0), GRADIENTS["b"]
    for hole in (None, optax.MaskedNode(), {}, [], ()):
        updates, state = tx.update({"w": gradient, "hole": hole}, tx.init({"w": gradient, "hole": hole}))
        assert updates["hole"] == hole and state[0].velocity["hole"] == hole
        expected, _ = tx.update({"w": gradient}, tx.init({"w": gradient}))
        assert_trees_identical(updates["w"], expected["w"])
        updates, state = tx.update(hole, tx.init(hole))
        assert updates == hole and state[0].count == 1


def test_numpy_and_python_leaves_are_taken():
    tx = gravity(0.1, key=0)
    state = tx.init({"w": np.zeros((3, 4), np.float32), "b": np.zeros(4)})
    assert_trees_identical(state, tx.init(PARAMS))
    updates, _ = tx.update(jax.tree.map(np.asarray, GRADIENTS), state)
    assert_trees_identical(updates, tx.update(GRADIENTS, state)[0])
    assert tx.update(0.5, tx.init(1.0))[0].shape == ()


def test_a_non_finite_gradient_makes_its_own_leaf_non_finite_and_no_other():
    tx = gravity(0.1, key=0)
    clean, _ = tx.update(GRADIENTS, tx.init(PARAMS))
    for bad in (np.nan, np.inf, -np.inf):
        gradient = np.array(GRADIENTS["w"])
        gradient[1, 2] = bad
        updates, state = tx.update({**GRADIENTS, "w": gradient}, tx.init(PARAMS))
        assert not np.isfinite(updates["w"]).all() and not np.isfinite(state[0].velocity["w"])[1, 2]
        assert_trees_identical(updates["b"], clean["b"])
