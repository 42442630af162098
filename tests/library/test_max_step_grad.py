"""Max-Step Grad as a choice: the authors' other trials as one-liners, against the oracle, and under JAX and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import oracle
from gravity_optax import gravity, scale_by_gravity
from trees import F32, assert_trees_close

VELOCITY = jnp.linspace(0.5, -0.3, 12).reshape(3, 4)
STATIC = ("max_step_grad", "stacked_axes", "velocity_dtype")
RANGE, STD = (oracle.TRIALS[name][0] for name in ("1/(max G - min G)", "1/std G"))


def updated(hook, gradient, velocity=VELOCITY, compiled=True):
    """V after one step at t = 1."""
    tx = scale_by_gravity(0.0, key=0, max_step_grad=hook)
    state = tx.init(gradient)._replace(velocity=velocity)
    return (jax.jit(tx.update) if compiled else tx.update)(gradient, state)[0]


def random_matrix(scale=1.0, offset=0.0):
    return jnp.asarray(np.random.default_rng(2).normal(offset, scale, (3, 4)), jnp.float32)


@pytest.mark.parametrize(("hook", "exact"), oracle.TRIALS.values(), ids=oracle.TRIALS)
def test_the_authors_trials_agree_with_the_oracle(hook, exact):
    tx = scale_by_gravity(0.0, key=0, max_step_grad=hook)
    update, state = jax.jit(tx.update), tx.init(VELOCITY)._replace(velocity=VELOCITY)
    for scale in (1e-3, 0.5, 20.0):
        gradient = random_matrix(scale)
        expected = oracle.velocity_after(gradient, VELOCITY, t=1, m=exact(np.asarray(gradient, np.float64)))
        np.testing.assert_allclose(update(gradient, state)[0], expected, **F32)


def test_none_is_one_over_the_largest_absolute_value():
    gradients = [random_matrix(), random_matrix(30.0), random_matrix(1e-20), jnp.zeros((3, 4))]
    ours, expected = (updated(hook, gradients, [VELOCITY] * 4) for hook in (None, lambda g: 1 / jnp.max(jnp.abs(g))))
    assert_trees_close(ours, expected)


@pytest.mark.parametrize("hook", [RANGE, STD], ids=["range", "std"])
def test_equal_entries_make_m_infinite_and_leave_the_gradient_whole(hook):
    gradients = [jnp.full((3, 4), -0.5), jnp.full((1, 1), 7.0), jnp.float32(2.0)]
    assert all(jnp.isinf(hook(g)) for g in gradients)
    found = updated(hook, gradients, [jnp.ones_like(g) for g in gradients])
    assert_trees_close(found, [np.float64(1.9 / 3 + 1.1 / 3 * g) for g in gradients])


def test_m_of_zero_only_decays_the_velocity():
    line = jnp.linspace(-1, 1, 12).reshape(3, 4)
    cases = [
        (RANGE, 3e38 * line),  # whose range overflows
        (STD, 1e30 * line),  # whose squares overflow
        (oracle.TRIALS["max|G|"][0], jnp.zeros((3, 4))),
        (oracle.TRIALS["max G"][0], line - 1),
        (lambda g: 0.0, line),
        (lambda g: 0, line),
    ]
    for hook, gradient in cases:
        assert hook(gradient) == 0
        np.testing.assert_allclose(updated(hook, gradient), VELOCITY * 1.9 / 3, **F32)


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
    positive, negative = (updated(hook, gradient) for hook in (lambda g: -jnp.max(g), lambda g: jnp.max(g)))
    np.testing.assert_array_equal(positive, negative)
    assert np.abs(np.asarray(positive - VELOCITY * 1.9 / 3)).min() > 0.05


def test_every_leaf_has_its_own_m_and_empty_leaves_are_not_asked_also_when_called_again():
    seen = []

    def hook(g):
        seen.append((g.shape, g.dtype))
        return 1 / jnp.max(jnp.abs(g))

    params = {"b": jnp.zeros(3, jnp.bfloat16), "empty": jnp.zeros((0, 2)), "w": jnp.zeros((2, 2))}
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 0.5 if p.ndim == 1 else 3.0), params)
    tx = scale_by_gravity(0.0, key=0, max_step_grad=hook)
    state = tx.init(params)
    for _ in range(2):  # a hook may be impure: each eager step asks again
        updates, _ = tx.update(gradients, state)
    assert seen == [((3,), jnp.float32), ((2, 2), jnp.float32)] * 2
    np.testing.assert_allclose(updates["w"], 1.1 / 3 * 3 / 82, rtol=1e-6)
    np.testing.assert_allclose(np.float32(updates["b"]), 1.1 / 3 * 0.5 / 1.0625, rtol=4e-3)
    assert updates["empty"].shape == (0, 2)
    seen.clear()
    update = jax.jit(tx.update)
    update(gradients, update(gradients, state)[1])
    assert len(seen) == 2  # traced once


def test_pmax_in_the_hook_serves_leaves_split_inside_shard_map():
    rng = np.random.default_rng(3)
    gradients = [jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for shape in ((8, 16), (16, 8))]
    split = scale_by_gravity(0.1, key=0, max_step_grad=lambda g: 1 / jax.lax.pmax(jnp.max(jnp.abs(g)), "x"))
    alone = scale_by_gravity(0.1, key=0)
    state = alone.init(gradients)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    specs = P("x"), state._replace(count=P(), velocity=P("x"))
    run = lambda tx: jax.jit(jax.shard_map(tx.update, mesh=mesh, in_specs=specs, out_specs=specs))(gradients, state)
    expected = jax.jit(alone.update)(gradients, state)
    assert_trees_close(run(split), expected)
    # Without the hook each device takes the maximum of its part.
    assert max(np.abs(np.asarray(a) - b).max() for a, b in zip(run(alone)[0], expected[0], strict=True)) > 1e-3


def test_inject_hyperparams_needs_nothing_at_the_defaults_and_static_args_otherwise():
    gradient = random_matrix()
    given = {"max_step_grad": STD, "stacked_axes": 1, "velocity_dtype": jnp.bfloat16}
    for static, options in (((), {}), (STATIC, given)):
        tx, expected_tx = (
            optax.inject_hyperparams(gravity, static)(0.1, key=0, **options),
            gravity(0.1, key=0, **options),
        )
        updates, state = jax.jit(tx.update)(gradient, tx.init(VELOCITY))
        expected, expected_state = jax.jit(expected_tx.update)(gradient, expected_tx.init(VELOCITY))
        np.testing.assert_allclose(updates, expected, **F32)
        assert state.inner_state[0].velocity.dtype == expected_state[0].velocity.dtype
        assert {"learning_rate", "alpha", "beta"} <= set(state.hyperparams) and not set(STATIC) & set(state.hyperparams)
