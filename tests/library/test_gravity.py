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


@pytest.fixture(scope="module", params=[0, 1], ids=lambda t: f"first_step{t}")
def first_step(request):
    return request.param


@pytest.fixture(scope="module")
def run(first_step):
    return oracle.recorded_run(first_step)


def errors_against_oracle(run, first_step):
    """The worst relative error of the velocity and of the parameters over leaves and steps."""
    trees = (run.gradients, run.velocity_0, run.params_0, run.velocities, run.params)
    errors = []
    for gradients, velocity_0, params_0, velocities, params in zip(*map(jax.tree.leaves, trees), strict=True):
        reference = oracle.trajectory(gradients, velocity_0, params_0, oracle.LEARNING_RATE, first_step)
        errors.append([oracle.worst_error(velocities, reference[0]), oracle.worst_error(params, reference[1])])
    return np.max(errors, axis=0)


def test_training_run_agrees_with_the_oracle_at_every_step(run, first_step):
    velocity_error, params_error = errors_against_oracle(run, first_step)
    assert velocity_error <= 2e-6
    assert params_error <= 2e-6


def test_an_oracle_one_step_off_does_not_agree(run, first_step):
    for wrong in (first_step - 1, first_step + 1):
        assert min(errors_against_oracle(run, wrong)) > 1e-3


@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1.0])
def test_three_steps_agree_with_the_oracle_for_other_betas_and_first_steps(beta, first):
    tx = scale_by_gravity(0.3, beta, key=1, first_step=first)
    state = tx.init(PARAMS)
    expected = state.velocity
    for count in range(3):
        gradients = jax.tree.map(lambda g, c=count: g * (c + 1), GRADIENTS)
        expected = jax.tree.map(
            functools.partial(oracle.velocity_after, t=first + count, beta=beta), gradients, expected
        )
        updates, state = tx.update(gradients, state)
        assert_trees_close(state.velocity, expected)
        assert_trees_close(updates, expected)
        assert state.count == count + 1


@pytest.mark.parametrize("beta", [1.0, 0.999999, 0.9])
def test_one_minus_beta_hat_does_not_cancel_at_large_t(beta):
    t = 10**6
    tx = scale_by_gravity(0.0, beta, key=0, first_step=0)
    state = ScaleByGravityState(jnp.array(t, jnp.int32), jnp.zeros(2))
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


@pytest.mark.parametrize("g", [1e-38, 1e-20, 1e-3, 1.0, 1e3, 1e19, 1e25, 1e38, 3e38])
@pytest.mark.parametrize("m", [1e-30, 1e-10, 1.0, 1e10, 1e37, 1e38])
def test_gravity_term_has_the_true_value_at_every_magnitude(g, m):
    g32, m32 = jnp.float32(g), jnp.float32(m)
    exact = float(g32) / (1 + (float(g32) / float(m32)) ** 2)
    for sign in (1, -1):
        term = float(gravity_term(sign * g32, m32))
        assert term == pytest.approx(sign * exact, rel=1e-6, abs=1.2e-38)  # smaller ones are flushed to zero


def test_gravity_term_at_the_limits_of_m_and_of_the_gradient():
    for g in map(jnp.float32, (0.0, 1e-20, 1.0, 1e38)):
        assert gravity_term(g, 0.0) == pytest.approx(0.0, abs=1e-37)
        assert gravity_term(g, jnp.inf) == g
    for m in (0.0, 1e-38, 1.0, jnp.inf):
        assert gravity_term(jnp.float32(0), m) == 0
        assert not jnp.isfinite(gravity_term(jnp.array([jnp.inf, -jnp.inf, jnp.nan]), m)).any()
    assert jnp.isnan(gravity_term(jnp.float32(1), jnp.nan))


def test_gravity_term_takes_integers_and_broadcasts_m():
    for value in (gravity_term(2, 1), gravity_term(jnp.int32(2), 1), gravity_term(np.int64(2), 1.0)):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, 0.4, rtol=1e-6)
    rows = gravity_term(jnp.ones((2, 3)), jnp.array([[1.0], [2.0]]))
    np.testing.assert_allclose(rows, [[0.5] * 3, [0.8] * 3], rtol=1e-6)


def test_max_is_taken_per_leaf_and_of_absolute_values():
    one = zeta(jnp.array([0.5, -4.0]))
    np.testing.assert_allclose(one, [0.5 / (1 + 4.0), -4 / (1 + 256)], rtol=1e-6)
    tx = scale_by_gravity(0.0, key=0, first_step=0)
    both = [jnp.array([0.5, -4.0]), jnp.array([0.5])]
    updates, _ = tx.update(both, tx.init(both))
    np.testing.assert_allclose(updates[1], [0.25 / (1 + 0.0625)], rtol=1e-6)


@pytest.mark.parametrize("shape", [(70_001,), (3, 3, 83, 101)])
@pytest.mark.parametrize("where", [0, -1, 0.37])
def test_the_maximum_of_a_large_leaf_is_found_wherever_it_is(shape, where):
    gradient = np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)
    position = where if isinstance(where, int) else int(where * gradient.size)
    gradient.flat[position] = -0.9
    expected = gradient / (1 + (gradient * np.float64(0.9)) ** 2)
    np.testing.assert_allclose(zeta(gradient), expected, rtol=1e-6)
    gradient.flat[position] = np.nan  # which XLA:CPU's maximum of a large array ignores
    assert np.isnan(zeta(gradient).flat[position])


