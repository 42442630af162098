"""The arithmetic of Gravity: against the float64 oracle, for every dtype and kind of leaf."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import compat
import oracle
from gravity_optax import ScaleByGravityState, gravity, gravity_term, scale_by_gravity
from trees import GRADIENTS, PARAMS, assert_trees_identical

# ---- against the oracle


def test_training_run_agrees_with_the_oracle_at_every_step_and_not_with_one_a_step_off():
    trees = [jax.tree.leaves(tree) for tree in oracle.recorded_run()]

    def errors(first_step):
        """The worst relative error of the velocity and of the parameters over leaves and steps."""
        found = []
        for params_0, velocity_0, gradients, velocities, params in zip(*trees, strict=True):
            reference = oracle.trajectory(gradients, velocity_0, params_0, oracle.LEARNING_RATE, first_step)
            found.append([oracle.worst_error(velocities, reference[0]), oracle.worst_error(params, reference[1])])
        return np.max(found, axis=0)

    assert max(errors(1)) <= 2e-6
    assert min(errors(0)) > 1e-3 and min(errors(2)) > 1e-3


ROWS = 100


def convolution(w, x):
    image = x.reshape(ROWS, w.shape[0], 1)
    out = jax.lax.conv_general_dilated(image, w[:3, None, :], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return jnp.mean(jnp.square(out)) + jnp.mean(jnp.square(w))


# Each takes a weight matrix w (n, m) and rows x (ROWS, n), and gives a loss.
LOSSES = {
    "product with a constant": lambda w, x: jnp.mean(jnp.square(x @ w @ jnp.ones((w.shape[1], 1)))),
    "mean": lambda w, x: jnp.mean(jnp.square(x @ w)),
    "bias sum": lambda w, x: jnp.mean(jnp.square(x @ jnp.ones(w.shape) + w.sum(0)[None])) / w.shape[0],
    "row sum as a product": lambda w, x: jnp.sum(jnp.square((w * 0.1) @ jnp.ones((w.shape[1], 7)))),
    "convolution": convolution,
}


@pytest.mark.parametrize("shape", [(4, 3), (784, 64)], ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_an_update_compiled_with_its_gradient_is_right_also_where_xla_is_not(loss, shape):
    """jax-ml/jax issue 39103: XLA:CPU computes wrong results in some programs."""
    tx, rng = scale_by_gravity(key=0), np.random.default_rng(0)
    w, x, velocity = (np.float32(rng.normal(size=size)) for size in (shape, (ROWS, shape[0]), shape))
    state = ScaleByGravityState(jnp.int32(0), velocity / 10)

    @jax.jit
    def step(w, state, x):
        gradient = jax.grad(loss)(w, x)
        return gradient, *tx.update(gradient, state)

    gradient, updates, new = step(w, state, x)
    expected = oracle.velocity_after(gradient, state.velocity, t=1)
    np.testing.assert_allclose(updates, expected, rtol=2e-6, atol=2e-7 * np.abs(expected).max())
    np.testing.assert_array_equal(updates, new.velocity)


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


# ---- against the oracle for random leaves, to a tolerance that follows from the arithmetic

# Let a = beta_hat V and b = (1 - beta_hat) zeta be the two terms, and u half the epsilon of the dtype computed in. To
# first order in u, a is off by at most 5 u |a| (beta, its product with t, the sum, the quotient, the product with V), b
# by 13 u |b|: 4 for 1 - beta_hat, 1 for its product with G, 2 for the steepness G / m (rounded once, squared by the
# formula), 2 for the inverse and the product with it, 3 for the denominator, 1 for the quotient. The sum rounds once:
# 20 u max(|a|, |b|). A float16 or bfloat16 leaf, whose half epsilon is U, is rounded by another 2 U max(|a|, |b|).
# In float64 the oracle errs as much again, and because it takes 1 - beta_hat, at least 1 / 12 for t <= 10, as a
# difference, by 4 * 12 u: together 90 u.
# XLA flushes subnormal numbers to zero. With n the smallest normal number of the dtype computed in, inputs, both
# products with a weight and the sum lose up to n each; where the inverse of the steepness is flushed or the steepness
# overflows, |zeta| was at most 4.8 n. In all 10 n, and for float16, whose subnormal numbers are kept, half of the
# smallest of those. a + b lies between V and G, so that every output must be finite.
SHAPES = [(), (0,), (1,), (6,), (3, 0), (2, 5), (1, 1), (3, 2, 4), (2, 0, 3), (2, 3, 1, 3)]
DTYPES = ["bfloat16", "float16", "float32", "float64"]


def tolerance(dtype, larger):
    computed = jnp.finfo("float64" if dtype == "float64" else "float32")
    relative = (90 if dtype == "float64" else 20) * float(computed.eps) / 2
    if jnp.finfo(dtype).bits < computed.bits:
        relative += float(jnp.finfo(dtype).eps)
    smallest = 10 * float(computed.tiny)
    if dtype == "float16":
        smallest += float(jnp.finfo(dtype).smallest_subnormal) / 2
    return relative * larger + smallest


def numbers(rng, shape, dtype):
    """An array with one of the fillings, of about 10^exponent, within the dtype's range."""
    filling = rng.choice(["plain", "zeros", "holes", "outlier", "every scale"])
    exponent, size = rng.uniform(-30, 30), int(np.prod(shape))
    values = rng.normal(size=size) * 10.0 ** (rng.uniform(-30, 30, size) if filling == "every scale" else exponent)
    if filling == "zeros":
        values[:] = 0
    if filling == "holes":
        values[rng.random(size) < 0.5] = 0
    if filling == "outlier" and size:
        values[rng.integers(size)] = 10.0 ** rng.uniform(exponent, 30)
    limit = min(float(jnp.finfo(dtype).max), 1e31)
    return np.clip(values, -limit, limit).reshape(shape).astype(jnp.dtype(dtype))


