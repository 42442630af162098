"""Errors about invalid arguments and trees, raised before anything is computed: the name, the value and the remedy."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Range = tuple[str, Callable[[float], bool]]  # in words, and as a test
NOT_NEGATIVE: Range = ("at least 0 and finite", lambda x: 0 <= x < math.inf)
POSITIVE: Range = ("positive and finite", lambda x: 0 < x < math.inf)
UNIT: Range = ("in [0, 1]", lambda x: 0 <= x <= 1)


def check_number(name: str, value: Any, range_text: str, in_range: Callable[[float], bool]) -> None:
    """Raises unless `value` is a real scalar in its range. The value of a tracer is unknown and is not checked."""
    if not _is_scalar(value, int | float, np.number) or _dtype_is(value, np.complexfloating):
        raise TypeError(f"{name} is {value!r}; it must be a real number, {range_text}.")
    if not isinstance(value, jax.core.Tracer) and not in_range(as_float(value)):
        raise ValueError(f"{name} is {value}; it must be {range_text}.")


def check_options(max_step_grad: Any, stacked_axes: Any, first_step: Any = 0, velocity_dtype: Any = None) -> None:
    """Raises unless each is of its type and in its range."""
    if max_step_grad is not None and not callable(max_step_grad):
        raise TypeError(
            f"max_step_grad is {max_step_grad!r}; it must be a function from a gradient matrix to m, or None:"
            " for a constant m pass lambda g: m."
        )
    if stacked_axes is not None and (isinstance(stacked_axes, bool) or not isinstance(stacked_axes, int | np.integer)):
        raise TypeError(
            f"stacked_axes is {stacked_axes!r}; it must be an int or None"
            " (under optax.inject_hyperparams name it in static_args)."
        )
    if stacked_axes is not None and stacked_axes < 0:
        raise ValueError(f"stacked_axes is {stacked_axes}; it must be at least 0.")
    if not _is_scalar(first_step, int, np.integer):
        raise TypeError(f"first_step is {first_step!r}; it must be a whole number: 0 or 1 in the paper's conventions.")
    if not isinstance(first_step, jax.core.Tracer) and int(first_step) < 0:
        raise ValueError(f"first_step is {first_step}; it must be at least 0.")
    if velocity_dtype is not None and not _is_real(jnp.dtype(velocity_dtype)):
        raise TypeError(
            f"velocity_dtype is {velocity_dtype!r}; it must be a float dtype such as jnp.bfloat16 (with a sign and a"
            " zero), or None."
        )


def check_stddev(stddev: Any, params: Any, dtype: Any) -> None:
    """Raises where the standard deviation of V_0 is beyond the range of a velocity's dtype (None: the leaf's)."""
    if isinstance(stddev, jax.core.Tracer):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        limits = jnp.finfo(_dtype_of(leaf) if dtype is None else jax.dtypes.canonicalize_dtype(dtype))
        if as_float(stddev) > float(limits.max):
            raise ValueError(
                f"velocity_stddev (alpha / learning_rate) is {as_float(stddev):g}, beyond {limits.dtype}, the dtype of"
                f" the velocity of params{jax.tree_util.keystr(path)}, which ends at {float(limits.max):.3g};"
                " lower alpha, raise learning_rate, or choose a wider velocity_dtype."
            )


def check_stacked(name: str, tree: Any, stacked_axes: int | None) -> None:
    """Raises unless every leaf has the leading axes that `stacked_axes` counts."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if np.ndim(leaf) < (stacked_axes or 0):
            raise ValueError(
                f"stacked_axes is {stacked_axes}, but {name}{jax.tree_util.keystr(path)} has shape {np.shape(leaf)};"
                " give leaves that are not stacked a transformation of their own with optax.partition."
            )


