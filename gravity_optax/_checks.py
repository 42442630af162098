"""Errors about invalid arguments and trees, raised before anything is computed: the name, the value and the fix."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

Range = tuple[str, Callable[[float], bool]]  # in words, and as a test
NOT_NEGATIVE: Range = ("at least 0 and finite", lambda x: 0 <= x < math.inf)
POSITIVE: Range = ("positive and finite", lambda x: 0 < x < math.inf)
UNIT: Range = ("in [0, 1]", lambda x: 0 <= x <= 1)
_STATIC = " (optax.inject_hyperparams: in static_args)"


def check_number(name: str, value: Any, allowed: Range, *, integer: bool = False) -> None:
    """Raises unless `value` is a real scalar of the kind and range; the value of a tracer is not checked."""
    if not _is_scalar(value, integer):
        raise TypeError(
            f"{name} is {value!r}; it must be {'an integer' if integer else 'a real number'}, {allowed[0]}."
        )
    if isinstance(value, jax.core.Tracer):
        return
    try:
        number = float(value)
    except OverflowError:  # a Python int of hundreds of digits
        number = math.inf
    if not allowed[1](number):
        raise ValueError(f"{name} is {value}; it must be {allowed[0]}.")


def check_static(max_step_grad: Any, stacked_axes: Any, velocity_dtype: Any = None) -> None:
    """Raises unless these, which cannot be traced, are of their types and in their ranges."""
    if max_step_grad is not None and not callable(max_step_grad):
        raise TypeError(
            f"max_step_grad is {max_step_grad!r}; pass a function of a gradient matrix, as lambda g: m{_STATIC}."
        )
    if isinstance(stacked_axes, jax.Array):
        raise TypeError(f"stacked_axes is {stacked_axes!r}; pass an int{_STATIC}.")
    if stacked_axes is not None:
        check_number("stacked_axes", stacked_axes, NOT_NEGATIVE, integer=True)
    if velocity_dtype is not None and not _names_real(velocity_dtype):
        raise TypeError(
            f"velocity_dtype is {velocity_dtype!r}; pass a signed float dtype such as jnp.bfloat16{_STATIC}."
        )


def check_leaves(name: str, tree: Any, stacked_axes: int = 0, stddev: Any = 0, velocity_dtype: Any = None) -> None:
    """Raises unless every leaf is a dense real array with the stacked axes, whose velocity can hold the stddev."""
    stddev = 0 if isinstance(stddev, jax.core.Tracer) else stddev
    for path, leaf in tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "todense")):
        where = name + keystr(path)
        if hasattr(leaf, "todense"):
            raise TypeError(f"{where} is sparse ({type(leaf).__name__}); use a dense array, as .todense() gives it.")
        try:
            dtype = jax.typeof(leaf).dtype
        except TypeError:
            raise TypeError(
                f"{where} is {leaf!r:.99}, which is not an array; use optax.masked to exclude it."
            ) from None
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"{where} is {dtype}; wrap the optimizer in optax.contrib.split_real_and_imaginary.")
        if not _is_real(dtype):
            raise TypeError(f"{where} is {dtype}; use optax.masked to exclude leaves that are not signed floats.")
        if np.ndim(leaf) < stacked_axes:
            fix = "use optax.partition to give leaves that are not stacked a separate transformation."
            raise ValueError(f"stacked_axes is {stacked_axes}, but {where} has shape {np.shape(leaf)}; {fix}")
        limits = jnp.finfo(dtype if velocity_dtype is None else velocity_dtype)
        if stddev > float(limits.max):
            raise ValueError(
                f"velocity_stddev (alpha / learning_rate) is {stddev:g}, above the largest {limits.dtype}"
                f" ({float(limits.max):.3g}), the dtype of the velocity of {where}; lower it or widen velocity_dtype."
            )


def check_matches(updates: Any, velocity: Any) -> None:
    """Raises unless the gradients are real floats in the tree and shapes of the velocity."""
    check_leaves("updates", updates)
    fix = "call init with the parameters that these gradients belong to."
    ours, expected = jax.tree.structure(updates), jax.tree.structure(velocity)
    if ours != expected:  # type: ignore[operator]
        raise ValueError(f"updates has the tree {ours}, the state {expected}; {fix}")
    for (path, g), v in zip(tree_leaves_with_path(updates), jax.tree.leaves(velocity), strict=True):
        if np.shape(g) != np.shape(v):
            raise ValueError(f"updates{keystr(path)} has shape {np.shape(g)}, its velocity {np.shape(v)}; {fix}")


def canonical_key(key: Any) -> jax.Array:
    """A typed scalar key from a seed, a typed key or a raw uint32 key."""
    error: type[Exception] = TypeError
    try:
        if _dtype_is(key, jax.dtypes.prng_key) and key.shape == ():
            return _uncommitted(key)
        if _dtype_is(key, jnp.uint32) and np.ndim(key) == 1:
            return _uncommitted(jax.random.wrap_key_data(key))
        if _is_scalar(key, integer=True):
            return jax.random.key(key)
    except (OverflowError, TypeError, ValueError):  # a seed too large, or the wrong number of words
        error = ValueError
    given = f"an array of shape {np.shape(key)} and dtype {key.dtype}" if isinstance(key, jax.Array) else repr(key)
    raise error(
        f"key is {given}; pass one seed, an int from -2**63 to 2**63 - 1, or one key, as jax.random.key(seed) and"
        " jax.random.PRNGKey(seed) give it (another generator's raw key through jax.random.wrap_key_data)."
    )


def _uncommitted(key: jax.Array) -> jax.Array:
    """The key without the devices that it is committed to: V_0 belongs where the parameters are."""
    if isinstance(key, jax.core.Tracer) or not key.committed:
        return key
    with jax.ensure_compile_time_eval():  # also inside jit
        words = np.asarray(jax.random.key_data(key))
    return jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(key))


def as_arrays(tree: Any) -> Any:
    """The tree with every object that has `__jax_array__` replaced by its array."""
    has_array = lambda leaf: hasattr(leaf, "__jax_array__") and not isinstance(leaf, jax.Array)
    return jax.tree.map(lambda leaf: leaf.__jax_array__() if has_array(leaf) else leaf, tree)


def _names_real(dtype: Any) -> bool:
    try:
        return not isinstance(dtype, jax.Array) and _is_real(jnp.dtype(dtype))
    except TypeError:  # no dtype at all
        return False


@functools.cache
def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and float(jnp.finfo(dtype).min) < 0  # float8_e8m0fnu has no sign


def _is_scalar(value: Any, integer: bool) -> bool:
    """A Python number, or a 0-d array (traced or not) of a real dtype; never a bool."""
    if isinstance(value, int if integer else int | float):
        return not isinstance(value, bool)
    real = _dtype_is(value, np.integer) or (_dtype_is(value, np.floating) and not integer)
    return real and np.shape(value) == ()


def _dtype_is(value: Any, dtype: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, dtype)
