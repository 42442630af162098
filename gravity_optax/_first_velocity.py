"""The first velocity, V_0 ~ N(0, alpha / l) (Eq. 27)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gravity_optax._gradient_term import compute_dtype

_STEPS = 2**17  # how much of a schedule is searched for its largest value
_CALLED = (*range(1024), *range(1024, _STEPS, 128))  # at which of them one that cannot be traced is called


def initial_stddev(learning_rate: optax.ScalarOrSchedule, alpha: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """alpha / l (Eq. 27), with the largest l of a schedule; 0 where l is an array below alpha."""
    if isinstance(learning_rate, jax.Array):
        # Perhaps the start of a warm-up (optax.inject_hyperparams shows no more): a rising l would carry V_0 into W.
        alpha, rate = jnp.asarray(alpha, jnp.float32), learning_rate.astype(jnp.float32)
        reached = (rate > 0) & (rate >= alpha)
        return jnp.where(reached, alpha / jnp.where(reached, rate, 1), 0)
    largest = _largest_value(learning_rate) if callable(learning_rate) else learning_rate
    alpha, largest = (x if isinstance(x, jax.Array) else float(x) for x in (alpha, largest))  # type: ignore[arg-type]
    return alpha / largest


def _largest_value(schedule: optax.Schedule) -> float | jax.Array:
    """The largest value of a schedule in its first steps, as far as it is defined and finite."""
    with jax.ensure_compile_time_eval():  # numbers, also when `init` is called inside jit
        try:
            if jax.make_jaxpr(schedule)(jnp.int32(0)).effects:  # a print, say, which vmap would repeat for every step
                raise TypeError
            values = jax.jit(jax.vmap(schedule))(jnp.arange(_STEPS, dtype=jnp.int32))
        except Exception:  # where a tracer is used as a number, for instance, or a callback takes no vmap
            values = _called(schedule)
        if isinstance(values, jax.core.Tracer):  # of a hyperparameter, say under vmap: not checked
            return jnp.max(values)
        numbers = np.asarray(values).astype(np.float64)
        finite = np.logical_and.accumulate(np.isfinite(numbers))
        largest = float(numbers[finite].max() if finite[0] else numbers[0])
    if not 0 < largest < math.inf:
        raise ValueError(
            f"learning_rate is a schedule whose largest value in its first {_STEPS} steps is {largest}, which must be"
            " positive and finite to give V_0 its standard deviation alpha / learning_rate; set velocity_stddev."
        )
    return largest


def _called(schedule: optax.Schedule) -> list[float]:
    """The values of a schedule at the steps `_CALLED`, or at those before it fails: it may end with the run."""
    values: list[float] = []
    function: Any = jax.jit(schedule)
    try:
        function(jnp.int32(0))
    except Exception:
        function = schedule
    for step in _CALLED:
        try:
            values.append(float(function(jnp.int32(step))))
        except Exception:
            if not values:
                raise
            break
    return values


def draw_velocity(key: jax.Array, stddev: jax.typing.ArrayLike, params: optax.Params, dtype: Any) -> optax.Params:
    """V_0 ~ N(0, stddev) (Eq. 27) with the tree, shapes and shardings of `params`, which may be ShapeDtypeStructs."""
    leaves, treedef = jax.tree.flatten(params)
    # A separate stream: users give the weights the same seed, and split(key, n)[i] is fold_in(key, i).
    stream = jax.random.fold_in(jax.random.clone(key), 0x47726176)  # "Grav"; a clone, since init may be called again
    keys = jax.random.split(stream, len(leaves))
    # With JAX's default generator a shorter draw is a prefix of a longer one.
    prefixed = jax.random.key_impl(key) == "threefry2x32" and jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    kinds = [_kind(leaf, dtype, bool(prefixed)) for leaf in leaves]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):  # leaves of a kind are drawn in one loop
        drawn: list[Any] = [None] * len(leaves)
        for kind in dict.fromkeys(kinds):
            alike = [i for i, other in enumerate(kinds) if other == kind]
            stack = jax.lax.map(lambda k, kind=kind: _draw(k, stddev, *kind), keys[np.array(alike)])
            for i, row in zip(alike, _unstack(stack), strict=True):
                drawn[i] = row
    else:
        drawn = [_compiled_draw(*kind)(k, stddev) for k, kind in zip(keys, kinds, strict=True)]
    shaped = [x if x.shape == np.shape(p) else _cut(x, np.shape(p)) for x, p in zip(drawn, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def _kind(leaf: Any, dtype: Any, prefixed: bool) -> tuple[Any, ...]:
    """The arguments of `_draw` for a leaf: its shape, or one of a few flat ones, since compiling a draw takes long."""
    shape, aval = np.shape(leaf), jax.typeof(leaf)
    if isinstance(leaf, jax.core.Tracer):  # a loop keeps whole draws in memory
        longest, sharding = 4**8, None if aval.sharding.mesh.empty else aval.sharding
    else:
        longest, sharding = 4**10, getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    size = math.prod(shape)  # not an int where the shape is symbolic
    if prefixed and sharding is None and isinstance(size, int) and size <= longest:
        shape = (next(4**i for i in range(6, 11) if size <= 4**i),)
    return shape, aval.dtype if dtype is None else dtype, compute_dtype(aval), sharding


def _draw(key, stddev, shape, dtype, sample_dtype, out_sharding=None):
    sample = jax.random.normal(key, shape, sample_dtype, out_sharding=out_sharding) * jnp.asarray(stddev, sample_dtype)
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(sample, -limit, limit).astype(dtype)


@functools.lru_cache(maxsize=1024)
def _compiled_draw(shape, dtype, sample_dtype, sharding):
    """`_draw`, compiled with a sharding where there is one, so that no device ever holds a sharded leaf whole."""
    return jax.jit(lambda key, stddev: _draw(key, stddev, shape, dtype, sample_dtype), out_shardings=sharding)


_cut = jax.jit(lambda numbers, shape: numbers[: math.prod(shape)].reshape(shape), static_argnums=1)


def _unstack(stack: jax.Array) -> list[jax.Array]:
    """The rows of a traced array. XLA would compile a kernel for each constant index; a loop's digits are none."""
    base = math.isqrt(len(stack)) + 1
    digits = jax.lax.fori_loop(0, base, lambda i, counted: (*counted[1:], i), (jnp.int32(0),) * base)
    row = jax.jit(lambda high, low: jax.lax.dynamic_index_in_dim(stack, high * base + low, keepdims=False))
    return [row(digits[i // base], digits[i % base]) for i in range(len(stack))]
