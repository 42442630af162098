"""The first velocity, V_0 ~ N(0, alpha / l) (Eq. 27)."""

import collections
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gravity_optax import _checks
from gravity_optax._gradient_term import compute_dtype

_STEPS = 2**17  # of a schedule, in which its largest value is looked for
_STREAM = 0x47726176  # "Grav"


def initial_stddev(learning_rate: optax.ScalarOrSchedule, alpha: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """alpha / l (Eq. 27), with the largest l of a schedule; 0 where l is an array below alpha."""
    largest = largest_value(learning_rate) if callable(learning_rate) else learning_rate
    if isinstance(largest, jax.Array):
        # Perhaps the first value of a schedule (optax.inject_hyperparams shows no more), and the start of a warm-up:
        # the rising l would carry a V_0 of alpha / l into the weights.
        alpha, largest = jnp.asarray(alpha, jnp.float32), largest.astype(jnp.float32)
        reached = (largest > 0) & ((largest >= alpha) | callable(learning_rate))
        return jnp.where(reached, alpha / jnp.where(reached, largest, 1), 0)
    if isinstance(alpha, jax.Array):
        return alpha / largest
    stddev = _checks.as_float(alpha) / _checks.as_float(largest)
    if not math.isfinite(stddev):
        raise ValueError(f"alpha / learning_rate is {alpha} / {largest}, which is beyond float64; lower alpha.")
    return stddev


def largest_value(schedule: optax.Schedule) -> float | jax.Array:
    """The largest value of a schedule in its first steps; of one that cannot be traced, at 0 and the powers of 2."""
    with jax.ensure_compile_time_eval():  # numbers, also when `init` is called inside jit
        try:
            values = jax.jit(jax.vmap(schedule))(jnp.arange(_STEPS, dtype=jnp.int32))
        except (TypeError, IndexError):  # what jax raises where a tracer is used as a number or as a NumPy array
            counts = [0, *(2**i for i in range(_STEPS.bit_length() - 1))]
            values = jnp.stack([jnp.float32(schedule(jnp.int32(count))) for count in counts])
        if isinstance(values, jax.core.Tracer):  # of a hyperparameter, say under vmap: not checked
            return jnp.max(values)
        largest = float(np.asarray(values).max())  # not XLA:CPU's maximum, which passes over NaNs
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

    def kind(leaf: Any) -> tuple[Any, ...]:
        aval = jax.typeof(leaf)
        kept = aval.dtype if dtype is None else jax.dtypes.canonicalize_dtype(dtype)
        if isinstance(leaf, jax.core.Tracer):
            sharding = aval.sharding
        else:
            sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
        return aval.shape, kept, compute_dtype(aval), sharding

    if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        velocity = [_draw_now(k, stddev, *kind(leaf)) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, velocity)
    # Inside jit, leaves that are alike are drawn in one loop, which is compiled once.
    alike = collections.defaultdict(list)
    for i, leaf in enumerate(leaves):
        alike[kind(leaf)].append(i)
    velocity = [None] * len(leaves)
    for kinds, places in alike.items():
        drawn = jax.lax.map(lambda k, kinds=kinds: _draw(k, stddev, *kinds), keys[np.array(places)])
        for row, i in enumerate(places):
            # XLA compiles equal kernels once; with the index as a constant in it, each would be another.
            row = jax.lax.optimization_barrier(np.int32(row))
            velocity[i] = jax.lax.dynamic_index_in_dim(drawn, row, keepdims=False)
    return jax.tree.unflatten(treedef, velocity)


def _draw(key, stddev, shape, dtype, sample_dtype, out_sharding=None):
    sample = jax.random.normal(key, shape, sample_dtype, out_sharding=out_sharding) * jnp.asarray(stddev, sample_dtype)
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(sample, -limit, limit).astype(dtype)


def _draw_now(key, stddev, shape, dtype, sample_dtype, sharding):
    if sharding is not None:  # compiled with it, so that no device ever holds a sharded leaf whole
        return _compiled_draw(shape, dtype, sample_dtype, sharding)(key, stddev)
    # The same numbers, drawn flat, which XLA compiles in half the time, and in one of a few lengths (powers of 4), each
    # compiled once: with JAX's default generator the first of many numbers are those of a draw of fewer.
    size = math.prod(shape)
    partitionable = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if size < 2**20 and partitionable and jax.random.key_impl(key) == "threefry2x32":
        size = 4 ** max(7, -(-size.bit_length() // 2))
    return _first(_compiled_draw((size,), dtype, sample_dtype, None)(key, stddev), shape)


@functools.lru_cache(maxsize=1024)
def _compiled_draw(shape, dtype, sample_dtype, sharding):
    draw = functools.partial(_draw, shape=shape, dtype=dtype, sample_dtype=sample_dtype)
    return jax.jit(draw, out_shardings=sharding)


@functools.partial(jax.jit, static_argnums=1)
def _first(numbers, shape):
    return numbers[: math.prod(shape)].reshape(shape)
