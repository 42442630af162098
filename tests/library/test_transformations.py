"""Gravity under JAX's transformations, on several devices and inside optax's other transformations, by value."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import compat
import oracle
from gravity_optax import gravity, scale_by_gravity
from trees import SAME_DRAW, assert_trees_close, assert_trees_identical

PARAMS = {"w": jnp.linspace(-1, 1, 32).reshape(8, 4), "b": jnp.ones(16)}
GRADIENTS = {"w": jnp.linspace(-2, 3, 32).reshape(8, 4), "b": jnp.linspace(-0.5, 0.25, 16)}
TX = gravity(0.1, key=0)


def scaled(tree, factor):
    return jax.tree.map(lambda x: factor * x, tree)


def plain(steps, tx=TX, gradients=GRADIENTS):
    """Parameters and state after some steps of the same gradients, eagerly and on one device."""
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def auto_mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def explicit_mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))


# ---- JAX's transformations


def test_jit_gives_the_eager_values():
    state = jax.jit(TX.init)(PARAMS)
    assert_trees_close(state, TX.init(PARAMS), **SAME_DRAW)
    assert_trees_close(jax.jit(TX.update)(GRADIENTS, state), TX.update(GRADIENTS, state))


def test_vmap_over_states_takes_each_states_own_count_and_velocity():
    states = [plain(n)[1] for n in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    updates, new = jax.vmap(TX.update, in_axes=(None, 0))(GRADIENTS, stacked)
    for i, state in enumerate(states):
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], (updates, new)), TX.update(GRADIENTS, state))


def test_shard_map_with_replicated_params_gives_the_values_of_one_device():
    mesh = auto_mesh()

    def step(weight, params, state):
        gradients = jax.lax.pmean(scaled(GRADIENTS, weight[0]), "x")
        updates, state = TX.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P("x"), P(), P()), out_specs=P()))
    assert_trees_close(mapped(jnp.arange(8.0) / 3.5, PARAMS, TX.init(PARAMS)), plain(1))


def test_eval_shape_of_init_and_update():
    state = jax.eval_shape(TX.init, PARAMS)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
    real = TX.init(PARAMS)
    shape_of = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shape_of(state) == shape_of(real)
    assert shape_of(jax.eval_shape(TX.update, GRADIENTS, state)) == shape_of(TX.update(GRADIENTS, real))
    assert_trees_close(TX.init(jax.eval_shape(lambda: PARAMS)), real, **SAME_DRAW)


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1))
def meta_gradient(gradient, learning_rate):
    """The derivatives of a loss after three steps, by the gradient they were taken with and by the learning rate."""
    tx = gravity(learning_rate, key=0)
    params = jnp.array([1.0, 2.0, 3.0])
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return jnp.sum(params**2)


@pytest.mark.parametrize(
    "gradient",
    [[0.5, -0.25, 0.1], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1e-25, 0.0, 1e-30], [30.0, 1.0, 0.0], [1e20, 1.0, 0.0]],
    ids=str,
)
def test_gradients_flow_through_updates_and_are_finite(gradient):
    by_gradient, by_learning_rate = meta_gradient(jnp.array(gradient), 0.1)
    assert jnp.isfinite(by_gradient).all() and jnp.isfinite(by_learning_rate)
    if max(gradient) == 0:  # zeta is G there, so that the derivative is that of gradient descent
        assert (by_gradient < -0.1).all()


def test_derivatives_through_an_update_are_those_of_the_equations():
    # d zeta / d g at g = m = 1 alone in its leaf: zeta = g / (1 + g^4), whose slope is -1/2 at 1.
    tx = scale_by_gravity(0.0, key=0, first_step=0)
    for g in (0.3, 1.0, 1.7):
        slope = jax.grad(lambda g: 2 * tx.update(g, tx.init(g))[0])(jnp.float32(g))
        assert float(slope) == pytest.approx((1 - 3 * g**4) / (1 + g**4) ** 2, rel=1e-4)


# ---- many devices


SPECS = [{"w": P("x", None), "b": P("x")}, {"w": P(), "b": P("x")}]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("specs", SPECS, ids=str)
def test_explicit_mode_keeps_the_sharding_of_the_params_and_the_values_of_one_device(specs, compiled):
    expected_0, expected = TX.init(PARAMS), plain(2)
    with compat.set_mesh(explicit_mesh()):
        params = {name: compat.reshard(PARAMS[name], spec) for name, spec in specs.items()}
        gradients = {name: compat.reshard(GRADIENTS[name], spec) for name, spec in specs.items()}
        init, update = (jax.jit(TX.init), jax.jit(TX.update)) if compiled else (TX.init, TX.update)
        state = init(params)
        assert_trees_close(state[0].velocity, expected_0[0].velocity, **SAME_DRAW)
        for _ in range(2):
            for name in params:
                assert jax.typeof(state[0].velocity[name]).sharding == jax.typeof(params[name]).sharding
            updates, state = update(gradients, state, params)
            for name in params:
                assert jax.typeof(updates[name]).sharding == jax.typeof(params[name]).sharding
            params = optax.apply_updates(params, updates)
        for name in params:
            assert jax.typeof(state[0].velocity[name]).sharding == jax.typeof(gradients[name]).sharding
    assert_trees_close((params, state), expected)


def test_velocity_of_params_put_on_one_device_is_put_there():
    device = jax.devices()[3]
    velocity = TX.init(jax.device_put(PARAMS, device))[0].velocity
    assert {leaf.devices() == {device} for leaf in jax.tree.leaves(velocity)} == {True}
    assert_trees_close(velocity, TX.init(PARAMS)[0].velocity, **SAME_DRAW)


# ---- optax


def test_gravity_is_the_chain_of_scale_by_gravity_and_the_learning_rate():
    chain = optax.chain(scale_by_gravity(0.01 / 0.1, key=0), optax.scale_by_learning_rate(0.1))
    assert_trees_identical(plain(3, chain), plain(3))


def test_map_params_reaches_the_velocity_and_nothing_else():
    state = TX.init(PARAMS)
    doubled = optax.tree.map_params(TX, lambda v: 2 * v, state)
    assert_trees_identical(doubled[0].velocity, scaled(state[0].velocity, 2))
    assert_trees_identical(doubled[0].count, state[0].count)
    named = optax.tree.map_params(TX, lambda _, w: w, state, PARAMS)
    assert_trees_identical(named[0].velocity, PARAMS)


def test_velocity_is_found_and_set_by_name():
    state = plain(1)[1]
    assert_trees_identical(optax.tree.get(state, "velocity"), state[0].velocity)
    assert optax.tree.get(state, "count") == 1
    changed = optax.tree.set(state, velocity=PARAMS)
    _, after = TX.update(GRADIENTS, changed)
    expected = jax.tree.map(functools.partial(oracle.velocity_after, t=2), GRADIENTS, PARAMS)
    assert_trees_close(after[0].velocity, expected)
