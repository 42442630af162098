"""The arithmetic of VGG's layers, in a form that is fast on the CPU inside a `lax.scan`. The modules are in `vgg`.

XLA:CPU converts convolutions to the layout of its fast routine in the entry computation only. In the body of a loop the
two convolutions of the gradient use a naive routine that is about 100 times slower. On the CPU a convolution is
therefore written as a product of matrices; elsewhere the layers are the plain ones.

Large 3x3 convolutions go through Winograd's method on the CPU, F(2x2, 3x3) of Lavin and Gray, arXiv 1509.09308,
section 4.1: a tile of 2x2 results comes from 16 products of sums of 4x4 inputs and sums of the kernel instead of 36.
Each of the three maps acts along one direction; `_both_ways` applies it along both. The gradient is autodiff's.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

# Winograd's method: the bytes that the sums of the inputs of a group of images take in float32, and the number of
# products in the plain convolution from which it is worth while; smaller networks would only compile for longer.
WINOGRAD_GROUP, WINOGRAD_PRODUCTS = 16 * 2**20, 2**28


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
    """x + b. x: (..., k), b: (k,), of one type; added in float32, so that b's gradient is not a sum in bfloat16."""
    b = lax.expand_dims(b.astype(jnp.float32), range(x.ndim - 1))
    return (x.astype(jnp.float32) + b).astype(x.dtype)


def max_pool2x2(x: jax.Array) -> jax.Array:
    """Largest of each 2x2 square. x: (n, h, w, c) -> (n, h // 2, w // 2, c).

    An odd last row or column is dropped. If several values of a square are the largest, the first gets the gradient.
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
    """By Winograd's method, or as the 3x3 neighbourhoods times a matrix: (n, h, w, 9 c) @ (9 c, k)."""
    if winograd_pays(x.shape, w.shape):
        return winograd_conv3x3(x, w, precision)
    n, height, width, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    neighbours = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    rows = lax.optimization_barrier(jnp.concatenate(neighbours, axis=-1))
    return _cpu_product(precision, rows.reshape(-1, 9 * c), w.reshape(9 * c, -1)).reshape(n, height, width, -1)


def _cpu_product(precision, x, w):  # in float32, then rounded: a bfloat16 result is far slower on XLA:CPU
    return product(x.dtype, precision, x, w).astype(x.dtype)


def _cpu_pool(x):
    # By comparisons: the gradient of reduce_window is a slow loop. Because of the barrier x is computed once.
    n, h, w, c = x.shape
    x = lax.optimization_barrier(x)
    squares = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    larger = lambda a, b: jnp.where((b > a) | (b != b), b, a)  # keeps a NaN
    columns = larger(*lax.split(squares, (1, 1), axis=4))
    return larger(*lax.split(columns, (1, 1), axis=2)).reshape(n, h // 2, w // 2, c)


def winograd_pays(x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> bool:
    """Whether Winograd's method is faster for x: (n, h, w, c), which must have even h and w, and w: (3, 3, c, k)."""
    even = x_shape[1] % 2 == 0 and x_shape[2] % 2 == 0 and min(x_shape[1:3]) >= 4
    return even and min(w_shape[2:]) >= 64 and math.prod(x_shape) * 9 * w_shape[3] >= WINOGRAD_PRODUCTS


def winograd_conv3x3(x: jax.Array, w: jax.Array, precision: lax.Precision | None) -> jax.Array:
    """`conv3x3` for shapes that `winograd_pays` accepts.

    In bfloat16 the sums are rounded before the products: results are off by 0.45%.
    """
    n, height, width, _ = x.shape
    kernel = _both_ways(_of_kernel, [list(row) for row in w.astype(jnp.float32)])
    multiply = functools.partial(product, x.dtype, precision)

    @jax.checkpoint  # the sums of the inputs take four times the memory of x
    def one_group(x, kernel):
        products = [map(multiply, *rows) for rows in zip(_tiles(x), kernel, strict=True)]
        y = jnp.stack([jnp.stack(row) for row in _both_ways(_to_output, products)]).astype(x.dtype)
        y = y.reshape(2, 2, -1, height // 2, width // 2, y.shape[-1])
        return y.transpose(2, 3, 0, 4, 1, 5).reshape(-1, height, width, y.shape[-1])

    size = max(1, WINOGRAD_GROUP // (4 * 4 * height * width * max(w.shape[2:])))
    groups = -(-n // size)
    x = jnp.pad(x, ((0, groups * size - n), (0, 0), (0, 0), (0, 0))).reshape(groups, size, *x.shape[1:])
    return lax.map(lambda x: one_group(x, kernel), x).reshape(-1, height, width, w.shape[3])[:n]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(dtype: jnp.dtype, precision: lax.Precision | None, x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w in float32, x: (n, c), w: (c, k), from operands rounded to `dtype`; so are its two gradients."""
    return lax.dot(x.astype(dtype), w.astype(dtype), precision=precision, preferred_element_type=jnp.float32)


def _product_fwd(dtype, precision, x, w):
    return product(dtype, precision, x, w), (x, w)


def _product_bwd(dtype, precision, residuals, dy):
    x, w = residuals
    dot = functools.partial(lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    dx = dot(dy.astype(dtype), w.astype(dtype), (((1,), (1,)), ((), ())))
    dw = dot(x.astype(dtype), dy.astype(dtype), (((0,), (0,)), ((), ())))
    return dx.astype(x.dtype), dw.astype(w.dtype)


product.defvjp(_product_fwd, _product_bwd)


def _of_input(a, b, c, d):
    return a - c, b + c, c - b, b - d


def _of_kernel(a, b, c):
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _to_output(a, b, c, d):
    return a + b + c, b - c - d


def _both_ways(f, grid):
    """f of the rows of a grid of arrays, then of its columns."""
    columns = zip(*[f(*row) for row in grid], strict=True)
    return list(zip(*[f(*column) for column in columns], strict=True))


def _tiles(x):
    """(n, h, w, c) -> 4x4 grid of float32 (tiles, c): sums of the 4x4 inputs at every second row and column."""
    n, height, width, c = x.shape
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Cut by `split`, whose gradient is a concatenation; that of a strided slice is slow.
    squares = x.reshape(n, height // 2 + 1, 2, width // 2 + 1, 2, c)
    pixels = [lax.split(row, (1, 1), axis=4) for row in lax.split(squares, (1, 1), axis=2)]
    grid = [
        [pixels[i % 2][j % 2][:, i // 2 : (i + height) // 2, 0, j // 2 : (j + width) // 2, 0] for j in range(4)]
        for i in range(4)
    ]
    return [[a.reshape(-1, c) for a in row] for row in _both_ways(_of_input, grid)]
