"""Every error says which argument or leaf, which value and what to do instead."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

from gravity_optax import damping, gravity, gravity_term, scale_by_gravity

PARAMS = {"w": jnp.zeros((2, 3))}
NAN, INF = float("nan"), float("inf")
NO_NUMBERS = (None, "0.1", True, 1j, [0.1], np.bool_(True), jnp.ones(2))
ARRAYS_OF_KEYS = (jax.random.split(jax.random.key(0), 3), jax.random.split(jax.random.PRNGKey(0), 3))


def says(call, error, *parts):
    """`call` raises `error`, in one line that holds all `parts` in this order."""
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts))):
        call()


def build(**arguments):
    return gravity(**{"learning_rate": 0.1, "key": 0, **arguments})


@pytest.mark.parametrize(
    ("name", "values", "fix"),
    [
        ("learning_rate", (0, 0.0, -0.1, NAN, INF, np.float32(0), np.float64(-1)), "positive and finite"),
        ("learning_rate", (jnp.float32(-1), jnp.float32(NAN)), "at least 0 and finite"),
        ("alpha", (-1, -1e-9, NAN, INF, np.float32(-1), jnp.float32(-1)), "at least 0 and finite"),
        ("velocity_stddev", (-1, NAN, INF, 10**400), "at least 0 and finite"),
        ("weight_decay", (-0.1, NAN, INF), "at least 0 and finite"),
        ("beta", (-0.1, 1.0001, 2, NAN, INF, jnp.float32(1.5)), "in [0, 1]"),
        ("first_step", (-1, np.int64(-3), jnp.int32(-2)), "at least 0"),
        ("stacked_axes", (-1, np.int64(-1)), "at least 0"),
        ("key", (2**70, -(2**63) - 1, jnp.zeros(3, jnp.uint32)), "one seed"),
    ],
)
def test_an_argument_out_of_its_range(name, values, fix):
    for value in values:
        call = lambda value=value: (
            scale_by_gravity(value, key=0) if name == "velocity_stddev" else build(**{name: value})
        )
        says(call, ValueError, f"{name} is " if name == "key" else f"{name} is {value!s}", fix)


@pytest.mark.parametrize(
    ("name", "values", "fix"),
    [
        *((name, NO_NUMBERS, "a real number") for name in ("learning_rate", "alpha", "beta")),
        ("velocity_stddev", NO_NUMBERS[1:], "a real number"),
        ("weight_decay", NO_NUMBERS[1:], "a real number"),
        ("first_step", (0.5, 1.0, True, None, "1", np.bool_(True), np.float32(1)), "an integer"),
        ("stacked_axes", (1.0, "1", True), "an integer"),
        ("stacked_axes", (jnp.int32(1),), "static_args"),
        ("max_step_grad", (0.3, "max", True, jnp.ones(()), (lambda g: g,)), "lambda g: m"),
        ("velocity_dtype", (jnp.int8, jnp.complex64, bool, "float8_e8m0fnu"), "such as jnp.bfloat16"),
        ("key", (0.0, None, "0", True, [0, 1], np.float32(1), jnp.arange(2), *ARRAYS_OF_KEYS), "one seed"),
    ],
)
def test_an_argument_of_the_wrong_type(name, values, fix):
    for value in values:
        is_key_array = name == "key" and isinstance(value, jax.Array)
        said = f"an array of shape {value.shape}" if is_key_array else repr(value)
        says(lambda value=value: build(**{name: value}), TypeError, f"{name} is {said}", fix)
    with pytest.raises(TypeError, match="key"):
        gravity(0.1)


def test_an_m_that_is_not_a_scalar():
    for axes, shape in ((None, (2, 3)), (1, (3,))):
        tx = build(max_step_grad=jnp.abs, stacked_axes=axes)
        for update in (tx.update, jax.jit(tx.update)):
            parts = ("max_step_grad gave", str(shape), "one m")
            says(lambda update=update, tx=tx: update(PARAMS, tx.init(PARAMS)), ValueError, *parts)


def test_an_m_or_a_gradient_that_is_complex():
    for gradient, m in ((1j, 1.0), (jnp.ones(2, jnp.complex64), 1.0), (1.0, 1 + 0j)):
        says(lambda g=gradient, m=m: gravity_term(g, m), TypeError, "is complex64", "real and the imaginary part")


@pytest.mark.parametrize(
    ("leaf", "parts"),
    [
        (jnp.zeros((2, 3), "int32"), ("int32", "optax.masked")),
        (jnp.zeros((2, 3), "bool"), ("bool", "optax.masked")),
        (jnp.zeros((2, 3), "complex64"), ("complex64", "optax.contrib.split_real_and_imaginary")),
        (sparse.BCOO.fromdense(jnp.eye(2, 3)), ("BCOO", ".todense()")),
    ],
    ids=["integer", "boolean", "complex", "sparse"],
)
def test_a_leaf_that_is_no_dense_array_of_real_floats(leaf, parts):
    tx, bad = build(), {"a": [jnp.zeros(1), {"w": leaf}]}
    state = tx.init({"a": [jnp.zeros(1), {"w": jnp.zeros((2, 3))}]})
    for name, call in {
        "params": lambda: tx.init(bad),
        "updates": lambda: tx.update(bad, state),
        "gradients": lambda: damping(bad),
    }.items():
        says(call, TypeError, f"{name}['a'][1]['w'] is ", *parts)
        says(lambda call=call: jax.jit(call)(), TypeError, f"{name}['a'][1]['w'] is ", *parts)


def test_a_leaf_with_fewer_axes_than_are_stacked():
    params = {"w": jnp.zeros((2, 3, 4)), "b": jnp.zeros(4)}
    parts = "stacked_axes is 2", "['b']", "(4,)", "optax.partition"
    for call in (build(stacked_axes=2).init, functools.partial(damping, stacked_axes=2)):
        says(functools.partial(call, params), ValueError, *parts)


def test_a_standard_deviation_beyond_what_the_leaf_can_hold():
    for rate, alpha in ((np.float32(1e-30), np.float32(1e30)), (1e-300, 1e300)):
        call = lambda tx: lambda: tx.init(PARAMS)
        says(call(build(learning_rate=rate, alpha=alpha)), ValueError, "velocity_stddev", "['w']")


def test_gradients_in_another_tree_or_shape_than_the_state():
    w = PARAMS["w"]
    for gradients in ({"v": w}, {"w": None}, {}, [w], {"w": w, "b": jnp.zeros(1)}):
        parts = f"updates has the tree {jax.tree.structure(gradients)}", f"the state {jax.tree.structure(PARAMS)}"
        says(lambda g=gradients: build().update(g, build().init(PARAMS)), ValueError, *parts, "call init")
    for shape in ((2, 1), (3,), (), (3, 2), (1, 2, 3)):
        gradients, parts = (
            {"w": np.zeros(shape, np.float32)},
            (f"updates['w'] has shape {shape}", "(2, 3)", "call init"),
        )
        says(lambda g=gradients: build().update(g, build().init(PARAMS)), ValueError, *parts)


def test_values_that_are_traced_are_not_checked():
    count = jax.jit(lambda x: gravity(x, x, x, key=0).init(jnp.zeros(2))[0].count)
    assert [count(value) for value in (0.0, -0.1, NAN)] == [0, 0, 0]


def test_the_ways_out_that_the_messages_name_work():
    params = {"w": jnp.zeros(3), "steps": jnp.array(4)}
    tx = optax.masked(build(), {"w": True, "steps": False})
    updates, _ = tx.update({"w": jnp.ones(3), "steps": jnp.array(0)}, tx.init(params))
    assert updates["steps"] == 0 and updates["w"].shape == (3,)
    target, params = np.complex64([0.5 - 0.25j, -0.75 + 0.5j]), jnp.zeros(2, jnp.complex64)
    tx = optax.contrib.split_real_and_imaginary(scale_by_gravity(0.0, key=0, first_step=0))
    with jax.numpy_dtype_promotion("standard"):  # the wrapper multiplies float32 by 1j
        updates = np.asarray(jax.jit(lambda g: tx.update(g, tx.init(params))[0])(target))
    for part in (np.real, np.imag):
        g = part(target)
        np.testing.assert_allclose(part(updates), g / (1 + (g * np.abs(g).max()) ** 2) / 2, rtol=1e-6)