def canonical_key(key: Any) -> jax.Array:
    """A typed scalar key from a seed, a typed key or a raw uint32 key."""
    if _dtype_is(key, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(f"key is an array of {key.shape} keys; pass one, for instance key[0].")
        return key
    if _dtype_is(key, jnp.uint32) and np.ndim(key) == 1:
        try:
            return jax.random.wrap_key_data(key)
        except (TypeError, ValueError):
            pass  # a raw key of another generator, or none at all
    if _dtype_is(key, np.integer) and np.ndim(key) > 0:
        raise ValueError(
            f"key is an array of shape {np.shape(key)} and dtype {key.dtype}; pass one seed, or one key as"
            " jax.random.key and jax.random.PRNGKey give it (another generator's through jax.random.wrap_key_data)."
        )
    if not _is_scalar(key, int, np.integer):
        raise TypeError(f"key is {key!r}; pass an int, jax.random.key(seed) or jax.random.PRNGKey(seed).")
    try:
        return jax.random.key(key)
    except OverflowError as error:
        raise ValueError(f"key is {key}; a seed must fit in 64 bits, sign included.") from error


def check_real(name: str, tree: Any) -> None:
    """Raises unless every leaf is a dense array of real floats."""
    if all(map(_is_real, {_dtype_of(leaf) for leaf in jax.tree.leaves(tree)})):
        return  # without the paths, which take longer than all else
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "todense")):
        where = name + jax.tree_util.keystr(path)
        if hasattr(leaf, "todense"):
            raise TypeError(
                f"{where} is a sparse array ({type(leaf).__name__}); Gravity needs dense ones: use .todense()."
            )
        dtype = _dtype_of(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"{where} is {dtype}; wrap the optimizer in optax.contrib.split_real_and_imaginary.")
        if not _is_real(dtype):
            raise TypeError(
                f"{where} is {dtype}; Gravity updates signed floats only: keep other leaves out with optax.masked."
            )


def check_matches(updates: Any, velocity: Any) -> None:
    """Raises unless the gradients are real floats in the tree and shapes of the velocity."""
    check_real("updates", updates)
    if jax.tree.structure(updates) != jax.tree.structure(velocity):  # type: ignore[operator]
        raise ValueError(
            f"updates has the tree {jax.tree.structure(updates)}, the state {jax.tree.structure(velocity)};"
            " call init with the parameters that these gradients are taken of."
        )
    for i, (g, v) in enumerate(zip(jax.tree.leaves(updates), jax.tree.leaves(velocity), strict=True)):
        if np.shape(g) != np.shape(v):
            path, _ = jax.tree_util.tree_leaves_with_path(updates)[i]
            raise ValueError(
                f"updates{jax.tree_util.keystr(path)} has shape {np.shape(g)}, its velocity {np.shape(v)};"
                " call init with the parameters that these gradients are taken of."
            )


def as_arrays(tree: Any) -> Any:
    """The tree with the arrays that objects with `__jax_array__` stand for."""
    stands = lambda leaf: hasattr(leaf, "__jax_array__") and not isinstance(leaf, jax.Array)
    return jax.tree.map(lambda leaf: leaf.__jax_array__() if stands(leaf) else leaf, tree)


def _dtype_of(leaf: Any) -> Any:
    return leaf.dtype if isinstance(leaf, jax.Array) else jax.typeof(leaf).dtype


@functools.cache
def _is_real(dtype: Any) -> bool:
    # float8_e8m0fnu has neither a sign nor a zero.
    return jnp.issubdtype(dtype, jnp.floating) and float(jnp.finfo(dtype).min) < 0


def _is_scalar(value: Any, python_type: Any, dtype: type) -> bool:
    """A Python number of that type, or a 0-d array (traced or not) of that dtype; never a bool."""
    is_python = isinstance(value, python_type) and not isinstance(value, bool)
    return is_python or (_dtype_is(value, dtype) and np.shape(value) == ())


def _dtype_is(value: Any, dtype: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, dtype)


def as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a Python int of hundreds of digits
        return math.inf
