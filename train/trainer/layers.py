"""VGG's layers, in a form that stays fast on the CPU inside a `lax.scan`.

XLA:CPU brings convolutions into the layout of its fast routine in the entry computation only. In the body of a loop the
two convolutions that autodiff makes run on a naive routine that is about 100 times slower. So on the CPU a convolution
is written as a product of matrices; elsewhere the layers are the plain ones.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from trainer import winograd


def conv3x3(x: jax.Array, w: jax.Array, *, precision: lax.Precision | None = None) -> jax.Array:
    """3x3 convolution, stride 1, zero padding that keeps the image size.

    x: (n, h, w, c), w: (3, 3, c, k), both float32 or both bfloat16. Returns (n, h, w, k) of the same type.

    Products are added in float32. On the CPU the gradient of x is a sum of nine rounded terms: in bfloat16 it is off by
    0.4% (root mean square), where rounding the exact one takes 0.17%.
    """
    return lax.platform_dependent(
        x, w, cpu=functools.partial(_cpu_conv, precision), default=functools.partial(_plain_conv, precision)
    )


def dense(x: jax.Array, w: jax.Array, *, precision: lax.Precision | None = None) -> jax.Array:
    """x @ w. x: (n, c), w: (c, k), both float32 or both bfloat16, as is the result."""
    return lax.platform_dependent(
        x, w, cpu=functools.partial(_cpu_product, precision), default=functools.partial(lax.dot, precision=precision)
    )


def add_bias(x: jax.Array, b: jax.Array) -> jax.Array:
    """x + b. x: (..., k), b: (k,), of one type; in float32, or its gradient would be a sum in bfloat16."""
    b = lax.expand_dims(b.astype(jnp.float32), range(x.ndim - 1))
    return (x.astype(jnp.float32) + b).astype(x.dtype)


def max_pool2x2(x: jax.Array) -> jax.Array:
    """Largest of each 2x2 square. x: (n, h, w, c) -> (n, h // 2, w // 2, c).

    An odd last row or column is left out. Where several values of a square are the largest, the first of them gets the
    gradient.
    """
    return lax.platform_dependent(x, cpu=_cpu_pool, default=_plain_pool)


def _plain_conv(precision, x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )


def _plain_pool(x):
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def _cpu_conv(precision, x, w):
    """By Winograd's method, or the 3x3 neighbourhoods times a matrix: (n, h, w, 9 c) @ (9 c, k)."""
    if winograd.pays(x.shape, w.shape):
        return winograd.conv3x3(x, w, precision)
    n, height, width, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    neighbours = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    rows = lax.optimization_barrier(jnp.concatenate(neighbours, axis=-1))
    return _cpu_product(precision, rows.reshape(-1, 9 * c), w.reshape(9 * c, -1)).reshape(n, height, width, -1)


def _cpu_product(precision, x, w):  # to float32 and then rounded: XLA:CPU's own bfloat16 result is far slower
    return winograd.product(x.dtype, precision, x, w).astype(x.dtype)


def _cpu_pool(x):
    # By comparisons: the gradient of reduce_window runs on a slow loop. With the barrier x is computed once.
    n, h, w, c = x.shape
    x = lax.optimization_barrier(x)
    squares = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    larger = lambda a, b: jnp.where((b > a) | (b != b), b, a)  # a NaN stays one
    columns = larger(*lax.split(squares, (1, 1), axis=4))
    return larger(*lax.split(columns, (1, 1), axis=2)).reshape(n, h // 2, w // 2, c)
