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


def maybe_jit(compiled):
    return jax.jit if compiled else lambda f: f


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


def test_a_key_of_another_generator_is_used():
    velocity = gravity(0.1, key=jax.random.key(4, impl="rbg")).init(jnp.zeros(10**4))[0].velocity
    assert np.std(velocity) == pytest.approx(0.1, rel=0.05)
    assert not np.array_equal(velocity, gravity(0.1, key=4).init(jnp.zeros(10**4))[0].velocity)


def folded(key, *numbers):
    return functools.reduce(jax.random.fold_in, numbers, key)


def nnx_weights():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    return [nnx.Linear(96, 64, use_bias=False, rngs=rngs).kernel[...] for _ in range(3)]


def equinox_weights():
    eqx = pytest.importorskip("equinox")
    return [eqx.nn.Linear(96, 64, use_bias=False, key=jax.random.key(0)).weight]


# The key that the weights are drawn with, or the weights.
WEIGHTS = {
    "the key itself": lambda key: [key],
    "split": lambda key: [*jax.random.split(key, 3)],
    "one of a split": lambda key: [jax.random.split(key, 3)[0]],
    "fold_in": lambda key: [folded(key, i) for i in range(3)],
    "fold_in twice": lambda key: [folded(key, 0, i) for i in range(3)],
    "nnx": nnx_weights,
    "equinox": equinox_weights,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_first_velocity_is_independent_of_weights_drawn_with_the_same_key(name):
    if name in ("nnx", "equinox"):
        params = WEIGHTS[name]()
    else:
        params = [jax.random.normal(key, (96, 64)) for key in WEIGHTS[name](jax.random.key(0))]
    velocity = gravity(0.1, key=0).init(params)[0].velocity
    for w, v in zip(params, velocity, strict=True):
        assert abs(np.corrcoef(np.ravel(w), np.ravel(v))[0, 1]) < 0.1


# ---- the learning rate and its schedule


def test_defaults_are_the_papers():
    tx, spelled_out = gravity(key=0), gravity(0.1, 0.01, 0.9, key=0, first_step=1)
    assert_trees_identical(tx.init(PARAMS), spelled_out.init(PARAMS))
    assert_trees_identical(tx.update(GRADIENTS, tx.init(PARAMS)), spelled_out.update(GRADIENTS, tx.init(PARAMS)))
    scale, spelled_out = scale_by_gravity(key=0), scale_by_gravity(0.1, 0.9, key=0, first_step=1)
    assert_trees_identical(scale.init(PARAMS), spelled_out.init(PARAMS))


def python_if(count):
    return 0.2 if count >= 16 else 0.01 * float(count)


def numpy_where(count):
    return np.where(np.asarray(count) < 10, 0.2, 0.1)


# The largest value of each is 0.2.
SCHEDULES = {
    "linear": optax.linear_schedule(0.2, 0.1, 2),
    "warm-up from 0": optax.warmup_cosine_decay_schedule(0.0, 0.2, 50, 500),
    "joined": optax.join_schedules([optax.linear_schedule(0.0, 0.2, 10), optax.constant_schedule(0.1)], [11]),
    "piecewise": optax.piecewise_constant_schedule(0.05, {100: 4.0, 200: 0.1}),
    "cosine": optax.cosine_decay_schedule(0.2, 1000),
    "exponential": optax.exponential_decay(0.2, 100, 0.9),
    "restarts": optax.sgdr_schedule(
        [{"init_value": 1e-5, "peak_value": 0.2, "warmup_steps": 5, "decay_steps": 50, "end_value": 0.0}] * 2
    ),
    "one cycle": optax.cosine_onecycle_schedule(1000, 0.2),
    "Python if": python_if,
    "NumPy": numpy_where,
    "NumPy number": lambda count: np.float32(0.2),
}


@jax.numpy_dtype_promotion("standard")  # optax's cosine takes the smaller of an int32 and a float
@pytest.mark.parametrize(
    ("name", "compiled"),
    [*((name, False) for name in SCHEDULES), ("linear", True), ("Python if", True), ("NumPy", True)],
)
def test_the_largest_value_of_a_schedule_sets_the_first_velocity(name, compiled):
    schedule = SCHEDULES[name]
    tx = gravity(schedule, key=0)
    state = maybe_jit(compiled)(tx.init)(PARAMS)
    assert_trees_close(state[0].velocity, gravity(0.2, key=0).init(PARAMS)[0].velocity)
    updates, state = tx.update(GRADIENTS, state)  # whose step is that of the schedule at 0
    assert_trees_close(updates, jax.tree.map(lambda v: -float(schedule(jnp.int32(0))) * v, state[0].velocity))


@pytest.mark.parametrize(
    ("value", "compiled"),
    [(0.0, False), (-0.5, True), (float("nan"), False), (float("nan"), True), (float("inf"), False)],
)
def test_a_schedule_that_is_never_positive_or_not_finite_is_an_error_that_names_the_way_out(value, compiled):
    tx = gravity(optax.constant_schedule(value), key=0)
    with pytest.raises(ValueError, match=rf"learning_rate is a schedule .* is {value}, .*set velocity_stddev"):
        maybe_jit(compiled)(tx.init)(PARAMS)


@pytest.mark.parametrize("transform", [jax.vmap, lambda f: jax.jit(jax.vmap(f))], ids=["vmap", "jit"])
def test_the_peak_of_a_schedule_may_be_traced(transform):
    """Many peaks at once, one of them below alpha, where a bare array would be taken for the start of a warm-up."""

    def velocity(peak):
        tx = gravity(lambda count: peak * jnp.minimum(count.astype(jnp.float32) / 5, 1), key=5)
        return tx.init(jnp.zeros(1000))[0].velocity

    peaks = (0.1, 0.05, 0.002)
    found = transform(velocity)(jnp.array(peaks))
    for peak, drawn in zip(peaks, found, strict=True):
        expected = gravity(peak, key=5).init(jnp.zeros(1000))[0].velocity
        np.testing.assert_allclose(drawn, expected, rtol=1e-6)


def test_velocity_stddev_stands_for_alpha_over_learning_rate():
    def never_called(count):
        raise AssertionError

    expected = scale_by_gravity(0.3, key=0).init(PARAMS).velocity
    for learning_rate in (0.1, jnp.float32(0), never_called):
        assert_trees_identical(gravity(learning_rate, key=0, velocity_stddev=0.3).init(PARAMS)[0].velocity, expected)
    injected = optax.inject_hyperparams(gravity)(optax.linear_schedule(0.0, 0.1, 10), key=0, velocity_stddev=0.3)
    assert_trees_close(injected.init(PARAMS).inner_state[0].velocity, expected)


@pytest.mark.parametrize(
    ("learning_rate", "stddev"), [(0.1, 0.1), (0.01, 1), (0.0099, 0), (1e-6, 0), (0, 0), (1e-45, 0)]
)
def test_a_learning_rate_array_below_alpha_starts_from_rest(learning_rate, stddev):
    velocity = gravity(jnp.float32(learning_rate), key=0).init(PARAMS)[0].velocity
    assert_trees_close(velocity, scale_by_gravity(stddev, key=0).init(PARAMS).velocity)
    size = lambda rate: jnp.sum(jnp.abs(gravity(rate, key=0).init(jnp.zeros(3))[0].velocity))
    assert jnp.isfinite(jax.grad(size)(jnp.float32(learning_rate)))


def regression():
    """Parameters and the loss of a small network, 1.0 at the start."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(256, 16)), rng.normal(size=(16, 4))
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(np.tanh(x @ w / 2), jnp.float32)
    params = {"in": rng.normal(size=(16, 32)) / 4, "out": rng.normal(size=(32, 4)) / 6}
    loss = lambda params: jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)
    return jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params), loss


def loss_after(tx, steps=500):
    params, loss = regression()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return float(loss(jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))((params, tx.init(params)))[0][0]))


@jax.numpy_dtype_promotion("standard")  # optax's cosine takes the smaller of an int32 and a float
@pytest.mark.parametrize("start", [0, 1e-6, 1e-3, 1e-2])
def test_a_warm_up_from_any_rate_trains_as_well_as_without(start):
    # V_0 of alpha / start would be carried into the weights: 5 for a start of 1e-4, 5e6 for one of 1e-6.
    schedule = optax.warmup_cosine_decay_schedule(start, 0.1, 50, 500)
    for tx in (gravity(schedule, key=0), optax.inject_hyperparams(gravity)(schedule, key=0)):
        assert loss_after(tx) < 0.08  # 0.05 with a constant 0.1


# ---- optax.inject_hyperparams


@pytest.mark.parametrize(("key", "compiled"), [(0, False), (jax.random.key(0), True)], ids=["int, eager", "typed, jit"])
def test_inject_hyperparams_needs_no_static_arguments(key, compiled):
    tx, plain = optax.inject_hyperparams(gravity)(learning_rate=0.1, key=key), gravity(0.1, key=key)
    init, update = maybe_jit(compiled)(tx.init), maybe_jit(compiled)(tx.update)
    state, plain_state = init(PARAMS), plain.init(PARAMS)
    assert_trees_close(state.inner_state[0].velocity, plain_state[0].velocity)
    for _ in range(3):
        updates, state = update(GRADIENTS, state)
        expected, plain_state = plain.update(GRADIENTS, plain_state)
        assert_trees_close(updates, expected)


def test_inject_hyperparams_with_a_warm_up_from_zero_starts_from_rest():
    tx = optax.inject_hyperparams(gravity)(learning_rate=optax.linear_schedule(0.0, 0.1, 2), key=0)
    state = jax.jit(tx.init)(PARAMS)
    assert_trees_identical(state.inner_state[0].velocity, PARAMS)
    velocity = PARAMS
    for count, learning_rate in enumerate((0.0, 0.05, 0.1, 0.1)):
        updates, state = jax.jit(tx.update)(GRADIENTS, state)
        velocity = jax.tree.map(functools.partial(oracle.velocity_after, t=1 + count), GRADIENTS, velocity)
        assert_trees_close(updates, jax.tree.map(lambda v, lr=learning_rate: -lr * v, velocity))


def test_injected_learning_rate_and_beta_can_be_changed():
    tx = optax.inject_hyperparams(gravity)(learning_rate=0.1, key=0)
    state = tx.init(PARAMS)
    _, state = jax.jit(tx.update)(GRADIENTS, state)
    state.hyperparams["learning_rate"] = jnp.asarray(0.02, jnp.float32)
    state.hyperparams["beta"] = jnp.asarray(0.5, jnp.float32)
    before = state.inner_state[0].velocity
    updates, state = jax.jit(tx.update)(GRADIENTS, state)
    expected = jax.tree.map(functools.partial(oracle.velocity_after, t=2, beta=0.5), GRADIENTS, before)
    assert_trees_close(updates, jax.tree.map(lambda v: -0.02 * v, expected))


@pytest.mark.parametrize("key", [2**31, 2**40, jax.random.key(1)], ids=["2^31", "2^40", "typed"])
def test_a_key_named_in_static_args_stays_out_of_the_state(key):
    tx = optax.inject_hyperparams(gravity, static_args="key")(learning_rate=0.1, key=key)
    state = tx.init(PARAMS)
    assert "key" not in state.hyperparams
    assert_trees_close(state.inner_state[0].velocity, gravity(0.1, key=key).init(PARAMS)[0].velocity)
    if importlib.util.find_spec("flax"):
        from flax import serialization

        assert_trees_identical(serialization.from_bytes(state, serialization.to_bytes(state)), state)
    step = jax.jit(lambda state: tx.update(GRADIENTS, state)[1], donate_argnums=0)
    step(step(state))  # a key in the state would have been donated with it
    tx.init(PARAMS)


# ---- keys that are used once, ensembles, and the range of a dtype


def test_init_may_be_called_again_where_jax_checks_that_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        for key in (0, jax.random.key(0), jax.random.PRNGKey(0)):
            tx = gravity(0.1, key=key)
            assert_trees_identical(tx.init(PARAMS), tx.init(PARAMS))


def test_members_of_an_ensemble_differ_with_a_key_each():
    members = jax.tree.map(lambda p: jnp.stack([p] * 3), PARAMS)
    same = jax.vmap(gravity(0.1, key=0).init)(members)[0].velocity["w"]
    np.testing.assert_array_equal(same[0], same[1])
    keys = jax.random.split(jax.random.key(0), 3)
    own = jax.vmap(lambda key, params: gravity(0.1, key=key).init(params))(keys, members)[0].velocity["w"]
    for i in range(3):
        np.testing.assert_allclose(own[i], gravity(0.1, key=keys[i]).init(PARAMS)[0].velocity["w"], rtol=1e-6)
        assert (own[i] != own[i - 1]).all()


@pytest.mark.parametrize(
    ("dtype", "too_large", "largest"),
    [(jnp.float16, 7e4, 6e4), (jnp.bfloat16, 3.4e38, 3.3e38), (jnp.float32, 1e39, 3.3e38)],
    ids=["float16", "bfloat16", "float32"],
)
@pytest.mark.parametrize("which", ["parameter", "velocity_dtype"])
def test_a_standard_deviation_beyond_the_velocitys_dtype_is_an_error_that_names_the_leaf(
    dtype, too_large, largest, which
):
    params = {"w": jnp.zeros(3, dtype if which == "parameter" else jnp.float32)}
    chosen = None if which == "parameter" else dtype
    message = rf"velocity_stddev \(alpha / learning_rate\) is {too_large:g}, above .*{jnp.dtype(dtype)}.*params\['w'\]"
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        gravity(1.0, too_large, key=0, velocity_dtype=chosen).init(params)
    velocity = gravity(1.0, largest, key=0, velocity_dtype=chosen).init(params)[0].velocity["w"]
    assert velocity.dtype == dtype and jnp.isfinite(velocity).all()