# ---- dtypes


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("kept", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("gradient", ["float32", "bfloat16"])
@pytest.mark.parametrize("param", ["float32", "bfloat16"])
def test_updates_have_the_dtype_that_momentum_and_adam_give(param, gradient, kept):
    params, gradients = jnp.zeros(3, param), jnp.full(3, 0.3, gradient)
    tx = scale_by_gravity(0.1, key=0, velocity_dtype=kept)
    state = tx.init(params)
    expected = oracle.velocity_after(gradients, state.velocity, t=1)
    updates, new = tx.update(gradients, state, params)
    momentum = [optax.trace(0.9, accumulator_dtype=kept)]
    # Adam's second moment keeps the parameter's dtype, whatever mu_dtype says.
    for other in momentum if kept else [*momentum, optax.scale_by_adam()]:
        theirs, _ = other.update(gradients, other.init(params), params)
        assert updates.dtype == theirs.dtype
    assert new.velocity.dtype == (kept or param)
    rounded = {"float32": 2e-6, "bfloat16": 2**-8}
    np.testing.assert_allclose(np.float64(updates), expected, rtol=rounded[updates.dtype.name])


@pytest.mark.parametrize("first", [0, 1])
def test_float64_leaves_are_computed_in_float64(first):
    with compat.enable_x64():
        rng = np.random.default_rng(0)
        params = params_0 = jnp.asarray(rng.normal(size=(5, 6)))
        gradients = rng.normal(size=(50, 5, 6)) * 3
        tx = gravity(0.1, key=0, first_step=first)
        state = tx.init(params)
        velocity_0 = state[0].velocity
        assert velocity_0.dtype == jnp.float64
        assert (velocity_0 != velocity_0.astype(jnp.float32).astype(jnp.float64)).any()  # drawn in float64 too
        for gradient in gradients:
            updates, state = tx.update(jnp.asarray(gradient), state)
            params = optax.apply_updates(params, updates)
        velocities, weights = oracle.trajectory(gradients, velocity_0, params_0, 0.1, first)
        assert state[0].velocity.dtype == params.dtype == jnp.float64
        assert oracle.worst_error(np.asarray(state[0].velocity)[None], velocities[-1:]) < 1e-12
        assert oracle.worst_error(np.asarray(params)[None], weights[-1:]) < 1e-12


@pytest.mark.parametrize("kept", [None, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_draws_beyond_the_range_of_the_velocitys_dtype_are_clamped(dtype, kept):
    largest = float(jnp.finfo(kept or dtype).max)
    velocity = scale_by_gravity(0.9 * largest, key=0, velocity_dtype=kept).init(jnp.zeros(1000, dtype)).velocity
    assert velocity.dtype == (kept or dtype)
    assert jnp.isfinite(velocity).all()
    assert jnp.abs(velocity).max() == largest


# ---- kinds of leaves


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()], ids=["None", "MaskedNode"])
def test_holes_in_the_trees_stay_holes(hole):
    tx = gravity(0.1, key=0)
    state = tx.init({"w": jnp.zeros(4), "hole": hole})
    alone = gravity(0.1, key=0).init({"w": jnp.zeros(4)})
    np.testing.assert_array_equal(state[0].velocity["w"], alone[0].velocity["w"])
    updates, state = tx.update({"w": GRADIENTS["b"], "hole": hole}, state)
    assert updates["hole"] == hole and state[0].velocity["hole"] == hole
    expected, _ = tx.update({"w": GRADIENTS["b"]}, alone)
    assert_trees_identical(updates["w"], expected["w"])


@pytest.mark.parametrize("empty", [{}, [], (), None])
def test_an_empty_tree(empty):
    tx = gravity(0.1, key=0)
    updates, state = tx.update(empty, tx.init(empty))
    assert updates == empty
    assert state[0].count == 1


def test_numpy_and_python_leaves_are_taken():
    tx = gravity(0.1, key=0)
    state = tx.init({"w": np.zeros((3, 4), np.float32), "b": np.zeros(4)})
    assert_trees_identical(state, tx.init(PARAMS))
    updates, _ = tx.update(jax.tree.map(np.asarray, GRADIENTS), state)
    assert_trees_identical(updates, tx.update(GRADIENTS, state)[0])
    assert tx.update(0.5, tx.init(1.0))[0].shape == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_gradient_makes_its_own_leaf_non_finite_and_no_other(bad):
    tx = gravity(0.1, key=0)
    clean, _ = tx.update(GRADIENTS, tx.init(PARAMS))
    updates, state = tx.update({**GRADIENTS, "w": GRADIENTS["w"].at[1, 2].set(bad)}, tx.init(PARAMS))
    assert not jnp.isfinite(updates["w"]).all()
    assert not jnp.isfinite(state[0].velocity["w"][1, 2])
    assert_trees_identical(updates["b"], clean["b"])
