"""Every error says which argument, which value and what to do instead."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse

from gravity_optax import gravity, scale_by_gravity

PARAMS = {"w": jnp.zeros((2, 3))}
NAN, INF = float("nan"), float("inf")


def id_of(value):
    return f"{type(value).__name__}-{value!s}" if np.ndim(value) == 0 else f"array{np.shape(value)}"


def says(call, error, *parts):
    """`call` raises `error`, whose message holds all `parts` in this order."""
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts))) as caught:
        call()
    assert caught.type is error


def build(**arguments):
    return gravity(**{"learning_rate": 0.1, "key": 0, **arguments})


@pytest.mark.parametrize(
    "value", [0, 0.0, -0.1, NAN, INF, -INF, np.float32(0), np.float64(-1), np.float32("nan")], ids=id_of
)
def test_learning_rate_that_is_not_positive_and_finite(value):
    says(lambda: build(learning_rate=value), ValueError, "learning_rate is ", str(value), "must be positive and finite")


@pytest.mark.parametrize("value", [-0.1, NAN])
def test_learning_rate_array_that_is_negative_or_nan(value):
    says(
        lambda: build(learning_rate=jnp.float32(value)),
        ValueError,
        "learning_rate is ",
        str(value)[:4],
        "must be positive",
    )


@pytest.mark.parametrize("value", [None, "0.1", True, 1j, [0.1], np.bool_(True)], ids=id_of)
@pytest.mark.parametrize("name", ["learning_rate", "alpha", "beta", "velocity_stddev"])
def test_numbers_of_the_wrong_type(name, value):
    call = scale_by_gravity if name == "velocity_stddev" else build
    says(lambda: call(**{"key": 0, name: value}), TypeError, f"{name} is {value!r}", "must be a real number")


@pytest.mark.parametrize("name", ["learning_rate", "alpha", "beta", "velocity_stddev"])
def test_arrays_where_a_number_belongs(name):
    call = scale_by_gravity if name == "velocity_stddev" else build
    says(lambda: call(**{"key": 0, name: jnp.ones(2)}), TypeError, f"{name} is ", "[1., 1.]", "must be a real number")


@pytest.mark.parametrize("value", [-1, -1e-9, NAN, INF, np.float32(-1), jnp.float32(-1)], ids=id_of)
def test_alpha_and_velocity_stddev_that_are_negative_or_not_finite(value):
    says(lambda: build(alpha=value), ValueError, f"alpha is {value}", "must be at least 0 and finite")
    says(
        lambda: scale_by_gravity(value, key=0),
        ValueError,
        f"velocity_stddev is {value}",
        "must be at least 0 and finite",
    )


@pytest.mark.parametrize("value", [-0.1, 1.0001, 2, NAN, INF, jnp.float32(1.5)], ids=id_of)
def test_beta_outside_zero_to_one(value):
    says(lambda: build(beta=value), ValueError, f"beta is {value}", "must be in [0, 1]")
    says(lambda: scale_by_gravity(beta=value, key=0), ValueError, f"beta is {value}", "must be in [0, 1]")


@pytest.mark.parametrize("value", [-1, np.int64(-3), jnp.int32(-2)], ids=id_of)
def test_negative_first_step(value):
    says(lambda: build(first_step=value), ValueError, f"first_step is {value}", "must be at least 0")


@pytest.mark.parametrize("value", [0.5, 1.0, True, False, None, "1", np.bool_(True), np.float32(1)], ids=id_of)
def test_first_step_that_is_not_a_whole_number(value):
    says(lambda: build(first_step=value), TypeError, f"first_step is {value!r}", "must be a whole number")


@pytest.mark.parametrize("value", [0.0, None, "0", True, [0, 1], np.float32(1), np.bool_(False)], ids=id_of)
def test_key_of_the_wrong_type(value):
    says(
        lambda: build(key=value),
        TypeError,
        f"key is {value!r}",
        "pass an int, jax.random.key(seed) or jax.random.PRNGKey(seed)",
    )


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (jax.random.split(jax.random.key(0), 3), ("(3,) keys", "pass one")),
        (jax.random.split(jax.random.PRNGKey(0), 3), ("shape (3, 2)", "pass one")),
        (jnp.zeros(3, jnp.uint32), ("shape (3,)", "jax.random.PRNGKey")),
        (jnp.arange(2), ("shape (2,) and dtype int32", "pass one")),
        (2**70, (str(2**70), "64 bits")),
        (-(2**63) - 1, (str(-(2**63) - 1), "64 bits")),
    ],
    ids=["typed-batch", "raw-batch", "raw-shape", "int-array", "large", "small"],
)
def test_key_that_is_not_one_key(value, parts):
    says(lambda: build(key=value), ValueError, "key is ", *parts)


def test_key_has_no_default():
    with pytest.raises(TypeError, match="key"):
        gravity(0.1)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_integer_and_boolean_leaves(dtype, compiled):
    tx = build()
    init, update = (jax.jit(tx.init), jax.jit(tx.update)) if compiled else (tx.init, tx.update)
    bad = {"w": jnp.zeros((2, 3), dtype)}
    says(lambda: init(bad), TypeError, f"params['w'] is {dtype}", "optax.masked")
    says(lambda: update(bad, tx.init(PARAMS)), TypeError, f"updates['w'] is {dtype}", "optax.masked")


def test_the_leaf_at_fault_is_named_in_a_nested_tree():
    says(
        lambda: build().init({"a": [jnp.zeros(1), {"b": jnp.zeros(1, int)}]}), TypeError, "params['a'][1]['b'] is int32"
    )


def test_integer_leaves_can_be_kept_out_with_masked():
    params = {"w": jnp.zeros(3), "steps": jnp.array(4)}
    tx = optax.masked(build(), {"w": True, "steps": False})
    updates, _ = tx.update({"w": jnp.ones(3), "steps": jnp.array(0)}, tx.init(params))
    assert updates["steps"] == 0 and updates["w"].shape == (3,)


def test_complex_leaves():
    bad = {"w": jnp.zeros((2, 3), jnp.complex64)}
    mend = "optax.contrib.split_real_and_imaginary"
    says(lambda: build().init(bad), TypeError, "params['w'] is complex64", mend)
    says(lambda: build().update(bad, build().init(PARAMS)), TypeError, "updates['w'] is complex64", mend)


def test_complex_leaves_work_split_into_real_and_imaginary():
    target = jnp.array([0.5 - 0.25j, -0.75 + 0.5j])
    tx = optax.contrib.split_real_and_imaginary(build())
    params = jnp.zeros(2, jnp.complex64)

    def step(carry, _):
        params, state = carry
        gradient = (params - target) / 2  # of mean |params - target|^2 by the real and the imaginary parts
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # the wrapper multiplies float32 by 1j
        (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=600))((params, tx.init(params)))
    np.testing.assert_allclose(params, target, atol=2e-3)


def test_sparse_leaves():
    bad = {"w": sparse.BCOO.fromdense(jnp.eye(2, 3))}
    says(lambda: build().init(bad), TypeError, "params['w'] is a sparse array (BCOO)", ".todense()")
    says(
        lambda: build().update(bad, build().init(PARAMS)),
        TypeError,
        "updates['w'] is a sparse array (BCOO)",
        ".todense()",
    )
    says(lambda: jax.jit(build().update)(bad, build().init(PARAMS)), TypeError, "updates['w'] is a sparse array (BCOO)")


@pytest.mark.parametrize(
    "gradients",
    [{"v": jnp.zeros((2, 3))}, {"w": None}, {}, [jnp.zeros((2, 3))], {"w": jnp.zeros((2, 3)), "b": jnp.zeros(1)}],
    ids=["other-name", "None", "empty", "list", "one-more"],
)
def test_gradients_in_another_tree_than_the_state(gradients):
    says(
        lambda: build().update(gradients, build().init(PARAMS)),
        ValueError,
        f"updates has the tree {jax.tree.structure(gradients)}",
        f"the state {jax.tree.structure(PARAMS)}",
        "call init with the parameters",
    )


@pytest.mark.parametrize("shape", [(2, 1), (3,), (), (3, 2), (1, 2, 3)], ids=str)
def test_gradients_in_another_shape_than_the_state(shape):
    says(
        lambda: build().update({"w": jnp.zeros(shape)}, build().init(PARAMS)),
        ValueError,
        f"updates['w'] has shape {shape}, its velocity (2, 3)",
        "call init with the parameters",
    )


@pytest.mark.parametrize("value", [0.0, -0.1, NAN])
def test_values_that_are_traced_are_not_checked(value):
    built = jax.jit(lambda x: gravity(x, x, x, key=0).init(jnp.zeros(2))[0].count)(value)
    assert built == 0
