"""Gravity under JAX's transformations, on several devices and inside optax's other transformations, by value."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
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


def plain(steps, tx=TX):
    """Parameters and state after some steps of the same gradients, eagerly and on one device."""
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# ---- JAX's transformations


def test_jit_gives_the_eager_values():
    state = jax.jit(TX.init)(PARAMS)
    assert_trees_close(state, TX.init(PARAMS), **SAME_DRAW)
    assert_trees_close(jax.jit(TX.update)(GRADIENTS, state), TX.update(GRADIENTS, state))


def test_vmap_over_states_takes_each_states_own_count_and_velocity():
    states = [plain(n)[1] for n in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(TX.update, in_axes=(None, 0)))(GRADIENTS, stacked))
    for i, state in enumerate(states):
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], found), TX.update(GRADIENTS, state))


def test_shard_map_with_replicated_params_gives_the_values_of_one_device():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def step(weight, params, state):
        gradients = jax.lax.pmean(jax.tree.map(lambda g: weight[0] * g, GRADIENTS), "x")
        updates, state = TX.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P("x"), P(), P()), out_specs=P()))
    assert_trees_close(mapped(jnp.arange(8.0) / 3.5, PARAMS, TX.init(PARAMS)), plain(1))


def test_eval_shape_of_init_and_update():
    state, real = jax.eval_shape(TX.init, PARAMS), TX.init(PARAMS)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
    shape_of = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shape_of(state) == shape_of(real)
    assert shape_of(jax.eval_shape(TX.update, GRADIENTS, state)) == shape_of(TX.update(GRADIENTS, real))
    assert_trees_close(TX.init(jax.eval_shape(lambda: PARAMS)), real, **SAME_DRAW)


def test_gradients_flow_through_updates_and_are_finite():
    def loss(gradient, learning_rate):
        """After three steps, of which it has derivatives by the gradient and by the learning rate."""
        tx = gravity(learning_rate, key=0)
        params = jnp.array([1.0, 2.0, 3.0])
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sum(params**2)

    rows = [[0.0, 0, 0], [0.5, -0.25, 0.1], [1, 0, 0], [1e-25, 0, 1e-30], [30, 1, 0], [1e20, 1, 0]]
    by_gradient, by_rate = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None)))(jnp.array(rows), 0.1)
    assert jnp.isfinite(by_gradient).all() and jnp.isfinite(by_rate).all()
    assert (np.asarray(by_gradient)[0] < -0.1).all()  # zeta is G there: the derivative is that of gradient descent


def test_derivatives_through_an_update_are_those_of_the_equations():
    # Alone in its leaf, zeta = g / (1 + g^4), whose slope is -1/2 at g = m = 1.
    tx = scale_by_gravity(0.0, key=0, first_step=0)
    g = np.array([0.3, 1.0, 1.7])
    slopes = jax.jit(jax.vmap(jax.grad(lambda g: 2 * tx.update(g, tx.init(g))[0])))(jnp.float32(g))
    np.testing.assert_allclose(slopes, (1 - 3 * g**4) / (1 + g**4) ** 2, rtol=1e-4)


# ---- many devices


@pytest.mark.parametrize(
    ("compiled", "specs"),
    [(False, {"w": P("x", None), "b": P("x")}), (True, {"w": P("x", None), "b": P()})],
    ids=["eager", "jit"],
)
def test_explicit_mode_keeps_the_sharding_of_the_params_and_the_values_of_one_device(compiled, specs):
    expected_0, expected = TX.init(PARAMS), plain(2)
    init, update = (jax.jit(TX.init), jax.jit(TX.update)) if compiled else (TX.init, TX.update)
    sharding = functools.partial(jax.tree.map, lambda leaf: jax.typeof(leaf).sharding)
    with compat.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))):
        params, gradients = (jax.tree.map(compat.reshard, tree, specs) for tree in (PARAMS, GRADIENTS))
        state = init(params)
        assert_trees_close(state[0].velocity, expected_0[0].velocity, **SAME_DRAW)
        for _ in range(2):
            assert sharding(state[0].velocity) == sharding(params) == sharding(gradients)
            updates, state = update(gradients, state, params)
            assert sharding(updates) == sharding(params)
            params = optax.apply_updates(params, updates)
    assert_trees_close((params, state), expected)


def test_velocity_of_params_put_on_one_device_is_put_there_and_of_others_on_none_in_particular():
    device = jax.devices()[3]
    velocity = TX.init(jax.device_put(PARAMS, device))[0].velocity
    assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(velocity))
    free = TX.init(PARAMS)[0].velocity
    assert not any(leaf.committed for leaf in jax.tree.leaves(free))
    assert_trees_close(velocity, free, **SAME_DRAW)


# ---- optax


def test_gravity_is_the_chain_of_scale_by_gravity_and_the_learning_rate():
    chain = optax.chain(scale_by_gravity(0.01 / 0.1, key=0), optax.scale_by_learning_rate(0.1))
    assert_trees_identical(plain(3, chain), plain(3))


def test_map_params_reaches_the_velocity_and_nothing_else():
    state = TX.init(PARAMS)
    named = optax.tree.map_params(TX, lambda _, w: w, state, PARAMS)
    assert_trees_identical(named[0].velocity, PARAMS)
    assert_trees_identical(named[0].count, state[0].count)


def test_velocity_is_found_and_set_by_name():
    state = plain(1)[1]
    assert_trees_identical(optax.tree.get(state, "velocity"), state[0].velocity)
    assert optax.tree.get(state, "count") == 1
    _, after = TX.update(GRADIENTS, optax.tree.set(state, velocity=PARAMS))
    expected = jax.tree.map(functools.partial(oracle.velocity_after, t=2), GRADIENTS, PARAMS)
    assert_trees_close(after[0].velocity, expected)
