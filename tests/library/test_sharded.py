"""Sharded parameters under `jax.jit` on 8 virtual devices: unsharded values, and nothing is gathered."""

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

LARGE = (512, 256)  # 2^17 entries
WIDTHS = {"in": (64, 32), "out": (32, 10)}
# Mesh and partition of each leaf. A bias of 10 does not divide by 8 and stays whole, as it would in practice.
LAYOUTS = {
    "fsdp": ((8,), ("data",), {"in": (P("data", None), P("data")), "out": (P("data", None), P())}),
    "tensor_parallel": (
        (2, 4),
        ("data", "model"),
        {"in": (P("data", "model"), P("model")), "out": (P("model", None), P("data"))},
    ),
}
COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def params_0():
    return {name: (random(shape) / 6, random(shape[-1]) / 6) for name, shape in WIDTHS.items()}


def loss_of(params, images, labels):
    (w1, b1), (w2, b2) = params["in"], params["out"]
    logits = jax.nn.relu(images @ w1 + b1[None]) @ w2 + b2[None]
    return 8 * optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()  # 8: some |g| lie above 1


def train(tx, params, images, labels, steps=3):
    state = tx.init(params)

    @functools.partial(jax.jit, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, (params, state)))
    def step(params, state):
        updates, state = tx.update(jax.grad(loss_of)(params, images, labels), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state[0].velocity


def shardings_of(layout):
    shape, names, specs = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    return mesh, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def assert_sharded_as(tree, shardings):
    for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def collectives(compiled):
    """The (shapes of the results, name) of every operation of a compiled program that communicates with devices."""
    found = COLLECTIVE.findall(compiled.as_text())
    return [({*re.findall(r"f32\[([\d,]*)\]", result)}, name) for result, name in found]


def assert_close(ours, expected, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


def test_training_with_sharded_parameters_gives_the_values_of_one_device():
    tx = gravity(0.1, key=0)
    mesh, shardings = shardings_of("fsdp")
    data = random((32, 64), 1), jnp.arange(32) % 10
    with compat.set_mesh(mesh):  # where the counter, which init puts on no device in particular, is to be found
        ours = train(tx, jax.device_put(params_0(), shardings), *jax.device_put(data, NamedSharding(mesh, P("data"))))
    for tree in ours:
        assert_sharded_as(tree, shardings)
    assert_close(ours, train(tx, params_0(), *data), 1e-6)


@pytest.mark.parametrize(("layout", "velocity_dtype"), [("fsdp", None), ("tensor_parallel", jnp.bfloat16)])
def test_an_update_of_sharded_parameters_moves_nothing_but_maxima(layout, velocity_dtype):
    tx = gravity(0.1, key=0, velocity_dtype=velocity_dtype)
    _, shardings = shardings_of(layout)
    params = jax.device_put(params_0(), shardings)
    state = tx.init(params)
    compiled = jax.jit(tx.update).lower(params, state).compile()  # no out_shardings
    updates, new = compiled(params, state)
    assert_sharded_as(updates, shardings)
    assert_sharded_as(new[0].velocity, shardings)
    expected, expected_state = jax.jit(tx.update)(params_0(), tx.init(params_0()))
    # A float32 difference of an ulp can round a bfloat16 velocity the other way, by 2^-8 of it.
    tolerance = 1e-6 if velocity_dtype is None else 2**-8
    assert_close((updates, new[0].velocity), (expected, expected_state[0].velocity), tolerance)
    moved = collectives(compiled)
    assert moved and all(name == "all-reduce" and shapes == {""} for shapes, name in moved)


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
    assert collectives(jax.jit(tx.update).lower(params, tx.init(params)).compile()) == []


@pytest.mark.parametrize(("mode", "spec"), [(AxisType.Auto, P("x", None)), (AxisType.Explicit, P(None, "x"))], ids=str)
def test_a_large_leaf_is_drawn_and_updated_in_its_shards(mode, spec):
    """The maxima are one scalar all-reduce, and no device draws or holds a whole leaf."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(mode,))
    tx = gravity(0.1, key=0)
    whole = [jnp.ones(LARGE)] * 2
    with compat.set_mesh(mesh):
        shardings = [NamedSharding(mesh, spec)] * 2
        params = jax.device_put(whole, shardings)
        state = tx.init(params)
        assert_sharded_as(state[0].velocity, shardings)
        out = {"out_shardings": shardings} if mode == AxisType.Auto else {}
        drawn = jax.jit(lambda params: tx.init(params)[0].velocity, **out).lower(params).compile()
        assert_sharded_as(drawn(params), shardings)
        update = jax.jit(tx.update).lower(params, state).compile()
        assert collectives(drawn) == [] and collectives(update) == [({""}, "all-reduce")]
        for program in (drawn, update):
            assert f"[{LARGE[0]},{LARGE[1]}]" not in program.as_text().split("ENTRY")[1]
        assert_trees_close(drawn(params), state[0].velocity, **SAME_DRAW)
    assert_trees_close(state[0].velocity, tx.init(whole)[0].velocity, **SAME_DRAW)
