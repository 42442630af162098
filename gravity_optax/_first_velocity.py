"""The first velocity, V_0 ~ N(0, alpha / l) (Eq. 27)."""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from gravity_optax import _checks
from gravity_optax._gradient_term import compute_dtype


def initial_stddev(learning_rate: optax.ScalarOrSchedule, alpha: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """alpha / l (Eq. 27), with l at step 0; 0 where l is an array and alpha / l is not finite."""
    _checks.check_number("alpha", alpha, *_checks.NOT_NEGATIVE)
    if callable(learning_rate):
        with jax.ensure_compile_time_eval():  # a number, also when the transformation is built inside jit
            first = learning_rate(jnp.zeros([], jnp.int32))
        _checks.check_first_learning_rate(first)
    else:
        first = learning_rate
        # An array may be 0: optax.inject_hyperparams passes on what a schedule gives, at every step.
        in_range = _checks.NOT_NEGATIVE[1] if isinstance(first, jax.Array) else _checks.POSITIVE[1]
        _checks.check_number("learning_rate", first, _checks.POSITIVE[0], in_range)
    if not isinstance(first, jax.Array) and not isinstance(alpha, jax.Array):
        ratio = _checks.as_float(alpha) / _checks.as_float(first)
        if not math.isfinite(ratio):
            raise ValueError(f"alpha / learning_rate is {alpha} / {first}, which is beyond float64; lower alpha.")
        return ratio
    stddev = jnp.asarray(alpha, jnp.float32) / jnp.asarray(first, jnp.float32)
    return jnp.where(jnp.isfinite(stddev), stddev, 0)


def draw_velocity(
    key: jax.Array, stddev: jax.typing.ArrayLike, leaf: jax.typing.ArrayLike, dtype: jax.typing.DTypeLike | None
) -> jax.Array:
    """V_0 ~ N(0, stddev) (Eq. 27) with the shape and sharding of `leaf`, which may be a ShapeDtypeStruct."""
    aval = jax.typeof(leaf)
    dtype = aval.dtype if dtype is None else jax.dtypes.canonicalize_dtype(dtype)
    stddev = jnp.asarray(stddev, compute_dtype(aval))
    if isinstance(leaf, jax.core.Tracer):
        return _draw(key, stddev, aval.shape, dtype, aval.sharding)
    sharding = getattr(leaf, "sharding", None)
    if sharding is not None and getattr(leaf, "committed", True):
        # Compiled with the leaf's own sharding, so that no device ever holds a sharded leaf whole.
        return _compiled_draw(aval.shape, dtype, sharding)(key, stddev)
    # The same numbers, drawn flat in one of a few lengths (powers of 4): XLA compiles a flat draw three times faster,
    # and a length once; the first of many numbers are those of a draw of fewer. VGG11 starts some seconds earlier.
    length = 4 ** max(7, -(-(aval.size - 1).bit_length() // 2)) if 0 < aval.size < 2**20 else aval.size
    return _first(_compiled_draw((length,), dtype, None)(key, stddev), aval.shape)


def _draw(key, stddev, shape, dtype, out_sharding=None):
    sample = jax.random.normal(key, shape, stddev.dtype, out_sharding=out_sharding) * stddev
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(sample, -limit, limit).astype(dtype)


@functools.lru_cache(maxsize=1024)
def _compiled_draw(shape, dtype, sharding):
    return jax.jit(functools.partial(_draw, shape=shape, dtype=dtype), out_shardings=sharding)


@functools.partial(jax.jit, static_argnums=1)
def _first(numbers, shape):
    return numbers[: math.prod(shape)].reshape(shape)
