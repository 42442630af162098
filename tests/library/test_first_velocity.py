"""V_0, the key that draws it, and the learning rate that scales it: as a number, a schedule, or injected."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracle
from gravity_optax import gravity, scale_by_gravity
from trees import GRADIENTS, PARAMS, assert_trees_close, assert_trees_identical


def first_velocity(*arguments, params=PARAMS, **options):
    return gravity(*arguments, **{"key": 0, **options}).init(params)[0].velocity


# ---- V_0


def test_first_velocity_has_standard_deviation_alpha_over_learning_rate():
    leaf = jnp.full((200, 500), 3.0)  # the values do not matter
    for learning_rate, alpha in ((0.05, 0.02), (2, 1)):
        sample = np.float64(first_velocity(learning_rate, alpha, key=5, params=leaf))
        assert sample.std() == pytest.approx(alpha / learning_rate, rel=0.01)
        expected = scale_by_gravity(alpha / learning_rate, key=5).init(leaf).velocity
        np.testing.assert_array_equal(np.float32(sample), expected)


def test_every_form_of_a_key_gives_the_same_velocity():
    raw = jax.random.PRNGKey(4)
    for key in (np.int64(4), jnp.int32(4), jnp.uint32(4), jax.random.key(4), raw, np.asarray(raw)):
        assert_trees_identical(first_velocity(0.1, key=key), first_velocity(0.1, key=4))


def test_a_key_and_a_learning_rate_on_other_devices_give_the_same_velocity_where_the_parameters_are():
    params, rate = (jax.device_put(x, jax.devices()[i]) for i, x in ((3, PARAMS), (2, jnp.float32(0.1))))
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        velocity = first_velocity(rate, key=jax.device_put(key, jax.devices()[1]), params=params)
        assert_trees_close(velocity, first_velocity(0.1))
        assert {leaf.device.id for leaf in jax.tree.leaves(velocity)} == {3}


def test_init_may_be_called_again_where_jax_checks_that_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        for key in (0, jax.random.key(0), jax.random.PRNGKey(0)):
            tx = gravity(0.1, key=key)
            assert_trees_identical(tx.init(PARAMS), tx.init(PARAMS))


def test_the_first_velocity_is_independent_of_weights_drawn_with_the_same_key():
    fold_in, key = jax.random.fold_in, jax.random.key(0)
    twice = [fold_in(fold_in(key, 0), i) for i in range(3)]
    keys = [key, *jax.random.split(key, 3), *(fold_in(key, i) for i in range(3)), *twice]
    weights = [jax.random.normal(k, (6000,)) for k in keys]
    velocity = first_velocity(0.1, params=[jnp.zeros(6000)] * 3)
    assert np.abs(np.corrcoef(weights, velocity)[-3:, :-3]).max() < 0.1


def test_members_of_an_ensemble_differ_with_a_key_each():
    keys = jax.random.split(jax.random.key(0), 3)
    own = jax.jit(jax.vmap(lambda key: first_velocity(0.1, key=key, params=jnp.zeros(12))))(keys)
    for i in range(3):
        np.testing.assert_allclose(own[i], first_velocity(0.1, key=keys[i], params=jnp.zeros(12)), rtol=1e-6)
        assert not np.any(np.isclose(own[i], own[i - 1]))


@pytest.mark.parametrize(
    ("dtype", "too_large", "largest"), [("float16", 7e4, 6e4), ("bfloat16", 3.4e38, 3.3e38), ("float32", 1e39, 3.3e38)]
)
def test_a_standard_deviation_beyond_the_velocitys_dtype_is_an_error_that_names_the_leaf(dtype, too_large, largest):
    for params, kept in (({"w": jnp.zeros(3, dtype)}, None), ({"w": jnp.zeros(3)}, dtype)):
        draw = lambda *rates, params=params, kept=kept: first_velocity(*rates, velocity_dtype=kept, params=params)["w"]
        for rate, alpha in ((1.0, too_large), (np.float32(1e-30), np.float32(1e30)), (1e-300, 1e300)):
            said = re.escape(f"velocity_stddev (alpha / learning_rate) is {float(alpha) / float(rate):g}, ")
            with pytest.raises(ValueError, match=rf"{said}.*{dtype}.*params\['w'\]"):
                draw(rate, alpha)
        velocity = draw(1.0, largest)
        assert velocity.dtype == dtype and np.isfinite(np.float64(velocity)).all()


# ---- the learning rate and its schedule


def test_defaults_are_the_papers():
    for tx, spelled_out in (
        (gravity(key=0), gravity(0.1, 0.01, 0.9, key=0, first_step=1)),
        (scale_by_gravity(key=0), scale_by_gravity(0.1, 0.9, key=0, first_step=1)),
    ):
        state = spelled_out.init(PARAMS)
        assert_trees_identical(tx.init(PARAMS), state)
        assert_trees_identical(tx.update(GRADIENTS, state), spelled_out.update(GRADIENTS, state))


# The largest value of each is 0.2.
SCHEDULES = {
    "warm-up from 0": optax.warmup_cosine_decay_schedule(0.0, 0.2, 50, 500),
    "late": optax.piecewise_constant_schedule(0.1, {2**17 - 1: 2.0}),
    "too late": optax.piecewise_constant_schedule(0.2, {2**17: 2.0}),
    "NumPy number": lambda count: np.float32(0.2),
    "Python if": lambda count: 0.2 if count >= 2**16 else 1e-6 * float(count),
    "NumPy": lambda count: np.where(np.asarray(count) < 10, 0.2, 0.1),
    "between powers of 2": lambda count: 0.2 if 70 <= int(count) < 120 else 1e-3,
    "a list that ends": lambda count: [0.1, 0.2, 0.15][int(count)],
    "until NaN": lambda count: 0.2 * (1 - count.astype(jnp.float32) / 1000) ** 0.9,
    "callback": lambda count: jax.pure_callback(lambda _: np.float32(0.2), jnp.float32(0), count),
    "print": lambda count: (jax.debug.callback(lambda _: None, count), 0.2)[1],
}


@jax.numpy_dtype_promotion("standard")  # optax's cosine takes the smaller of an int32 and a float
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_largest_value_of_a_schedule_sets_the_first_velocity(name):
    tx = gravity(SCHEDULES[name], key=0)
    expected = first_velocity(0.2)
    assert_trees_close(tx.init(PARAMS)[0].velocity, expected)
    if name not in ("warm-up from 0", "too late", "NumPy number"):
        assert_trees_close(jax.jit(tx.init)(PARAMS)[0].velocity, expected)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_schedule_that_is_never_positive_or_not_finite_is_an_error_that_names_the_way_out(compiled):
    for value in (0.0, -0.5, np.nan, np.inf):
        init = gravity(optax.constant_schedule(value), key=0).init
        with pytest.raises(ValueError, match=rf"learning_rate is a schedule .* is {value}, .*set velocity_stddev"):
            (jax.jit(init) if compiled else init)(PARAMS)


def test_the_peak_of_a_schedule_may_be_traced():
    """Many peaks at once, one of them below alpha, where a bare array would be taken for the start of a warm-up."""
    schedule = lambda peak: lambda count: peak * jnp.minimum(count.astype(jnp.float32) / 5, 1)
    velocity = jax.jit(jax.vmap(lambda peak: first_velocity(schedule(peak), params=jnp.zeros(12))))
    peaks = (0.1, 0.05, 0.002)
    for peak, drawn in zip(peaks, velocity(jnp.array(peaks)), strict=True):
        np.testing.assert_allclose(drawn, first_velocity(peak, params=jnp.zeros(12)), rtol=1e-6)


def test_velocity_stddev_stands_for_alpha_over_learning_rate():
    expected = scale_by_gravity(0.3, key=0).init(PARAMS).velocity
    for learning_rate in (0.1, jnp.float32(0), lambda count: 1 / 0):  # which is not asked
        assert_trees_identical(first_velocity(learning_rate, velocity_stddev=0.3), expected)
    injected = optax.inject_hyperparams(gravity)(optax.linear_schedule(0.0, 0.1, 10), key=0, velocity_stddev=0.3)
    assert_trees_close(injected.init(PARAMS).inner_state[0].velocity, expected)


def test_a_learning_rate_array_below_alpha_starts_from_rest():
    rates, stddevs = np.float32([0.1, 0.01, 0.0099, 1e-6, 0, 1e-45]), (0.1, 1, 0, 0, 0, 0)
    for rate, stddev in zip(rates, stddevs, strict=True):
        assert_trees_close(first_velocity(jnp.asarray(rate)), scale_by_gravity(stddev, key=0).init(PARAMS).velocity)
    size = lambda rate: jnp.sum(jnp.abs(first_velocity(rate)["b"]))
    assert jnp.isfinite(jax.jit(jax.vmap(jax.grad(size)))(rates)).all()


# ---- optax.inject_hyperparams


def test_inject_hyperparams_takes_a_typed_key_without_static_arguments():
    options = {"learning_rate": 0.1, "key": jax.random.key(0)}
    tx, plain = optax.inject_hyperparams(gravity)(**options), gravity(**options)
    state, expected = tx.init(PARAMS), plain.init(PARAMS)
    assert_trees_close(state.inner_state[0].velocity, expected[0].velocity)
    assert_trees_close(jax.jit(tx.update)(GRADIENTS, state)[0], plain.update(GRADIENTS, expected)[0])


def test_steps_are_those_of_the_schedule_and_an_injected_warm_up_from_zero_starts_from_rest():
    schedule = optax.linear_schedule(0.0, 0.1, 2)
    plain, tx = gravity(schedule, key=0), optax.inject_hyperparams(gravity)(schedule, key=0)
    plain_state, state = plain.init(PARAMS), jax.jit(tx.init)(PARAMS)
    plain_update, update = jax.jit(plain.update), jax.jit(tx.update)
    velocity = PARAMS
    for t, learning_rate in enumerate((0.0, 0.05, 0.1, 0.1), 1):
        step = functools.partial(jax.tree.map, lambda v, lr=learning_rate: -lr * v)
        updates, plain_state = plain_update(GRADIENTS, plain_state)
        assert_trees_close(updates, step(plain_state[0].velocity))
        updates, state = update(GRADIENTS, state)
        velocity = jax.tree.map(functools.partial(oracle.velocity_after, t=t), GRADIENTS, velocity)
        assert_trees_close(updates, step(velocity))
    state.hyperparams["beta"] = jnp.asarray(0.5, jnp.float32)  # may be changed between steps
    velocity = jax.tree.map(functools.partial(oracle.velocity_after, t=5, beta=0.5), GRADIENTS, velocity)
    assert_trees_close(update(GRADIENTS, state)[0], step(velocity))


@pytest.mark.parametrize("key", [2**31, jax.random.key(1)], ids=["2^31", "typed"])
def test_a_key_named_in_static_args_stays_out_of_the_state(key):
    tx = optax.inject_hyperparams(gravity, static_args="key")(learning_rate=0.1, key=key)
    state = tx.init(PARAMS)
    assert "key" not in state.hyperparams
    assert_trees_close(state.inner_state[0].velocity, first_velocity(0.1, key=key))
    if importlib.util.find_spec("flax"):
        from flax import serialization

        assert_trees_identical(serialization.from_bytes(state, serialization.to_bytes(state)), state)
    step = jax.jit(lambda state: tx.update(GRADIENTS, state)[1], donate_argnums=0)
    step(step(state))  # a key in the state would have been donated with it
    tx.init(PARAMS)
