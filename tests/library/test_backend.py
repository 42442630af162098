"""What a transformation does before and after `init`: nothing with JAX's backend, and the same numbers under jit."""

import re
import socket
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import compat
from gravity_optax import gravity, scale_by_gravity
from trees import GRADIENTS, PARAMS, SAME_DRAW, assert_trees_close, assert_trees_identical

BUILT_FIRST = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("XLA_FLAGS", None)
import jax, jax.numpy as jnp, numpy as np, optax
from gravity_optax import gravity, scale_by_gravity
keys = (0, np.int64(1), np.array([0, 1], np.uint32))
built = [gravity(0.1, key=key, weight_decay=0.1) for key in keys]
built += [gravity(optax.linear_schedule(0.0, 0.1, 10), key=0), scale_by_gravity(key=0, velocity_dtype=jnp.bfloat16)]
jax.config.update("jax_num_cpu_devices", 3)
jax.distributed.initialize("localhost:PORT", num_processes=1, process_id=0)
assert len(jax.devices()) == 3
"""


def test_building_does_not_start_the_backend():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = BUILT_FIRST.replace("PORT", str(port))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_built_under_one_explicit_mesh_and_used_under_another():
    devices = jax.devices()
    meshes = [jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=devices[i : i + 4]) for i in (0, 4)]
    keys = 0, jax.random.PRNGKey(0)
    with compat.set_mesh(meshes[0]):
        built = [gravity(optax.linear_schedule(0.0, 0.1, 5), key=key) for key in keys]
    with compat.set_mesh(meshes[1]):
        params = compat.reshard(jnp.zeros((8, 4)), P("x", None))
        states = [tx.init(params) for tx in built]
        updates, _ = built[0].update(params, states[0])
        assert jax.typeof(updates).sharding == jax.typeof(params).sharding
    for state in states:
        assert_trees_close(state[0].velocity, gravity(0.1, key=0).init(jnp.zeros((8, 4)))[0].velocity, **SAME_DRAW)


@pytest.mark.parametrize(
    ("impl", "partitionable"), [("threefry2x32", True), ("threefry2x32", False), ("rbg", True)], ids=str
)
def test_init_gives_the_numbers_of_its_definition_eagerly_and_under_jit(impl, partitionable):
    params = [jnp.zeros(shape) for shape in ((3, 5), (0, 2), (15,), (3, 5))]
    key = jax.random.key(5, impl=impl)
    with jax.threefry_partitionable(partitionable):
        tx = scale_by_gravity(0.5, key=key)
        keys = jax.random.split(jax.random.fold_in(key, 0x47726176), len(params))
        expected = [0.5 * jax.random.normal(k, p.shape) for k, p in zip(keys, params, strict=True)]
        assert_trees_close(tx.init(params).velocity, expected, **SAME_DRAW)
        assert_trees_close(jax.jit(tx.init)(params).velocity, expected, **SAME_DRAW)


# ---- trees of many leaves


@jax.numpy_dtype_promotion("standard")  # Adam raises a float to an int32
def test_many_leaves_are_drawn_by_one_loop_and_updated_by_one_function():
    params = [jnp.zeros(1000)] * 200
    tx = gravity(0.1, key=0)
    lines = lambda lowered: len(lowered.as_text().splitlines()) / len(params)
    assert lines(jax.jit(tx.init).lower(params)) < 13  # a draw of its own for each takes hundreds
    seconds = {}
    for name, optimizer in (("adam", optax.adam(0.1)), ("gravity", tx)) * 2:
        state = optimizer.init(params)
        start = time.process_time()
        lowered = jax.jit(optimizer.update).lower(params, state)
        seconds[name] = time.process_time() - start
    assert lines(lowered) < 6
    assert seconds["gravity"] < 1.3 * seconds["adam"]


def test_leaves_of_one_shape_share_their_compiled_kernels():
    compiled = jax.jit(gravity(0.1, key=0).init).lower([jnp.zeros((10, 5))] * 20).compile()
    # A kernel with the number of its leaf in it would be another for each. Without names, equal ones are equal texts.
    names = re.compile(r", metadata=\{.*?\}|[%\w.-]*\.\d+|%\S+")
    computations = [names.sub("", text) for text in compiled.as_text().split("\n\n") if "ENTRY" not in text]
    copies = [text for text in computations if "dynamic-slice(" in text and "f32[10,5]" in text]
    assert len(copies) == 20 and len(set(copies)) < 5


# ---- what a state and a leaf may be


def test_a_count_set_to_a_python_number():
    tx = gravity(optax.linear_schedule(0.2, 0.1, 10), key=0)
    state = tx.init(PARAMS)
    ours, expected = (tx.update(GRADIENTS, optax.tree.set(state, count=count)) for count in (5, jnp.int32(5)))
    assert_trees_identical(ours, expected)
    assert ours[1][0].count == 6


def test_export_with_symbolic_shapes():
    export = pytest.importorskip("jax.export")
    (rows,) = export.symbolic_shape("rows")
    leaf = jax.ShapeDtypeStruct((rows, 4), jnp.float32)
    gradient = jnp.linspace(-2, 3, 12).reshape(3, 4)
    for hook in (None, lambda g: 0.3):
        tx = gravity(0.1, key=0, max_step_grad=hook)
        state = tx.init(gradient)
        update = export.export(jax.jit(tx.update))(leaf, jax.eval_shape(tx.init, leaf))
        assert_trees_close(update.call(gradient, state), tx.update(gradient, state))
    init = export.export(jax.jit(tx.init))(leaf)
    assert_trees_close(init.call(gradient), state, **SAME_DRAW)


def test_leaves_with_jax_array():
    """As some libraries wrap arrays; JAX unwraps them through `__jax_array__`."""
    tx = gravity(0.1, key=0)
    wrapped = lambda array: types.SimpleNamespace(__jax_array__=lambda: array)
    params, gradients = (jax.tree.map(wrapped, tree) for tree in (PARAMS, GRADIENTS))
    assert_trees_identical(tx.init(params), tx.init(PARAMS))
    assert_trees_identical(tx.update(gradients, tx.init(params)), tx.update(GRADIENTS, tx.init(PARAMS)))
