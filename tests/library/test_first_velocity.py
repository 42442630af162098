"""V_0, the key that draws it, and the learning rate that scales it: as a number, a schedule, or injected."""

import functools
import importlib.util

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


@pytest.mark.parametrize(("learning_rate", "alpha"), [(0.1, 0.01), (0.05, 0.02), (2, 1)])
def test_first_velocity_is_normal_with_standard_deviation_alpha_over_learning_rate(learning_rate, alpha):
    leaf = jnp.full((200, 500), 3.0)  # the values do not matter
    sample = np.float64(first_velocity(learning_rate, alpha, key=5, params=leaf))
    sigma = alpha / learning_rate
    assert abs(sample.mean()) < 4 * sigma / sample.size**0.5
    assert sample.std() == pytest.approx(sigma, rel=0.01)
    assert np.mean((sample / sigma) ** 4) == pytest.approx(3, abs=0.08)  # the kurtosis of a normal distribution
    np.testing.assert_array_equal(scale_by_gravity(sigma, key=5).init(leaf).velocity, np.float32(sample))


def test_every_form_of_a_key_gives_the_same_velocity():
    raw = jax.random.PRNGKey(4)
    for key in (np.int64(4), jnp.int32(4), jnp.uint32(4), jax.random.key(4), raw, np.asarray(raw)):
        assert_trees_identical(first_velocity(0.1, key=key), first_velocity(0.1, key=4))


def test_a_key_of_another_generator_is_used():
    leaf = jnp.zeros((200, 500))
    velocity = first_velocity(0.1, key=jax.random.key(4, impl="rbg"), params=leaf)
    assert np.std(velocity) == pytest.approx(0.1, rel=0.05)
    assert not np.array_equal(velocity, first_velocity(0.1, key=4, params=leaf))


def test_init_may_be_called_again_where_jax_checks_that_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        for key in (0, jax.random.key(0), jax.random.PRNGKey(0)):
            tx = gravity(0.1, key=key)
            assert_trees_identical(tx.init(PARAMS), tx.init(PARAMS))


def nnx_weights(key):
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    return [nnx.Linear(96, 64, use_bias=False, rngs=rngs).kernel[...] for _ in range(3)]


def equinox_weights(key):
    return [pytest.importorskip("equinox").nn.Linear(96, 64, use_bias=False, key=key).weight]


def drawn_with(keys):
    return lambda key: [jax.random.normal(k, (96, 64)) for k in keys(key)]


@pytest.mark.parametrize(
    "weights",
    [
        drawn_with(lambda key: [key]),
        drawn_with(lambda key: jax.random.split(key, 3)),
        drawn_with(lambda key: [jax.random.fold_in(key, i) for i in range(3)]),
        drawn_with(lambda key: [jax.random.fold_in(jax.random.fold_in(key, 0), i) for i in range(3)]),
        nnx_weights,
        equinox_weights,
    ],
    ids=["the key itself", "split", "fold_in", "fold_in twice", "nnx", "equinox"],
)
def test_the_first_velocity_is_independent_of_weights_drawn_with_the_same_key(weights):
    params = weights(jax.random.key(0))
    for w, v in zip(params, first_velocity(0.1, params=params), strict=True):
        assert abs(np.corrcoef(np.ravel(w), np.ravel(v))[0, 1]) < 0.1


def test_members_of_an_ensemble_differ_with_a_key_each():
    members = jnp.zeros((3, 12))
    same = jax.vmap(gravity(0.1, key=0).init)(members)[0].velocity
    np.testing.assert_array_equal(same[0], same[1])
    keys = jax.random.split(jax.random.key(0), 3)
    own = jax.vmap(lambda key, params: first_velocity(0.1, key=key, params=params))(keys, members)
    for i in range(3):
        np.testing.assert_allclose(own[i], first_velocity(0.1, key=keys[i], params=jnp.zeros(12)), rtol=1e-6)
        assert not np.any(np.isclose(own[i], own[i - 1]))


