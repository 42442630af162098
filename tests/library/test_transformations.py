"""Gravity before `init`, under JAX's transformations and inside optax's, on several devices, by value."""

import functools
import re
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import compat
import oracle
from gravity_optax import ScaleByGravityState, damping, gravity, scale_by_gravity
from trees import SAME_DRAW, assert_trees_close, assert_trees_identical

PARAMS = {"w": jnp.linspace(-1, 1, 32).reshape(8, 4), "b": jnp.linspace(0.5, 1, 16)}
GRADIENTS = {"w": jnp.linspace(-2, 3, 32).reshape(8, 4), "b": jnp.linspace(-0.5, 0.25, 16)}
TX = gravity(0.1, key=0)
BUILT_FIRST = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("XLA_FLAGS", None)
import jax, jax.numpy as jnp, numpy as np, optax
from gravity_optax import gravity
keys = (0, np.int64(1), np.array([0, 1], np.uint32))
built = [gravity(0.1, key=key, weight_decay=0.1, velocity_dtype=jnp.bfloat16) for key in keys]
built.append(gravity(optax.linear_schedule(0.0, 0.1, 10), key=0))
jax.config.update("jax_num_cpu_devices", 3)
jax.distributed.initialize("localhost:PORT", num_processes=1, process_id=0)
assert len(jax.devices()) == 3
"""


COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def after(steps, tx=TX):
    """Parameters and state after some steps of the same gradients, on one device."""
    update = jax.jit(tx.update)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# ---- JAX's backend, compiler and transformations


def test_building_does_not_start_the_backend():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = BUILT_FIRST.replace("PORT", str(port))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("impl", "partitionable"), [("threefry2x32", True), ("threefry2x32", False), ("rbg", True)], ids=str
)
def test_init_gives_the_numbers_of_its_definition_eagerly_and_under_jit(impl, partitionable):
    params = [jnp.zeros(shape) for shape in ((3, 5), (0, 2), (3, 5))]
    key = jax.random.key(5, impl=impl)

    @jax.jit
    def definition(key):
        keys = jax.random.split(jax.random.fold_in(key, 0x47726176), len(params))
        return [0.5 * jax.random.normal(k, p.shape) for k, p in zip(keys, params, strict=True)]

    with jax.threefry_partitionable(partitionable):
        init = scale_by_gravity(0.5, key=key).init
        for velocity in (init(params).velocity, jax.jit(init)(params).velocity):
            assert_trees_close(velocity, definition(key), **SAME_DRAW)


def test_many_leaves_are_drawn_by_one_loop_and_updated_by_one_function():
    params = [jnp.zeros(1000)] * 200
    lines = lambda function, *trees: len(jax.jit(function).lower(*trees).as_text().splitlines()) / len(params)
    assert lines(TX.init, params) < 13  # a separate draw for each takes hundreds
    assert lines(TX.update, params, jax.eval_shape(TX.init, params)) < 6


def test_leaves_of_one_shape_share_their_compiled_kernels():
    compiled = jax.jit(TX.init).lower([jnp.zeros((10, 5))] * 20).compile()
    # A kernel with the number of its leaf in it would be another for each. Without names, equal ones are equal texts.
    names = re.compile(r", metadata=\{.*?\}|[%\w.-]*\.\d+|%\S+")
    computations = [names.sub("", text) for text in compiled.as_text().split("\n\n") if "ENTRY" not in text]
    copies = [text for text in computations if "dynamic-slice(" in text and "f32[10,5]" in text]
    assert len(copies) == 20 and len(set(copies)) < 5


def test_export_with_symbolic_shapes():
    export = pytest.importorskip("jax.export")
    (rows,) = export.symbolic_shape("rows")
    leaf, gradient = jax.ShapeDtypeStruct((rows, 4), jnp.float32), GRADIENTS["w"]
    for hook in (None, lambda g: 0.3):
        tx = gravity(0.1, key=0, max_step_grad=hook)
        state = tx.init(gradient)
        update = export.export(jax.jit(tx.update))(leaf, jax.eval_shape(tx.init, leaf))
        assert_trees_close(update.call(gradient, state), tx.update(gradient, state))
    init = export.export(jax.jit(tx.init))(leaf)
    assert_trees_close(init.call(gradient), state, **SAME_DRAW)


def test_vmap_over_states_takes_each_states_own_count_and_velocity():
    states = [after(n)[1] for n in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(TX.update, in_axes=(None, 0)))(GRADIENTS, stacked))
    for i, state in enumerate(states):
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], found), TX.update(GRADIENTS, state))


def test_derivatives_through_an_update_are_those_of_the_equations_and_finite():
    tx = scale_by_gravity(0.0, key=0, first_step=0)  # from rest, where V is half of zeta
    slopes = jax.jit(jax.vmap(jax.grad(lambda g: 2 * jnp.sum(tx.update(g, tx.init(g))[0]))))
    g = np.array([0.3, 1.0, 1.7])  # alone in its leaf, zeta = g / (1 + g^4), whose slope is -1/2 at g = m = 1
    np.testing.assert_allclose(slopes(jnp.float32(g)), (1 - 3 * g**4) / (1 + g**4) ** 2, rtol=1e-4)
    rows = jnp.array([[0.0, 0, 0], [0.5, -0.25, 0.1], [1, 0, 0], [1e-25, 0, 1e-30], [30, 1, 0], [1e20, 1, 0]])
    assert jnp.isfinite(slopes(rows)).all() and (slopes(rows)[0] == 1).all()


# ---- several devices


def test_explicit_mode_keeps_the_sharding_of_the_params_and_the_values_of_one_device():
    expected_0, expected = TX.init(PARAMS), after(2)
    sharding = functools.partial(jax.tree.map, lambda leaf: jax.typeof(leaf).sharding)
    built_under, used_under = (
        jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[i : i + 4]) for i in (0, 4)
    )
    key = jax.random.PRNGKey(0)  # on no device in particular
    with compat.set_mesh(built_under):
        init, update = gravity(optax.constant_schedule(0.1), key=key)
    with compat.set_mesh(used_under):
        specs = {"w": P("x", None), "b": P("x")}
        params, gradients = (jax.tree.map(compat.reshard, tree, specs) for tree in (PARAMS, GRADIENTS))
        state = init(params)
        assert_trees_close(state[0].velocity, expected_0[0].velocity, **SAME_DRAW)
        for _ in range(2):
            assert sharding(state[0].velocity) == sharding(params) == sharding(gradients)
            updates, state = update(gradients, state, params)
            assert sharding(updates) == sharding(params)
            params = optax.apply_updates(params, updates)
    assert_trees_close((params, state[0]), (expected[0], expected[1][0]))


def test_velocity_of_params_put_on_one_device_is_put_there_and_of_others_on_none_in_particular():
    device = jax.devices()[3]
    velocity = TX.init(jax.device_put(PARAMS, device))[0].velocity
    assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(velocity))
    free = TX.init(PARAMS)[0].velocity
    assert not any(leaf.committed for leaf in jax.tree.leaves(free))
    assert_trees_close(velocity, free, **SAME_DRAW)


def assert_sharded_as(tree, shardings):
    for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def collectives(compiled):
    """The (shapes of the results, name) of every operation of a compiled program that communicates with devices."""
    found = COLLECTIVE.findall(compiled.as_text())
    return [({*re.findall(r"f32\[([\d,]*)\]", result)}, name) for result, name in found]


def test_init_and_updates_of_parameters_sharded_over_a_two_dimensional_mesh():
    """The values are those of one device, and nothing moves between devices but maxima."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {"w": P("data", "model"), "b": P("model"), "b_out": P()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    random = lambda seed: {
        name: jnp.asarray(np.random.default_rng(seed).normal(0, 0.5, shape), jnp.float32)
        for name, shape in {"w": (64, 32), "b": 32, "b_out": 10}.items()
    }
    init = lambda params: TX.init(params)[0].velocity
    params, state = jax.device_put(random(0), shardings), TX.init(random(0))
    drawing = jax.jit(init, out_shardings=shardings).lower(params).compile()
    assert "all-gather" not in {name for _, name in collectives(drawing)}
    for velocity in (drawing(params), init(params)):
        assert_sharded_as(velocity, shardings)
        assert_trees_close(velocity, state[0].velocity, **SAME_DRAW)
    ours, expected, update = TX.init(params), state, jax.jit(TX.update)
    compiled = update.lower(params, ours).compile()  # no out_shardings
    moved = collectives(compiled)
    assert moved and all(name == "all-reduce" and shapes == {""} for shapes, name in moved)
    for seed in (1, 2):  # the second from the state that the first gave
        updates, ours = compiled(jax.device_put(random(seed), shardings), ours)
        assert_sharded_as((updates, ours[0].velocity), (shardings,) * 2)
        expected_updates, expected = update(random(seed), expected)
        assert_trees_close((updates, ours), (expected_updates, expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("mode", "spec"), [(AxisType.Auto, P("x", None)), (AxisType.Explicit, P(None, "x"))], ids=str)
def test_a_large_leaf_is_drawn_and_updated_in_its_shards(mode, spec):
    """The maxima are one scalar all-reduce, and no device draws or holds a whole leaf."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(mode,))
    whole = [jnp.ones((512, 256))] * 2  # 2^17 entries each
    with compat.set_mesh(mesh):
        shardings = [NamedSharding(mesh, spec)] * 2
        params = jax.device_put(whole, shardings)
        state = TX.init(params)
        assert_sharded_as(state[0].velocity, shardings)
        out = {"out_shardings": shardings} if mode == AxisType.Auto else {}
        drawn = jax.jit(lambda params: TX.init(params)[0].velocity, **out).lower(params).compile()
        assert_sharded_as(drawn(params), shardings)
        update = jax.jit(TX.update).lower(params, state).compile()
        assert collectives(drawn) == [] and collectives(update) == [({""}, "all-reduce")]
        for program in (drawn, update):
            assert "[512,256]" not in program.as_text().split("ENTRY")[1]
        assert_trees_close(drawn(params), state[0].velocity, **SAME_DRAW)
    assert_trees_close(state[0].velocity, TX.init(whole)[0].velocity, **SAME_DRAW)


@pytest.mark.parametrize(
    ("hook", "spec"),
    [(None, P("x")), (oracle.TRIALS["1/std G"][0], P(None, "x"))],
    ids=["stack sharded", "std, matrix sharded"],
)
def test_a_sharded_stack_is_updated_as_on_one_device_and_stays_sharded(hook, spec):
    update = jax.jit(scale_by_gravity(key=0, max_step_grad=hook, stacked_axes=1).update)
    gradient = jnp.asarray(np.random.default_rng(0).normal(0, 2, (8, 16, 4)), jnp.float32)
    expected, _ = update(gradient, ScaleByGravityState(jnp.int32(0), gradient))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with compat.set_mesh(mesh):
        sharded = jax.device_put(gradient, NamedSharding(mesh, spec))
        compiled = update.lower(sharded, ScaleByGravityState(jnp.int32(0), sharded)).compile()
        updates, state = compiled(sharded, ScaleByGravityState(jnp.int32(0), sharded))
        assert_sharded_as((updates, state.velocity), (sharded.sharding,) * 2)
        assert_trees_close(updates, expected)
    assert bool(collectives(compiled)) == (hook is not None)  # none for matrices stacked along the sharded axis


# ---- what a state and a leaf may be, and optax's functions on them


def test_params_that_are_shapes_alone_or_have_jax_array():
    wrapped = lambda array: types.SimpleNamespace(__jax_array__=lambda: array)  # as some libraries wrap arrays
    params, gradients = (jax.tree.map(wrapped, tree) for tree in (PARAMS, GRADIENTS))
    state = TX.init(PARAMS)
    assert_trees_identical(TX.init(params), state)
    assert_trees_identical(TX.update(gradients, state), TX.update(GRADIENTS, state))
    assert_trees_close(TX.init(jax.eval_shape(lambda: PARAMS)), state, **SAME_DRAW)
    assert_trees_identical(damping(gradients), damping(GRADIENTS))


def test_velocity_and_count_are_found_mapped_and_set_by_name():
    state = after(1)[1]
    assert_trees_identical(optax.tree.get(state, "velocity"), state[0].velocity)
    assert optax.tree.get(state, "count") == 1
    state = optax.tree.map_params(TX, lambda _, w: w, state, PARAMS)
    for count in (5, jnp.int32(5)):
        updates, new = TX.update(GRADIENTS, optax.tree.set(state, count=count))
        velocity = jax.tree.map(functools.partial(oracle.velocity_after, t=6), GRADIENTS, PARAMS)
        assert_trees_close(new[0].velocity, velocity)
        assert_trees_close(updates, jax.tree.map(lambda v: -0.1 * v, velocity))
        assert new[0].count == 6


# ---- weight decay, as optax.adamw composes it


@pytest.mark.parametrize("mask", [None, lambda params: jax.tree.map(lambda p: p.ndim > 1, params)])
@pytest.mark.parametrize("decay", [0.3, optax.linear_schedule(0.4, 0.0, 4)], ids=["number", "schedule"])
def test_weight_decay_agrees_with_the_oracle(decay, mask):
    tx = gravity(0.2, key=0, weight_decay=decay, weight_decay_mask=mask)
    params, _ = after(4, tx)
    for name, decayed in {"w": True, "b": mask is None}.items():
        weight, velocity = np.asarray(PARAMS[name], np.float64), tx.init(PARAMS)[0].velocity[name]
        for count in range(4):
            velocity = oracle.velocity_after(GRADIENTS[name], velocity, 1 + count)
            rate = np.float64(decay(count) if callable(decay) else decay)
            weight = weight - 0.2 * (velocity + decayed * rate * weight)
        np.testing.assert_allclose(params[name], weight, rtol=2e-6, atol=1e-6)


def test_no_weight_decay_adds_nothing_to_the_chain_and_0_a_part():
    TX.update(GRADIENTS, TX.init(PARAMS))  # without the parameters
    for decay, length in ((None, 2), (0.0, 3), (0.1, 3)):
        assert len(gravity(0.1, key=0, weight_decay=decay).init(PARAMS)) == length


def test_weight_decay_can_be_injected_and_changed():
    options = {"key": 0, "weight_decay": 0.3, "weight_decay_mask": {"w": True, "b": False}}
    tx, plain = optax.inject_hyperparams(gravity)(0.2, **options), gravity(0.2, key=0)
    assert_trees_close(after(4, tx)[0], after(4, gravity(0.2, **options))[0])
    state = tx.init(PARAMS)
    state.hyperparams["weight_decay"] = jnp.float32(0.0)
    expected, _ = plain.update(GRADIENTS, plain.init(PARAMS))
    assert_trees_close(jax.jit(tx.update)(GRADIENTS, state, PARAMS)[0], expected)