@jax.jit
def update(gradients, count, velocity, beta):  # compiled once: beta and the count are traced
    tx = scale_by_gravity(0.0, beta, key=0, first_step=0)
    return tx.update(gradients, ScaleByGravityState(count, velocity))


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), t=st.integers(0, 10), beta=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_random_leaves_agree_with_the_oracle_and_stay_finite(seed, t, beta):
    rng = np.random.default_rng(seed)
    gradients, velocity = ({d: [numbers(rng, shape, d) for shape in SHAPES] for d in DTYPES} for _ in range(2))
    with compat.enable_x64():
        updates, state = update(gradients, np.int32(t), velocity, np.float64(beta))
    assert state.count == t + 1
    exact = functools.partial(oracle.velocity_after, t=t, beta=beta)
    for dtype in DTYPES:
        leaves = [tree[dtype] for tree in (gradients, velocity, updates, state.velocity)]
        for g, v, *outputs in zip(*leaves, strict=True):
            with np.errstate(over="ignore", under="ignore"):
                expected = exact(g, v)
                larger = np.maximum(np.abs(exact(np.zeros_like(g), v)), np.abs(exact(g, np.zeros_like(v))))
            for ours in outputs:
                assert ours.dtype == dtype and ours.shape == g.shape
                error, allowed = np.abs(np.asarray(ours, np.float64) - expected), tolerance(dtype, larger)
                assert (error <= allowed).all(), (dtype, (error / allowed).max())  # so it is finite


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
        assert value.dtype == jnp.float32 and value == pytest.approx(0.4, rel=1e-6)
    rows = gravity_term(jnp.ones((2, 3)), jnp.array([[1.0], [2.0]]))
    np.testing.assert_allclose(rows, [[0.5] * 3, [0.8] * 3], rtol=1e-6)


@pytest.mark.parametrize("shape", [(70_001,), (3, 3, 83, 101)])
def test_the_maximum_of_a_large_leaf_is_found_wherever_it_is(shape):
    update = jax.jit(scale_by_gravity(key=0, first_step=0).update)  # from rest at t = 0, V is half of zeta
    state = ScaleByGravityState(0, np.zeros(shape, np.float32))
    for where in (0, 25_901, -1):
        gradient = np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)
        gradient.flat[where] = -0.9
        zeta = gradient / (1 + (gradient * np.float64(0.9)) ** 2)
        np.testing.assert_allclose(update(gradient, state)[0], zeta / 2, rtol=1e-6)
        gradient.flat[where] = np.nan  # which XLA:CPU's maximum of a large array ignores
        assert np.isnan(np.ravel(update(gradient, state)[0])[where])


