"""Max-Step Grad as a choice: the authors' other trials as one-liners, against the oracle, and under JAX and optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import oracle
from gravity_optax import gravity, scale_by_gravity
from trees import F32

VELOCITY = jnp.linspace(0.5, -0.3, 12).reshape(3, 4)
STATIC = ("max_step_grad", "stacked_axes", "velocity_dtype")
trials = pytest.mark.parametrize(("hook", "exact"), oracle.TRIALS.values(), ids=oracle.TRIALS)


def updated(hook, gradient, velocity=VELOCITY, compiled=True):
    """V after one step at t = 1."""
    tx = scale_by_gravity(0.0, key=0, max_step_grad=hook)
    state = tx.init(gradient)._replace(velocity=velocity)
    return (jax.jit(tx.update) if compiled else tx.update)(gradient, state)[0]


def random_matrix(scale=1.0, offset=0.0):
    return jnp.asarray(np.random.default_rng(2).normal(offset, scale, (3, 4)), jnp.float32)


@trials
def test_the_authors_trials_agree_with_the_oracle(hook, exact):
    for scale in (1e-3, 0.5, 20.0):
        gradient = random_matrix(scale)
        expected = oracle.velocity_after(gradient, VELOCITY, t=1, m=exact(np.asarray(gradient, np.float64)))
        np.testing.assert_allclose(updated(hook, gradient), expected, **F32)


def test_none_is_one_over_the_largest_absolute_value():
    for gradient in (random_matrix(), random_matrix(30.0), random_matrix(1e-20), jnp.zeros((3, 4))):
        np.testing.assert_allclose(updated(None, gradient), updated(lambda g: 1 / jnp.max(jnp.abs(g)), gradient), **F32)


@pytest.mark.parametrize("name", ["1/(max G - min G)", "1/std G"])
@pytest.mark.parametrize("gradient", [jnp.full((3, 4), -0.5), jnp.full((1, 1), 7.0), jnp.float32(2.0)], ids=np.shape)
def test_equal_entries_make_m_infinite_and_leave_the_gradient_whole(name, gradient):
    hook, _ = oracle.TRIALS[name]
    assert jnp.isinf(hook(gradient))
    velocity = jnp.ones_like(gradient)
    expected = oracle.velocity_after(gradient, velocity, t=1, m=np.inf)
    np.testing.assert_allclose(updated(hook, gradient, velocity), expected, **F32)
    np.testing.assert_allclose(expected, 1.9 / 3 * velocity + 1.1 / 3 * gradient, rtol=1e-6)


@pytest.mark.parametrize(
    ("hook", "gradient"),
    [
        (oracle.TRIALS["1/(max G - min G)"][0], jnp.linspace(-3e38, 3e38, 12).reshape(3, 4)),  # whose range overflows
        (oracle.TRIALS["1/std G"][0], jnp.linspace(-1e30, 1e30, 12).reshape(3, 4)),  # whose squares overflow
        (oracle.TRIALS["max|G|"][0], jnp.zeros((3, 4))),
        (oracle.TRIALS["max G"][0], jnp.linspace(-4, 0, 12).reshape(3, 4)),
        (lambda g: 0.0, random_matrix()),
        (lambda g: 0, random_matrix()),
    ],
    ids=["range", "std", "zeros", "max", "constant", "int"],
)
def test_m_of_zero_only_decays_the_velocity(hook, gradient):
    assert hook(gradient) == 0
    expected = oracle.velocity_after(gradient, VELOCITY, t=1, m=0)
    np.testing.assert_allclose(updated(hook, gradient), expected, **F32)
    np.testing.assert_allclose(expected, VELOCITY * 1.9 / 3, rtol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(("g", "m"), [(1e30, 1e5), (1e38, 1e10), (1e10, 1e-10), (1e38, 1e38)])
def test_a_gradient_far_above_m_leaves_the_small_step_that_the_equations_say(g, m, compiled):
    # In float32 the square of g / m overflows; compiled, XLA joins divisions that follow each other.
    gradient, m = jnp.float32(g), float(np.float32(m))
    expected = oracle.velocity_after(gradient, 0.0, t=1, m=m)
    velocity = updated(lambda _: m, gradient, jnp.float32(0), compiled)
    np.testing.assert_allclose(velocity, expected, rtol=2e-6)


def test_a_negative_m_counts_by_its_size():
    gradient = random_matrix(0.1, offset=-1.0)
    assert jnp.max(gradient) < 0
    np.testing.assert_array_equal(updated(lambda g: jnp.max(g), gradient), updated(lambda g: -jnp.max(g), gradient))
    assert jnp.abs(updated(lambda g: jnp.max(g), gradient) - VELOCITY * 1.9 / 3).min() > 0.05


def test_every_leaf_has_its_own_m_and_empty_leaves_are_not_asked():
    seen = []

    def hook(g):
        seen.append((g.shape, g.dtype))
        return 1 / jnp.max(jnp.abs(g))

    params = {"b": jnp.zeros(3, jnp.bfloat16), "empty": jnp.zeros((0, 2)), "w": jnp.zeros((2, 2))}
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 0.5 if p.ndim == 1 else 3.0), params)
    updates, _ = (tx := scale_by_gravity(0.0, key=0, max_step_grad=hook)).update(gradients, tx.init(params))
    assert seen == [((3,), jnp.float32), ((2, 2), jnp.float32)]
    np.testing.assert_allclose(updates["w"], 1.1 / 3 * 3 / 82, rtol=1e-6)
    np.testing.assert_allclose(np.float32(updates["b"]), 1.1 / 3 * 0.5 / 1.0625, rtol=4e-3)
    assert updates["empty"].shape == (0, 2)


def test_a_jitted_step_traces_the_hook_once():
    traces = []
    tx = gravity(0.1, key=0, max_step_grad=lambda g: traces.append(g) or 0.5)
    update, state = jax.jit(tx.update), tx.init(VELOCITY)
    for scale in (1.0, 2.0, 3.0):
        _, state = update(random_matrix(scale), state)
    assert len(traces) == 1


# ---- leaves split by hand


@pytest.mark.parametrize("spec", [P("x"), P(None, "x")], ids=str)
def test_pmax_in_the_hook_serves_leaves_split_inside_shard_map(spec):
    params = {"w": jnp.zeros((8, 16)), "v": jnp.zeros((16, 8))}
    rng = np.random.default_rng(3)
    gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 2, p.shape), jnp.float32), params)
    split = scale_by_gravity(0.1, key=0, max_step_grad=lambda g: 1 / jax.lax.pmax(jnp.max(jnp.abs(g)), "x"))
    whole, alone = scale_by_gravity(0.1, key=0), scale_by_gravity(0.1, key=0)
    state = whole.init(params)
    state_spec = state._replace(count=P(), velocity=spec)

    def run(tx):
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        specs = {"in_specs": (spec, state_spec), "out_specs": (spec, state_spec)}
        return jax.jit(jax.shard_map(tx.update, mesh=mesh, **specs))(gradients, state)

    expected = jax.jit(whole.update)(gradients, state)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **F32), run(split), expected)
    # Without the hook each device takes the maximum of its part.
    assert max(np.abs(run(alone)[0][name] - expected[0][name]).max() for name in params) > 1e-3


# ---- optax.inject_hyperparams


def test_inject_hyperparams_needs_nothing_at_the_defaults_and_static_args_otherwise():
    hook = oracle.TRIALS["1/std G"][0]
    gradient = random_matrix()
    plain = optax.inject_hyperparams(gravity)(0.1, key=0)
    given = {"max_step_grad": hook, "stacked_axes": 1, "velocity_dtype": jnp.bfloat16}
    chosen = optax.inject_hyperparams(gravity, static_args=STATIC)(0.1, key=0, **given)
    for tx, expected_tx in ((plain, gravity(0.1, key=0)), (chosen, gravity(0.1, key=0, **given))):
        updates, state = jax.jit(tx.update)(gradient, jax.jit(tx.init)(VELOCITY))
        expected, expected_state = jax.jit(expected_tx.update)(gradient, expected_tx.init(VELOCITY))
        np.testing.assert_allclose(updates, expected, **F32)
        assert state.inner_state[0].velocity.dtype == expected_state[0].velocity.dtype
        assert {"learning_rate", "alpha", "beta"} <= set(state.hyperparams) and not set(STATIC) & set(state.hyperparams)
