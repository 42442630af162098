"""The first velocity, V_0 ~ N(0, alpha / l) (Eq. 27)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gravity_optax import _checks
from gravity_optax._gradient_term import compute_dtype

_STEPS = 2**17  # how much of a schedule is searched for its largest value
_STREAM = 0x47726176  # "Grav"


def initial_stddev(learning_rate: optax.ScalarOrSchedule, alpha: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """alpha / l (Eq. 27), with the largest l of a schedule; 0 where l is an array below alpha."""
    if isinstance(learning_rate, jax.Array):
        # Perhaps the first value of a schedule (optax.inject_hyperparams shows no more), and the start of a warm-up:
        # the rising l would carry a V_0 of alpha / l into the weights.
        alpha, rate = jnp.asarray(alpha, jnp.float32), learning_rate.astype(jnp.float32)
        reached = (rate > 0) & (rate >= alpha)
        return jnp.where(reached, alpha / jnp.where(reached, rate, 1), 0)
    largest = _largest_value(learning_rate) if callable(learning_rate) else learning_rate
    if isinstance(alpha, jax.Array) or isinstance(largest, jax.Array):
        return alpha / largest
    return _checks.as_float(alpha) / _checks.as_float(largest)


def _largest_value(schedule: optax.Schedule) -> float | jax.Array:
    """The largest value of a schedule in its first steps; of one that cannot be traced, at 0 and the powers of 2."""
    with jax.ensure_compile_time_eval():  # numbers, also when `init` is called inside jit
        try:
            values = jax.jit(jax.vmap(schedule))(jnp.arange(_STEPS, dtype=jnp.int32))
        except (TypeError, IndexError):  # raised where a tracer is used as a number or as a NumPy array
            counts = [0, *(2**i for i in range(_STEPS.bit_length() - 1))]
            values = jnp.stack([jnp.float32(schedule(jnp.int32(count))) for count in counts])
        if isinstance(values, jax.core.Tracer):  # of a hyperparameter, say under vmap: not checked
            return jnp.max(values)
        largest = float(np.asarray(values).max())  # not XLA:CPU's maximum, which ignores NaNs
    if not _checks.POSITIVE[1](largest):
        raise ValueError(
            f"learning_rate is a schedule whose largest value in its first {_STEPS} steps is {largest}, which must be"
            " positive and finite to give V_0 its standard deviation alpha / learning_rate; set velocity_stddev."
        )
    return largest


def draw_velocity(key: jax.Array, stddev: jax.typing.ArrayLike, params: optax.Params, dtype: Any) -> optax.Params:
    """V_0 ~ N(0, stddev) (Eq. 27) with the tree, shapes and shardings of `params`, which may be ShapeDtypeStructs."""
    leaves, treedef = jax.tree.flatten(params)
    # A stream of its own: users give the weights the same seed, and split(key, n)[i] is fold_in(key, i).
    stream = jax.random.fold_in(jax.random.clone(key), _STREAM)  # a clone, since init may be called again
    keys = jax.random.split(stream, len(leaves))
    # With JAX's default generator a shorter draw is a prefix of a longer one.
    prefixed = jax.random.key_impl(key) == "threefry2x32" and jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    kinds = [_kind(leaf, dtype, bool(prefixed)) for leaf in leaves]
    drawn: list[Any] = [None] * len(leaves)
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        drawn = [_compiled_draw(kind)(k, stddev) for k, kind in zip(keys, kinds, strict=True)]
    else:  # inside jit, leaves of a kind are drawn in one loop, which is compiled once
        for kind in dict.fromkeys(kinds):
            alike = [i for i, other in enumerate(kinds) if other == kind]
            stack = jax.lax.map(lambda k, kind=kind: _draw(k, stddev, *kind), keys[np.array(alike)])
            for i, row in zip(alike, _unstack(stack), strict=True):
                drawn[i] = row
    shapes = [np.shape(leaf) for leaf in leaves]
    return jax.tree.unflatten(treedef, [_first(x, shape) for x, shape in zip(drawn, shapes, strict=True)])


def _kind(leaf: Any, dtype: Any, prefixed: bool) -> tuple[Any, ...]:
    """The arguments of `_draw` for a leaf: its shape, or one of a few flat ones, since compiling a draw takes long."""
    shape, size = np.shape(leaf), math.prod(np.shape(leaf))
    flat = [4**i for i in range(6, 11)]
    if isinstance(leaf, jax.core.Tracer):
        flat = flat[:3]  # a loop keeps whole draws in memory
        sharding = None if jax.typeof(leaf).sharding.mesh.empty else jax.typeof(leaf).sharding
    else:
        sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    if prefixed and sharding is None and isinstance(size, int) and size <= flat[-1]:  # no int: a symbolic shape
        shape = (next(length for length in flat if size <= length),)
    return shape, _checks.kept_dtype(leaf, dtype), compute_dtype(jax.typeof(leaf)), sharding


def _draw(key, stddev, shape, dtype, sample_dtype, out_sharding=None):
    sample = jax.random.normal(key, shape, sample_dtype, out_sharding=out_sharding) * jnp.asarray(stddev, sample_dtype)
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(sample, -limit, limit).astype(dtype)


@functools.lru_cache(maxsize=1024)
def _compiled_draw(kind):
    """`_draw`, compiled with a sharding where there is one, so that no device ever holds a sharded leaf whole."""
    *arguments, sharding = kind
    return jax.jit(lambda key, stddev: _draw(key, stddev, *arguments), out_shardings=sharding)


def _first(numbers: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return numbers if numbers.shape == shape else _cut(numbers, shape)


@functools.partial(jax.jit, static_argnums=1)
def _cut(numbers, shape):
    return numbers[: math.prod(shape)].reshape(shape)


def _unstack(stack: jax.Array) -> list[jax.Array]:
    """The rows of a traced array, copied by one kernel that XLA compiles once for all of them.

    XLA compiles a kernel for each constant index. These indices are not constants to it: a loop counts their digits.
    """
    base = math.isqrt(len(stack)) + 1
    digits = jax.lax.fori_loop(0, base, lambda i, counted: (*counted[1:], i), (jnp.int32(0),) * base)
    return [_row(stack, digits[i // base], digits[i % base]) for i in range(len(stack))]


@jax.jit
def _row(stack, high, low):
    row = high * (math.isqrt(len(stack)) + 1) + low
    return jax.lax.dynamic_index_in_dim(stack, row, keepdims=False)
