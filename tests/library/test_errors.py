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


def says(error, parts, function, *arguments):
    """`function` raises `error`, in one line that holds all `parts` in this order."""
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts))):
        function(*arguments)


def build(**arguments):
    return gravity(**{"learning_rate": 0.1, "key": 0, **arguments})


@pytest.mark.parametrize(
    ("error", "name", "values", "fix"),
    [
        (ValueError, "learning_rate", (0, 0.0, -0.1, NAN, INF, np.float32(0), np.float64(-1)), "positive and finite"),
        (ValueError, "learning_rate", (jnp.float32(-1), jnp.float32(NAN)), "at least 0 and finite"),
        (ValueError, "alpha", (-1, -1e-9, NAN, INF, np.float32(-1), jnp.float32(-1)), "at least 0 and finite"),
        (ValueError, "velocity_stddev", (-1, NAN, INF, 10**400), "at least 0 and finite"),
        (ValueError, "weight_decay", (-0.1, NAN, INF), "at least 0 and finite"),
        (ValueError, "beta", (-0.1, 1.0001, 2, NAN, INF, jnp.float32(1.5)), "in [0, 1]"),
        (ValueError, "first_step", (-1, np.int64(-3), jnp.int32(-2)), "at least 0"),
        (ValueError, "stacked_axes", (-1, np.int64(-1)), "at least 0"),
        (ValueError, "key", (2**70, -(2**63) - 1, jnp.zeros(3, jnp.uint32)), "one seed"),
        *((TypeError, name, NO_NUMBERS, "a real number") for name in ("learning_rate", "alpha", "beta")),
        *((TypeError, name, NO_NUMBERS[1:], "a real number") for name in ("velocity_stddev", "weight_decay")),
        (TypeError, "first_step", (0.5, 1.0, True, None, "1", np.bool_(True), np.float32(1)), "an integer"),
        (TypeError, "stacked_axes", (1.0, "1", True), "an integer"),
        (TypeError, "stacked_axes", (jnp.int32(1),), "static_args"),
        (TypeError, "max_step_grad", (0.3, "max", True, jnp.ones(()), (lambda g: g,)), "lambda g: m"),
        (TypeError, "velocity_dtype", (jnp.int8, jnp.complex64, bool, "float8_e8m0fnu", "no", 0.5), "as jnp.bfloat16"),
        (TypeError, "velocity_dtype", (jnp.zeros(()),), "static_args"),
        (TypeError, "key", (0.0, None, "0", True, [0, 1], np.float32(1), jnp.arange(2), *ARRAYS_OF_KEYS), "one seed"),
    ],
)
def test_an_argument_of_the_wrong_type_or_out_of_its_range(error, name, values, fix):
    for value in values:
        is_key_array = name == "key" and isinstance(value, jax.Array)
        shown = str(value) if error is ValueError and name != "key" else repr(value)
        said = f"an array of shape {value.shape}" if is_key_array else shown
        says(error, (f"{name} is {said}", fix), lambda value=value: build(**{name: value}))


def test_no_key_and_a_standard_deviation_of_scale_by_gravity():
    says(TypeError, ("key",), gravity, 0.1)
    says(ValueError, ("velocity_stddev is -1", "at least 0 and finite"), lambda: scale_by_gravity(-1, key=0))
    schedule = optax.constant_schedule(1)
    says(TypeError, ("velocity_stddev is", "a real number"), lambda: scale_by_gravity(schedule, key=0))
    says(ValueError, ("weight_decay_mask is given", "weight_decay is None"), lambda: build(weight_decay_mask=PARAMS))


def test_an_m_that_is_not_a_scalar():
    for axes, shape in ((None, (2, 3)), (1, (3,))):
        tx = build(max_step_grad=jnp.abs, stacked_axes=axes)
        says(ValueError, ("max_step_grad gave", str(shape), "one m"), jax.jit(tx.update), PARAMS, tx.init(PARAMS))
    tx = build(max_step_grad=lambda g: None)
    says(TypeError, ("max_step_grad gave None", "one real number"), tx.update, PARAMS, tx.init(PARAMS))


def test_an_m_or_a_gradient_that_is_complex():
    for pair in ((1j, 1.0), (jnp.ones(2, jnp.complex64), 1.0), (1.0, 1 + 0j)):
        says(TypeError, ("is complex64", "real and the imaginary part"), gravity_term, *pair)


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
    calls = {"params": (tx.init, bad), "updates": (tx.update, bad, state), "gradients": (damping, bad)}
    for name, (call, *trees) in calls.items():
        where = f"{name}['a'][1]['w'] is "
        says(TypeError, (where, *parts), call, *trees)
        says(TypeError, (where, *parts), jax.jit(lambda call=call, trees=trees: call(*trees)))


def test_a_leaf_that_is_no_array():
    says(TypeError, ("params['f'] is <", "not an array", "optax.masked"), build().init, PARAMS | {"f": jnp.tanh})


def test_a_leaf_with_fewer_axes_than_are_stacked():
    params = {"w": jnp.zeros((2, 3, 4)), "b": jnp.zeros(4)}
    parts = "stacked_axes is 2", "['b']", "(4,)", "optax.partition"
    for call in (build(stacked_axes=2).init, functools.partial(damping, stacked_axes=2)):
        says(ValueError, parts, call, params)


def test_gradients_in_another_tree_or_shape_than_the_state():
    w, state = PARAMS["w"], build().init(PARAMS)
    for gradients in ({"v": w}, {"w": None}, {}, [w], {"w": w, "b": jnp.zeros(1)}):
        parts = f"updates has the tree {jax.tree.structure(gradients)}", f"the state {jax.tree.structure(PARAMS)}"
        says(ValueError, (*parts, "call init"), build().update, gradients, state)
    for shape in ((2, 1), (3,), (), (3, 2), (1, 2, 3)):
        parts = f"updates['w'] has shape {shape}", "(2, 3)", "call init"
        says(ValueError, parts, build().update, {"w": np.zeros(shape, np.float32)}, state)


def test_values_that_are_traced_are_not_checked():
    count = jax.jit(lambda x: gravity(x, x, x, key=0).init(jnp.zeros(2))[0].count)
    assert [count(value) for value in (0.0, -0.1, NAN)] == [0, 0, 0]


def test_the_ways_out_that_the_messages_name_work():
    params = {"w": jnp.zeros(3), "steps": jnp.array(4)}
    tx = optax.masked(build(), {"w": True, "steps": False})
    updates, _ = tx.update({"w": jnp.ones(3), "steps": jnp.array(0)}, tx.init(params))
    assert updates["steps"] == 0 and updates["w"].shape == (3,)
    g = np.complex64([0.5 - 0.25j, -0.75 + 0.5j])
    tx = optax.contrib.split_real_and_imaginary(scale_by_gravity(0.0, key=0, first_step=0))
    with jax.numpy_dtype_promotion("standard"):  # the wrapper multiplies float32 by 1j
        updates, _ = jax.jit(lambda g: tx.update(g, tx.init(g)))(g)
    zeta = lambda g: g / (1 + (g * np.abs(g).max()) ** 2)
    np.testing.assert_allclose(updates, (zeta(g.real) + 1j * zeta(g.imag)) / 2, rtol=1e-6)
