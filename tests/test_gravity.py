"""The arithmetic of Gravity: against the float64 oracle, for every dtype and kind of leaf; V_0 and the schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from gravity_optax import ScaleByGravityState, gravity, gravity_term, scale_by_gravity

PARAMS = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}
GRADIENTS = {"w": jnp.linspace(-2, 3, 12).reshape(3, 4), "b": jnp.array([0.5, -0.25, 0.0, 0.1])}
F32 = {"rtol": 2e-6, "atol": 1e-7}


def assert_trees_close(ours, expected, **tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), **(tolerance or F32))


def assert_trees_identical(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


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


def test_recorded_run_learns(run):
    assert len(run.losses) >= 300
    assert run.losses[-20:].mean() < 0.5 * run.losses[:5].mean()


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


def test_gravity_term_is_largest_at_the_max_step_grad_where_it_is_half_of_it():
    for m in (0.1, 1.0, 30.0):
        g = jnp.asarray(m * np.array([0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0]), jnp.float32)
        term = np.asarray(gravity_term(g, m))
        assert np.argmax(term) == 3
        np.testing.assert_allclose(term[3], m / 2, rtol=1e-6)


def test_gravity_term_is_g_well_below_m_and_m_squared_over_g_well_above():
    g = jnp.array([1e-3, -1e-3, 1e4, -1e4])
    np.testing.assert_allclose(gravity_term(g, 1.0), [1e-3, -1e-3, 1e-4, -1e-4], rtol=2e-6)


@pytest.mark.parametrize("g", [1e-38, 1e-20, 1e-3, 1.0, 1e3, 1e19, 1e25, 1e38, 3e38])
@pytest.mark.parametrize("m", [1e-30, 1e-10, 1.0, 1e10, 1e37, 1e38])
def test_gravity_term_has_the_true_value_at_every_magnitude(g, m):
    g32, m32 = jnp.float32(g), jnp.float32(m)
    exact = float(g32) / (1 + (float(g32) / float(m32)) ** 2)
    for sign in (1, -1):
        term = float(gravity_term(sign * g32, m32))
        assert term == pytest.approx(sign * exact, rel=1e-6, abs=1.2e-38)  # smaller ones are flushed to zero


@pytest.mark.parametrize("g", [0.0, 1e-20, 1.0, 1e38])
def test_gravity_term_at_the_limits_of_m(g):
    assert gravity_term(jnp.float32(g), 0.0) == pytest.approx(0.0, abs=1e-37)
    assert gravity_term(jnp.float32(g), jnp.inf) == jnp.float32(g)


def test_gravity_term_of_zero_is_zero_and_of_the_non_finite_is_non_finite():
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


def test_a_largest_entry_above_one_is_damped_like_its_inverse_cube():
    for largest in (10.0, 100.0, 1000.0):
        np.testing.assert_allclose(
            zeta(jnp.array([0.0, largest]))[1] * largest**3, 1.0, rtol=2 / largest**2 + 2e-4 / largest
        )


def test_an_outlier_damps_the_entries_above_its_inverse():
    # With M = 20 the step grows with the entry up to 1/20 and falls from there on.
    entries = np.array([0.01, 0.02, 0.04, 0.05, 0.06, 0.1, 0.5, 1.0, 20.0])
    steps = zeta(jnp.asarray(entries, jnp.float32))
    assert np.argmax(steps) == 3
    assert (np.diff(steps)[:3] > 0).all() and (np.diff(steps)[3:] < 0).all()
    # Without the outlier the same entries all grow.
    assert (np.diff(zeta(jnp.asarray(entries[:-1], jnp.float32))) > 0).all()


def test_max_is_taken_per_leaf_and_of_absolute_values():
    one = zeta(jnp.array([0.5, -4.0]))
    np.testing.assert_allclose(one, [0.5 / (1 + 4.0), -4 / (1 + 256)], rtol=1e-6)
    tx = scale_by_gravity(0.0, key=0, first_step=0)
    both = [jnp.array([0.5, -4.0]), jnp.array([0.5])]
    updates, _ = tx.update(both, tx.init(both))
    np.testing.assert_allclose(updates[1], [0.25 / (1 + 0.0625)], rtol=1e-6)


def test_huge_gradients_give_a_finite_velocity():
    np.testing.assert_allclose(zeta(jnp.array([3e38, 1e-20, 1.0])), [0, 1e-20 / (1 + 9e36), 0], atol=1e-37)
    np.testing.assert_allclose(zeta(jnp.array([1e-30, -1e-42])), [1e-30, 0], rtol=1e-6, atol=1e-38)


# ---- V_0


@pytest.mark.parametrize(("learning_rate", "alpha"), [(0.1, 0.01), (0.05, 0.02), (2, 1)])
def test_first_velocity_is_normal_with_standard_deviation_alpha_over_learning_rate(learning_rate, alpha):
    leaf = jnp.full((200, 500), 3.0)  # the values do not matter
    sample = np.asarray(gravity(learning_rate, alpha, key=5).init(leaf)[0].velocity, np.float64)
    sigma = alpha / learning_rate
    assert abs(sample.mean()) < 4 * sigma / sample.size**0.5
    assert sample.std() == pytest.approx(sigma, rel=0.01)
    assert np.mean((sample / sigma) ** 4) == pytest.approx(3, abs=0.08)  # the kurtosis of a normal distribution


def test_scale_by_gravity_takes_the_standard_deviation_itself():
    assert np.std(scale_by_gravity(0.3, key=5).init(jnp.zeros(10**5)).velocity) == pytest.approx(0.3, rel=0.01)
    assert_trees_identical(scale_by_gravity(0.0, key=5).init(PARAMS).velocity, PARAMS)


def test_alpha_zero_starts_from_rest():
    assert_trees_identical(gravity(0.1, 0.0, key=5).init(PARAMS)[0].velocity, PARAMS)


@pytest.mark.parametrize(
    "key",
    [
        np.int64(4),
        jnp.int32(4),
        jnp.uint32(4),
        jax.random.key(4),
        jax.random.PRNGKey(4),
        np.asarray(jax.random.PRNGKey(4)),
    ],
    ids=["int64", "int32", "uint32", "typed", "raw", "raw-numpy"],
)
def test_every_form_of_a_key_gives_the_same_velocity(key):
    assert_trees_identical(gravity(0.1, key=key).init(PARAMS), gravity(0.1, key=4).init(PARAMS))


def test_init_gives_the_same_velocity_each_time_it_is_called():
    tx = gravity(0.1, key=jax.random.key(4))
    assert_trees_identical(tx.init(PARAMS), tx.init(PARAMS))


def test_a_key_of_another_generator_is_used():
    velocity = gravity(0.1, key=jax.random.key(4, impl="rbg")).init(jnp.zeros(10**4))[0].velocity
    assert np.std(velocity) == pytest.approx(0.1, rel=0.05)
    assert not np.array_equal(velocity, gravity(0.1, key=4).init(jnp.zeros(10**4))[0].velocity)


def test_keys_and_leaves_differ():
    params = [jnp.zeros(50)] * 3
    draws = [leaf for key in (0, 1, 2) for leaf in gravity(0.1, key=key).init(params)[0].velocity]
    correlations = np.corrcoef(np.stack(draws)) - np.eye(9)
    assert np.abs(correlations).max() < 0.6


# ---- the learning rate and its schedule


def test_updates_are_minus_learning_rate_times_velocity():
    tx = gravity(0.25, key=0)
    updates, state = tx.update(GRADIENTS, tx.init(PARAMS))
    assert_trees_close(updates, jax.tree.map(lambda v: -0.25 * v, state[0].velocity))


def test_defaults_are_the_papers():
    tx, spelled_out = gravity(key=0), gravity(0.1, 0.01, 0.9, key=0, first_step=1)
    assert_trees_identical(tx.init(PARAMS), spelled_out.init(PARAMS))
    assert_trees_identical(tx.update(GRADIENTS, tx.init(PARAMS)), spelled_out.update(GRADIENTS, tx.init(PARAMS)))
    scale, spelled_out = scale_by_gravity(key=0), scale_by_gravity(0.1, 0.9, key=0, first_step=1)
    assert_trees_identical(scale.init(PARAMS), spelled_out.init(PARAMS))


def test_schedule_at_step_zero_sets_the_first_velocity_and_later_values_the_steps():
    schedule = optax.linear_schedule(0.2, 0.1, 2)
    tx, constant = gravity(schedule, key=0), gravity(0.2, key=0)
    state = tx.init(PARAMS)
    assert_trees_close(state[0].velocity, constant.init(PARAMS)[0].velocity, rtol=1e-6)
    for learning_rate in (0.2, 0.15, 0.1, 0.1):
        updates, state = tx.update(GRADIENTS, state)
        assert_trees_close(updates, jax.tree.map(lambda v, lr=learning_rate: -lr * v, state[0].velocity))


def test_schedule_that_starts_at_zero_is_an_error_that_names_the_way_out():
    with pytest.raises(ValueError, match=r"learning_rate .* 0\.0, .*scale_by_gravity\(velocity_stddev, key=key\)"):
        gravity(optax.linear_schedule(0.0, 0.1, 10), key=0)


def test_schedule_that_starts_at_zero_is_an_error_inside_jit_too():
    with pytest.raises(ValueError, match=r"learning_rate .* 0\.0, .*scale_by_gravity"):
        jax.jit(lambda params: gravity(optax.linear_schedule(0.0, 0.1, 10), key=0).init(params))(PARAMS)


def test_warm_up_from_zero_works_with_scale_by_gravity():
    schedule = optax.linear_schedule(0.0, 0.1, 2)
    tx = optax.chain(scale_by_gravity(0.1, key=0), optax.scale_by_learning_rate(schedule))
    state = tx.init(PARAMS)
    for learning_rate in (0.0, 0.05, 0.1):
        updates, state = tx.update(GRADIENTS, state)
        assert_trees_close(updates, jax.tree.map(lambda v, lr=learning_rate: -lr * v, state[0].velocity))


@pytest.mark.parametrize("learning_rate", [0.1, optax.linear_schedule(0.1, 0.01, 100)], ids=["number", "schedule"])
def test_building_inside_jit_gives_the_same_as_outside(learning_rate):
    @jax.jit
    def init(params):
        return gravity(learning_rate, key=0).init(params)

    @jax.jit
    def update(gradients, state):
        return gravity(learning_rate, key=0).update(gradients, state)

    tx = gravity(learning_rate, key=0)
    assert_trees_close(init(PARAMS), tx.init(PARAMS))
    assert_trees_close(update(GRADIENTS, tx.init(PARAMS)), tx.update(GRADIENTS, tx.init(PARAMS)))


# ---- optax.inject_hyperparams


def maybe_jit(compiled):
    return jax.jit if compiled else lambda f: f


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("key", [0, jax.random.key(0), jax.random.PRNGKey(0)], ids=["int", "typed", "raw"])
def test_inject_hyperparams_needs_no_static_arguments(key, compiled):
    tx, plain = optax.inject_hyperparams(gravity)(learning_rate=0.1, key=key), gravity(0.1, key=key)
    state, plain_state = maybe_jit(compiled)(tx.init)(PARAMS), plain.init(PARAMS)
    assert_trees_close(state.inner_state[0].velocity, plain_state[0].velocity)
    for _ in range(3):
        updates, state = maybe_jit(compiled)(tx.update)(GRADIENTS, state)
        expected, plain_state = plain.update(GRADIENTS, plain_state)
        assert_trees_close(updates, expected)
        assert_trees_close(state.inner_state[0].velocity, plain_state[0].velocity)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_inject_hyperparams_with_a_warm_up_from_zero_starts_from_rest(compiled):
    tx = optax.inject_hyperparams(gravity)(learning_rate=optax.linear_schedule(0.0, 0.1, 2), key=0)
    state = maybe_jit(compiled)(tx.init)(PARAMS)
    assert_trees_identical(state.inner_state[0].velocity, PARAMS)
    velocity = PARAMS
    for count, learning_rate in enumerate((0.0, 0.05, 0.1, 0.1)):
        updates, state = maybe_jit(compiled)(tx.update)(GRADIENTS, state)
        velocity = jax.tree.map(functools.partial(oracle.velocity_after, t=1 + count), GRADIENTS, velocity)
        assert_trees_close(updates, jax.tree.map(lambda v, lr=learning_rate: -lr * v, velocity))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_injected_learning_rate_and_beta_can_be_changed(compiled):
    tx = optax.inject_hyperparams(gravity)(learning_rate=0.1, key=0)
    state = tx.init(PARAMS)
    _, state = maybe_jit(compiled)(tx.update)(GRADIENTS, state)
    state.hyperparams["learning_rate"] = jnp.asarray(0.02, jnp.float32)
    state.hyperparams["beta"] = jnp.asarray(0.5, jnp.float32)
    before = state.inner_state[0].velocity
    updates, state = maybe_jit(compiled)(tx.update)(GRADIENTS, state)
    expected = jax.tree.map(functools.partial(oracle.velocity_after, t=2, beta=0.5), GRADIENTS, before)
    assert_trees_close(updates, jax.tree.map(lambda v: -0.02 * v, expected))


# ---- dtypes


def test_a_float16_gradient_of_20_does_not_overflow():
    # (g / m)^2 = 160000 is beyond float16.
    gradient = jnp.array([20.0, 0.5], jnp.float16)
    np.testing.assert_allclose(zeta(gradient), [20 / 160001, 0.5 / 101], rtol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_velocity_and_updates_keep_the_dtype_of_a_leaf(dtype):
    params, gradients = (jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (PARAMS, GRADIENTS))
    tx = gravity(0.1, key=0)
    state = tx.init(params)
    for count in range(3):
        before = state[0].velocity
        updates, state = tx.update(gradients, state)
        expected = jax.tree.map(functools.partial(oracle.velocity_after, t=1 + count), gradients, before)
        assert {leaf.dtype for leaf in jax.tree.leaves((before, updates, state[0].velocity))} == {jnp.dtype(dtype)}
        eps = float(jnp.finfo(dtype).eps)
        assert_trees_close(state[0].velocity, expected, rtol=max(0.51 * eps, 2e-6), atol=1e-7)  # rounded once
        assert_trees_close(updates, jax.tree.map(lambda v: -0.1 * v, expected), rtol=2 * eps, atol=1e-7)


def test_gradients_in_bfloat16_of_float32_params_give_updates_in_bfloat16_and_velocity_in_float32():
    gradients = jax.tree.map(lambda g: g.astype(jnp.bfloat16), GRADIENTS)
    tx = scale_by_gravity(0.1, key=0)
    state = tx.init(PARAMS)
    expected = jax.tree.map(functools.partial(oracle.velocity_after, t=1), gradients, state.velocity)
    updates, state = tx.update(gradients, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.velocity)} == {jnp.dtype(jnp.float32)}
    assert_trees_close(state.velocity, expected)
    assert_trees_identical(updates, jax.tree.map(lambda v: v.astype(jnp.bfloat16), state.velocity))


@pytest.mark.parametrize("first", [0, 1])
def test_float64_leaves_are_computed_in_float64(first):
    with jax.enable_x64(True):
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


def test_mixed_dtypes_in_one_tree_under_x64():
    with jax.enable_x64(True):
        params = [jnp.zeros(3, dtype) for dtype in (jnp.float64, jnp.float32, jnp.bfloat16)]
        tx = gravity(0.1, key=0)
        updates, state = tx.update([p + jnp.ones_like(p) for p in params], tx.init(params))
        assert [u.dtype for u in updates] == [v.dtype for v in state[0].velocity] == [p.dtype for p in params]
        assert state[0].count.dtype == jnp.int32


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_draws_beyond_the_range_of_a_dtype_are_clamped(dtype):
    velocity = scale_by_gravity(1e38, key=0).init(jnp.zeros(1000, dtype)).velocity
    assert velocity.dtype == dtype
    assert jnp.isfinite(velocity).all()
    assert jnp.abs(velocity).max() > 0.5 * float(jnp.finfo(dtype).max)


# ---- kinds of leaves


def test_a_leaf_of_zeros_only_lets_the_velocity_decay():
    tx = gravity(0.1, key=0)
    state = tx.init(PARAMS)
    before = state[0].velocity
    _, state = tx.update(jax.tree.map(jnp.zeros_like, GRADIENTS), state)
    assert_trees_close(state[0].velocity, jax.tree.map(lambda v: v * (1.9 / 3), before))


def test_leaves_of_size_zero_and_scalars():
    params = {"empty": jnp.zeros((0, 3)), "scalar": jnp.array(1.0)}
    tx = gravity(0.1, key=0)
    state = tx.init(params)
    assert state[0].velocity["empty"].shape == (0, 3) and state[0].velocity["scalar"].shape == ()
    expected = oracle.velocity_after(0.5, state[0].velocity["scalar"], t=1)
    updates, state = tx.update({"empty": jnp.zeros((0, 3)), "scalar": jnp.array(0.5)}, state)
    assert updates["empty"].shape == (0, 3)
    np.testing.assert_allclose(updates["scalar"], -0.1 * expected, **F32)


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


def test_apply_if_finite_skips_a_step_with_a_non_finite_gradient():
    tx = optax.apply_if_finite(gravity(0.1, key=0), 5)
    _, state = tx.update(GRADIENTS, tx.init(PARAMS))
    bad = {**GRADIENTS, "b": GRADIENTS["b"].at[0].set(jnp.nan)}
    updates, skipped = tx.update(bad, state)
    assert_trees_identical(updates, PARAMS)  # zeros
    assert_trees_identical(skipped.inner_state, state.inner_state)
    assert skipped.notfinite_count == 1
    assert_trees_close(tx.update(GRADIENTS, skipped)[0], tx.update(GRADIENTS, state)[0])