@pytest.mark.parametrize(
    ("dtype", "too_large", "largest"),
    [(jnp.float16, 7e4, 6e4), (jnp.bfloat16, 3.4e38, 3.3e38), (jnp.float32, 1e39, 3.3e38)],
    ids=["float16", "bfloat16", "float32"],
)
def test_a_standard_deviation_beyond_the_velocitys_dtype_is_an_error_that_names_the_leaf(dtype, too_large, largest):
    for params, kept in (({"w": jnp.zeros(3, dtype)}, None), ({"w": jnp.zeros(3)}, dtype)):
        message = rf"velocity_stddev \(alpha / learning_rate\) is {too_large:g}, .*{jnp.dtype(dtype)}.*params\['w'\]"
        with pytest.raises(ValueError, match=message.replace("+", r"\+")):
            first_velocity(1.0, too_large, velocity_dtype=kept, params=params)
        velocity = first_velocity(1.0, largest, velocity_dtype=kept, params=params)["w"]
        assert velocity.dtype == dtype and np.isfinite(np.float64(velocity)).all()


# ---- the learning rate and its schedule


def test_defaults_are_the_papers():
    tx, spelled_out = gravity(key=0), gravity(0.1, 0.01, 0.9, key=0, first_step=1)
    assert_trees_identical(tx.init(PARAMS), spelled_out.init(PARAMS))
    assert_trees_identical(tx.update(GRADIENTS, tx.init(PARAMS)), spelled_out.update(GRADIENTS, tx.init(PARAMS)))
    scale, spelled_out = scale_by_gravity(key=0), scale_by_gravity(0.1, 0.9, key=0, first_step=1)
    assert_trees_identical(scale.init(PARAMS), spelled_out.init(PARAMS))


def python_if(count):
    return 0.2 if count >= 16 else 0.01 * float(count)


# The largest value of each is 0.2.
SCHEDULES = {
    "warm-up from 0": optax.warmup_cosine_decay_schedule(0.0, 0.2, 50, 500),
    "joined": optax.join_schedules([optax.linear_schedule(0.0, 0.2, 10), optax.constant_schedule(0.1)], [11]),
    "late": optax.piecewise_constant_schedule(0.1, {2**17 - 1: 2.0}),
    "too late": optax.piecewise_constant_schedule(0.2, {2**17: 2.0}),
    "restarts": optax.sgdr_schedule(
        [{"init_value": 1e-5, "peak_value": 0.2, "warmup_steps": 5, "decay_steps": 50, "end_value": 0.0}] * 2
    ),
    "NumPy number": lambda count: np.float32(0.2),
    "Python if": python_if,
    "NumPy": lambda count: np.where(np.asarray(count) < 10, 0.2, 0.1),
}


@jax.numpy_dtype_promotion("standard")  # optax's cosine takes the smaller of an int32 and a float
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_largest_value_of_a_schedule_sets_the_first_velocity(name):
    tx = gravity(SCHEDULES[name], key=0)
    expected = first_velocity(0.2)
    assert_trees_close(tx.init(PARAMS)[0].velocity, expected)
    if name in ("late", "Python if", "NumPy"):
        assert_trees_close(jax.jit(tx.init)(PARAMS)[0].velocity, expected)


def test_the_step_is_that_of_the_schedule():
    tx = gravity(optax.linear_schedule(0.2, 0.1, 2), key=0)
    state = tx.init(PARAMS)
    for learning_rate in (0.2, 0.15, 0.1, 0.1):
        updates, state = tx.update(GRADIENTS, state)
        assert_trees_close(updates, jax.tree.map(lambda v, lr=learning_rate: -lr * v, state[0].velocity))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), float("inf")])
def test_a_schedule_that_is_never_positive_or_not_finite_is_an_error_that_names_the_way_out(value, compiled):
    init = gravity(optax.constant_schedule(value), key=0).init
    with pytest.raises(ValueError, match=rf"learning_rate is a schedule .* is {value}, .*set velocity_stddev"):
        (jax.jit(init) if compiled else init)(PARAMS)


def test_a_schedule_that_is_nan_at_one_step_is_an_error():
    with pytest.raises(ValueError, match=r"largest value .* is nan"):
        first_velocity(lambda count: jnp.where(count == 7, jnp.nan, 0.1))


def test_the_peak_of_a_schedule_may_be_traced():
    """Many peaks at once, one of them below alpha, where a bare array would be taken for the start of a warm-up."""
    schedule = lambda peak: lambda count: peak * jnp.minimum(count.astype(jnp.float32) / 5, 1)
    velocity = jax.vmap(lambda peak: first_velocity(schedule(peak), params=jnp.zeros(12)))
    peaks = (0.1, 0.05, 0.002)
    for found in (velocity(jnp.array(peaks)), jax.jit(velocity)(jnp.array(peaks))):
        for peak, drawn in zip(peaks, found, strict=True):
            np.testing.assert_allclose(drawn, first_velocity(peak, params=jnp.zeros(12)), rtol=1e-6)