# ---- dtypes


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("kept", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("param", ["float32", "bfloat16"])
def test_updates_have_the_dtype_that_momentum_and_adam_give(param, kept):
    rounded = {"float32": 2e-6, "bfloat16": 2**-8}
    for gradient in ("float32", "bfloat16"):
        params, gradients = jnp.zeros(3, param), jnp.full(3, 0.3, gradient)
        tx = scale_by_gravity(0.1, key=0, velocity_dtype=kept)
        state = tx.init(params)
        expected = oracle.velocity_after(gradients, state.velocity, t=1)
        updates, new = tx.update(gradients, state, params)
        # Adam's second moment keeps the parameter's dtype, whatever mu_dtype says.
        for other in (optax.trace(0.9, accumulator_dtype=kept), *[optax.scale_by_adam()] * (not kept)):
            step = lambda gradients, params, other=other: other.update(gradients, other.init(params), params)[0]
            assert updates.dtype == jax.eval_shape(step, gradients, params).dtype
        assert new.velocity.dtype == (kept or param)
        np.testing.assert_allclose(np.float64(updates), expected, rtol=rounded[updates.dtype.name])


def test_float32_velocity_of_bfloat16_params_keeps_what_their_dtype_would_lose():
    gradient = jnp.full(8, 1e-3, jnp.bfloat16)
    tx = scale_by_gravity(0.0, key=0, velocity_dtype=jnp.float32)
    updates, state = tx.update(gradient, tx.init(gradient)._replace(velocity=jnp.ones(8)))
    assert updates.dtype == state.velocity.dtype == jnp.float32
    np.testing.assert_allclose(state.velocity, oracle.velocity_after(gradient, np.ones(8), t=1), rtol=5e-7)


def test_a_velocity_of_float64_is_drawn_and_updated_in_float64_and_is_float32_unless_x64_is_on():
    tx = scale_by_gravity(key=0, velocity_dtype=jnp.float64)
    init = lambda params: tx.init(params).velocity
    assert init(jnp.zeros(2)).dtype == jnp.float32
    with compat.enable_x64():
        gradient = np.float32([0.3, 0.7])
        before = tx.init(gradient)
        updates, after = tx.update(gradient, before)
        assert updates.dtype == after.velocity.dtype == jnp.float64
        np.testing.assert_allclose(updates, oracle.velocity_after(gradient, before.velocity, t=1), rtol=1e-14)
        assert init(jnp.zeros(2, jnp.float32)).dtype == jnp.float64
        velocity = np.asarray(init(np.zeros(9)))
        assert velocity.dtype == np.float64 and (velocity != np.float32(velocity)).any()


def test_draws_beyond_the_range_of_the_velocitys_dtype_are_clamped():
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        largest = float(jnp.finfo(dtype).max)
        for params, kept in ((jnp.zeros(1000, dtype), None), (jnp.zeros(1000), dtype)):
            velocity = np.float64(scale_by_gravity(0.9 * largest, key=0, velocity_dtype=kept).init(params).velocity)
            assert (velocity.min(), velocity.max()) == (-largest, largest)


# ---- kinds of leaves


def test_holes_in_the_trees_stay_holes_and_trees_may_be_empty():
    tx, gradient = gravity(0.1, key=0), GRADIENTS["b"]
    for hole in (None, optax.MaskedNode(), {}, [], ()):
        tree = {"w": gradient, "hole": hole}
        updates, state = tx.update(tree, tx.init(tree))
        assert updates["hole"] == hole and state[0].velocity["hole"] == hole
        assert_trees_identical(updates["w"], tx.update({"w": gradient}, tx.init({"w": gradient}))[0]["w"])
        updates, state = tx.update(hole, tx.init(hole))
        assert updates == hole and state[0].count == 1


def test_numpy_and_python_leaves_are_taken():
    tx = gravity(0.1, key=0)
    state = tx.init(jax.tree.map(np.asarray, PARAMS))
    assert_trees_identical(state, tx.init(PARAMS))
    assert_trees_identical(tx.update(jax.tree.map(np.asarray, GRADIENTS), state), tx.update(GRADIENTS, state))
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
