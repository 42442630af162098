"""3x3 convolutions by Winograd's method on a CPU: F(2x2, 3x3) of Lavin and Gray, arXiv 1509.09308, section 4.1.

A tile of 2x2 results comes from 16 products of sums of 4x4 inputs with sums of the kernel, not from 36. Each of the
three maps is along one direction; `_both_ways` applies it along two. The gradient is autodiff's.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

# What the sums of the inputs of a group of images take, in float32.
GROUP_BYTES = 16 * 2**20
# From how many products in the plain convolution on the method pays; smaller networks would compile for longer.
PRODUCTS = 2**28


def pays(x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> bool:
    """Whether the method is the faster one for x: (n, h, w, c), which must have even h and w, and w: (3, 3, c, k)."""
    even = x_shape[1] % 2 == 0 and x_shape[2] % 2 == 0 and min(x_shape[1:3]) >= 4
    return even and min(w_shape[2:]) >= 64 and math.prod(x_shape) * 9 * w_shape[3] >= PRODUCTS


def conv3x3(x: jax.Array, w: jax.Array, precision: lax.Precision | None) -> jax.Array:
    """As `layers.conv3x3`. In bfloat16 the sums are rounded before the products: results are off by 0.45%."""
    n, height, width, _ = x.shape
    kernel = _both_ways(_of_kernel, [list(row) for row in w.astype(jnp.float32)])
    multiply = functools.partial(product, x.dtype, precision)

    @jax.checkpoint  # the sums of the inputs take four times the memory of x
    def one_group(x, kernel):
        products = [map(multiply, *rows) for rows in zip(_tiles(x), kernel, strict=True)]
        y = jnp.stack([jnp.stack(row) for row in _both_ways(_to_output, products)]).astype(x.dtype)
        y = y.reshape(2, 2, -1, height // 2, width // 2, y.shape[-1])
        return y.transpose(2, 3, 0, 4, 1, 5).reshape(-1, height, width, y.shape[-1])

    size = max(1, GROUP_BYTES // (4 * 4 * height * width * max(w.shape[2:])))
    groups = -(-n // size)
    x = jnp.pad(x, ((0, groups * size - n), (0, 0), (0, 0), (0, 0))).reshape(groups, size, *x.shape[1:])
    return lax.map(lambda x: one_group(x, kernel), x).reshape(-1, height, width, w.shape[3])[:n]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(dtype: jnp.dtype, precision: lax.Precision | None, x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w in float32, x: (n, c), w: (c, k); of operands rounded to `dtype`, as are those of its two gradients."""
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