def test_velocity_stddev_stands_for_alpha_over_learning_rate():
    def never_called(count):
        raise AssertionError

    expected = scale_by_gravity(0.3, key=0).init(PARAMS).velocity
    for learning_rate in (0.1, jnp.float32(0), never_called):
        assert_trees_identical(first_velocity(learning_rate, velocity_stddev=0.3), expected)
    injected = optax.inject_hyperparams(gravity)(optax.linear_schedule(0.0, 0.1, 10), key=0, velocity_stddev=0.3)
    assert_trees_close(injected.init(PARAMS).inner_state[0].velocity, expected)


@pytest.mark.parametrize(
    ("learning_rate", "stddev"), [(0.1, 0.1), (0.01, 1), (0.0099, 0), (1e-6, 0), (0, 0), (1e-45, 0)]
)
def test_a_learning_rate_array_below_alpha_starts_from_rest(learning_rate, stddev):
    assert_trees_close(
        first_velocity(jnp.float32(learning_rate)), scale_by_gravity(stddev, key=0).init(PARAMS).velocity
    )
    size = lambda rate: jnp.sum(jnp.abs(first_velocity(rate)["b"]))
    assert jnp.isfinite(jax.grad(size)(jnp.float32(learning_rate)))


@jax.numpy_dtype_promotion("standard")  # optax's cosine takes the smaller of an int32 and a float
@pytest.mark.parametrize("start", [0, 1e-6, 1e-2])
def test_a_warm_up_from_any_rate_trains_as_well_as_without(start):
    # V_0 of alpha / start would be carried into the weights: 5 for a start of 1e-4, 5e6 for one of 1e-6.
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(256, 16)), rng.normal(size=(16, 4))
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(np.tanh(x @ w / 2), jnp.float32)
    params = [jnp.asarray(w, jnp.float32) for w in (rng.normal(size=(16, 32)) / 4, rng.normal(size=(32, 4)) / 6)]
    loss = lambda params: jnp.mean((jnp.tanh(x @ params[0]) @ params[1] - y) ** 2)  # 1.0 at the start
    schedule = optax.warmup_cosine_decay_schedule(start, 0.1, 50, 500)

    def train(tx):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return loss(jax.lax.scan(step, (params, tx.init(params)), length=500)[0][0])

    transformations = gravity(schedule, key=0), optax.inject_hyperparams(gravity)(schedule, key=0)
    losses = jax.jit(lambda: [train(tx) for tx in transformations])()
    assert max(losses) < 0.08  # 0.05 with a constant 0.1


# ---- optax.inject_hyperparams


@pytest.mark.parametrize("key", [0, jax.random.key(0)], ids=["int", "typed"])
def test_inject_hyperparams_needs_no_static_arguments(key):
    tx, plain = optax.inject_hyperparams(gravity)(learning_rate=0.1, key=key), gravity(0.1, key=key)
    state, plain_state = tx.init(PARAMS), plain.init(PARAMS)
    assert_trees_close(state.inner_state[0].velocity, plain_state[0].velocity)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(GRADIENTS, state)
        expected, plain_state = plain.update(GRADIENTS, plain_state)
        assert_trees_close(updates, expected)


def test_inject_hyperparams_with_a_warm_up_from_zero_starts_from_rest():
    tx = optax.inject_hyperparams(gravity)(learning_rate=optax.linear_schedule(0.0, 0.1, 2), key=0)
    state, update = jax.jit(tx.init)(PARAMS), jax.jit(tx.update)
    velocity = state.inner_state[0].velocity
    assert_trees_identical(velocity, PARAMS)
    for count, learning_rate in enumerate((0.0, 0.05, 0.1, 0.1)):
        updates, state = update(GRADIENTS, state)
        velocity = jax.tree.map(functools.partial(oracle.velocity_after, t=1 + count), GRADIENTS, velocity)
        assert_trees_close(updates, jax.tree.map(lambda v, lr=learning_rate: -lr * v, velocity))
    state.hyperparams["beta"] = jnp.asarray(0.5, jnp.float32)  # may be changed between steps
    velocity = jax.tree.map(functools.partial(oracle.velocity_after, t=5, beta=0.5), GRADIENTS, velocity)
    assert_trees_close(update(GRADIENTS, state)[0], jax.tree.map(lambda v: -0.1 * v, velocity))


@pytest.mark.parametrize("key", [2**31, 2**40, jax.random.key(1)], ids=["2^31", "2^40", "typed"])
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
