"""Sharded parameters under `jax.jit` in the automatic mode, on 8 virtual devices: unsharded values, no gathering."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import compat
from gravity_optax import gravity
from trees import SAME_DRAW, assert_trees_close

WIDTHS = {"in": (64, 32), "hidden": (32, 48), "out": (48, 10)}
LARGE = (512, 256)  # 2^17 entries
# Mesh and partition of each leaf. A bias of 10 does not divide by 8 and stays whole, as it would in practice.
LAYOUTS = {
    "fsdp": (
        (8,),
        ("data",),
        {
            "in": {"w": P("data", None), "b": P("data")},
            "hidden": {"w": P(None, "data"), "b": P("data")},
            "out": {"w": P("data", None), "b": P()},
        },
    ),
    "tensor_parallel": (
        (2, 4),
        ("data", "model"),
        {
            "in": {"w": P("data", "model"), "b": P("model")},
            "hidden": {"w": P("model", None), "b": P()},
            "out": {"w": P("model", "data"), "b": P("data")},
        },
    ),
}
COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def params_0():
    rng = np.random.default_rng(0)
    return {
        name: {
            "w": jnp.asarray(rng.normal(size=shape) / 6, jnp.float32),
            "b": jnp.asarray(rng.normal(size=shape[-1]) / 6, jnp.float32),
        }
        for name, shape in WIDTHS.items()
    }


def batch():
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(32, 64)), jnp.float32), jnp.asarray(rng.integers(0, 10, 32), jnp.int32)


def loss_of(params, images, labels):
    hidden = images
    for name in WIDTHS:
        hidden = hidden @ params[name]["w"] + params[name]["b"][None]
        hidden = hidden if name == "out" else jax.nn.relu(hidden)
    return 8 * optax.softmax_cross_entropy_with_integer_labels(hidden, labels).mean()  # 8: some |g| lie above 1


def train(tx, params, images, labels, steps=5):
    state = tx.init(params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (params, state))

    @functools.partial(jax.jit, out_shardings=shardings)
    def step(params, state):
        gradients = jax.grad(loss_of)(params, images, labels)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def shardings_of(layout):
    shape, names, specs = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    return mesh, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def assert_sharded_as(tree, shardings):
    for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def collectives(compiled):
    """The (result type, name) of every operation of a compiled program that communicates with other devices."""
    return COLLECTIVE.findall(compiled.as_text())


@pytest.mark.parametrize("velocity_dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_with_sharded_parameters_gives_the_values_of_one_device(layout, velocity_dtype):
    tx = gravity(0.1, key=0, velocity_dtype=velocity_dtype)
    mesh, shardings = shardings_of(layout)
    images, labels = batch()
    data = jax.device_put((images, labels), NamedSharding(mesh, P("data")))
    with compat.set_mesh(mesh):  # where the counter, which init puts on no device in particular, is to be found
        params, state = train(tx, jax.device_put(params_0(), shardings), *data)
    expected_params, expected_state = train(tx, params_0(), images, labels)
    assert_sharded_as(params, shardings)
    assert_sharded_as(state[0].velocity, shardings)
    for ours, expected in ((params, expected_params), (state[0].velocity, expected_state[0].velocity)):
        # A float32 difference of an ulp can round a bfloat16 velocity the other way, by 2^-8 of it.
        tolerance = 1e-6 if velocity_dtype is None else 2**-8
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_update_of_sharded_parameters_moves_nothing_but_maxima(layout):
    tx = gravity(0.1, key=0)
    _, shardings = shardings_of(layout)
    params = jax.device_put(params_0(), shardings)
    state = tx.init(params)
    compiled = jax.jit(tx.update).lower(params, state, params).compile()  # no out_shardings
    updates, new = compiled(params, state, params)
    assert_sharded_as(updates, shardings)
    assert_sharded_as(new[0].velocity, shardings)
    moved = collectives(compiled)
    assert moved and {name for _, name in moved} == {"all-reduce"}
    numbers = re.compile(r"f32\[([\d,]*)\]")
    assert all(shape == "" for result, _ in moved for shape in numbers.findall(result))


def test_a_compiled_init_draws_the_same_velocity_into_the_shards_of_a_two_dimensional_mesh():
    _, shardings = shardings_of("tensor_parallel")
    params = jax.device_put(params_0(), shardings)
    init = lambda params: gravity(0.1, key=0).init(params)[0].velocity
    compiled = jax.jit(init, out_shardings=shardings).lower(params).compile()
    assert "all-gather" not in {name for _, name in collectives(compiled)}
    velocity = compiled(params)
    assert_sharded_as(velocity, shardings)
    assert_trees_close(velocity, init(params_0()), **SAME_DRAW)


def test_matrices_stacked_along_the_sharded_axis_need_no_communication():
    tx = gravity(0.1, key=0, stacked_axes=1)
    mesh, _ = shardings_of("fsdp")
    params = jax.device_put(jnp.ones((16, 6, 5)), NamedSharding(mesh, P("data")))
    assert collectives(jax.jit(tx.update).lower(params, tx.init(params), params).compile()) == []


@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")], ids=str)
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_a_large_leaf_is_drawn_and_updated_in_its_shards(mode, spec):
    """The maximum is one scalar all-reduce, and no device draws or holds a whole leaf."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(mode,))
    with compat.set_mesh(mesh):
        sharding = NamedSharding(mesh, spec)
        params = [jax.device_put(jnp.ones(LARGE), sharding) for _ in range(3)]
        tx = gravity(0.1, key=0)
        state = tx.init(params)
        assert_sharded_as(state[0].velocity, [sharding] * 3)
        init = lambda params: tx.init(params)[0].velocity
        out = {"out_shardings": [sharding] * 3} if mode == AxisType.Auto else {}
        drawn = jax.jit(init, **out).lower(params).compile()
        update = jax.jit(tx.update).lower(params, state).compile()
        assert_sharded_as(drawn(params), [sharding] * 3)
        assert collectives(drawn) == []
        assert [name for _, name in collectives(update)] == ["all-reduce"]
        numbers = re.findall(r"f32\[([\d,]*)\]", collectives(update)[0][0])
        assert numbers and set(numbers) == {""}
        for program in (drawn, update):
            assert f"[{LARGE[0]},{LARGE[1]}]" not in program.as_text().split("ENTRY")[1]
    for ours, expected in zip(state[0].velocity, tx.init([jnp.ones(LARGE)] * 3)[0].velocity, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(expected), **SAME_DRAW)
