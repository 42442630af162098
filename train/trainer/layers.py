"""VGG's layers, in a form that stays fast on the CPU inside a `lax.scan`.

XLA:CPU brings convolutions into the layout of its fast routine (NHWC images,
HWIO kernels) in the entry computation only, not in the body of a loop.  The
two convolutions that autodiff makes have another layout, and in a loop they
run on a naive routine that is about 100 times slower.  So on the CPU the
backward pass is written out here as convolutions of the fast layout; and where
there are many channels, both passes as matrix products by Winograd's method.
Elsewhere the layers are the plain ones.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

# How much of x and dy, in float32, the kernel gradient takes at a time: about the
# cache of two cores.  1 MiB measured the same; 4 MiB was up to 20% slower.
GROUP_BYTES = 2 * 2**20

# How much the sums of the inputs take, in float32, in one group of Winograd's method.  4 MiB was 40% slower (of many
# small products each costs its start), the whole batch at once needs gigabytes.
WINOGRAD_BYTES = 16 * 2**20
# From how many products in the plain convolution on that method pays.  The smaller networks would compile for longer.
WINOGRAD_PRODUCTS = 2**28


def conv3x3(x: jax.Array, w: jax.Array, *, precision: lax.Precision | None = None) -> jax.Array:
    """3x3 convolution, stride 1, zero padding that keeps the image size.

    x: (n, h, w, c), w: (3, 3, c, k), both float32 or both bfloat16.
    Returns (n, h, w, k) of the same type.

    All forms add in float32.  On the CPU, Winograd's method in bfloat16 rounds
    to bfloat16 the sums that it multiplies: the result (and the gradient of x)
    is then off by 0.4%, where rounding it alone takes 0.17% (root mean square).
    """
    return lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: _cpu_conv(x, w, precision),
        default=lambda x, w: _plain_conv(x, w, precision),
    )


def add_bias(x: jax.Array, b: jax.Array) -> jax.Array:
    """x + b. x: (..., k), b: (k,), of one type."""
    return lax.platform_dependent(x, b, cpu=_cpu_add_bias, default=_plain_add_bias)


def dense(x: jax.Array, w: jax.Array, *, precision: lax.Precision | None = None) -> jax.Array:
    """x @ w. x: (n, c), w: (c, k), both float32 or both bfloat16, as is the result."""
    return lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: _cpu_dense(x, w, precision),
        default=lambda x, w: lax.dot(x, w, precision=precision),
    )


def max_pool2x2(x: jax.Array) -> jax.Array:
    """Largest of each 2x2 square. x: (n, h, w, c) -> (n, h // 2, w // 2, c).

    An odd last row or column is left out.  Where several values of a square are
    the largest, the first of them gets the gradient.
    """
    return lax.platform_dependent(x, cpu=_cpu_pool, default=_plain_pool)


def _plain_conv(x, w, precision):
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _plain_pool(x):
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


@jax.custom_vjp
def _cpu_pool(x):
    return functools.reduce(jnp.maximum, _pixels(x))  # a reduction runs on a slow loop in bfloat16


def _pixels(x):
    """The four pixels of the squares, in the order of reading; (n, h // 2, w // 2, c) each."""
    n, h, w, c = x.shape
    squares = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return [squares[:, :, i, :, j] for i in range(2) for j in range(2)]


def _cpu_pool_fwd(x):
    y = _cpu_pool(x)
    return y, (x, y)


def _cpu_pool_bwd(residuals, dy):
    # The gradient of reduce_window runs on a slow loop; comparisons do not.
    x, y = residuals
    n, h, w, c = x.shape
    first = jnp.full(dy.shape, 3, jnp.int8)
    for place, pixel in reversed(list(enumerate(_pixels(x)[:3]))):
        first = jnp.where(pixel == y, jnp.int8(place), first)
    first = _keep(first)  # else it is computed again for each of the four
    places = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    dx = jnp.where(places == first[:, :, None, :, None], dy[:, :, None, :, None], 0)
    dx = dx.reshape(n, h // 2 * 2, w // 2 * 2, c)
    return (jnp.pad(dx, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))),)


_cpu_pool.defvjp(_cpu_pool_fwd, _cpu_pool_bwd)


def _plain_add_bias(x, b):
    return x + lax.expand_dims(b, range(x.ndim - 1))


_cpu_add_bias = jax.custom_vjp(_plain_add_bias)


def _cpu_add_bias_fwd(x, b):
    return _plain_add_bias(x, b), None


def _cpu_add_bias_bwd(_, dy):
    rows = dy.reshape(-1, dy.shape[-1])
    if dy.dtype == jnp.float32:
        return dy, rows.sum(0)
    # As a product, because a sum in bfloat16 is slow; with fewer than 8 rows of ones that is slow too.
    return dy, _dot(jnp.ones((8, len(rows)), dy.dtype), rows, None)[0].astype(dy.dtype)


_cpu_add_bias.defvjp(_cpu_add_bias_fwd, _cpu_add_bias_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_dense(x, w, precision):
    return _dot(x, w, precision).astype(x.dtype)


def _cpu_dense_fwd(x, w, precision):
    return _cpu_dense(x, w, precision), (x, w)


def _cpu_dense_bwd(precision, residuals, dy):
    x, w = residuals
    # dy @ w.T from the other side: XLA would write out the transposed kernel, which is far larger than dy.
    dx = lax.dot_general(w, dy, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
    dx = _keep(dx).T
    return dx.astype(x.dtype), _dot_of_rows(x, dy, precision).astype(w.dtype)


_cpu_dense.defvjp(_cpu_dense_fwd, _cpu_dense_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_conv(x, w, precision):
    _, height, width, c = x.shape
    if _winograd_is_faster(x.shape, w.shape):
        return _winograd(x, w, precision)
    if _is_tiny(x.shape):
        return _tiny_conv(x, w, precision)
    if c > 1:
        return _plain_conv(x, w, precision)
    # XLA's fast routine takes no single channel.  There, make the product with
    # the 3x3 neighbourhoods: (n, h, w, 9) @ (9, k).
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    y = _dot(jnp.concatenate(patches, axis=-1), w.reshape(9, -1), precision)
    return y.astype(x.dtype)


def _cpu_conv_fwd(x, w, precision):
    return _cpu_conv(x, w, precision), (x, w)


def _cpu_conv_bwd(precision, residuals, dy):
    x, w = residuals
    if _winograd_is_faster(x.shape, w.shape):
        return _winograd(dy, w, precision, turned=True), _winograd_kernel_gradient(x, dy, precision).astype(w.dtype)
    # The kernel turned by half a circle, with its channels exchanged.
    dx = _cpu_conv(dy, _keep(w[::-1, ::-1].swapaxes(2, 3)), precision)
    gradient = _tiny_kernel_gradient if _is_tiny(x.shape) else _kernel_gradient
    return dx, gradient(x, dy, precision).astype(w.dtype)


_cpu_conv.defvjp(_cpu_conv_fwd, _cpu_conv_bwd)


def _kernel_gradient(x, dy, precision):
    """Gradient of the kernel, in float32. x: (n, h, w, c), dy: (n, h, w, k).

    Images and channels change places: x is taken as c images of n channels, dy
    as a kernel of h x w.  This goes over the batch in groups that fit in the
    cache, because each element is read again for all nine places of the kernel.
    """
    size = max(8, GROUP_BYTES * x.shape[0] // (4 * (x.size + dy.size)))

    def one_group(pair):
        x, dy = (a.astype(jnp.float32) for a in pair)
        return lax.conv_general_dilated(
            _keep(x.transpose(3, 1, 2, 0)),  # (c, h, w, n)
            _keep(dy.transpose(1, 2, 0, 3)),  # (h, w, n, k)
            window_strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )

    # (c, 3, 3, k)
    dw = lax.map(one_group, (_split(x, size), _split(dy, size))).sum(0)
    return dw.transpose(1, 2, 0, 3)


def _split(a, size):
    """(n, ...) -> (groups, size or less, ...); images of zeros, which add nothing, fill the last group."""
    n = a.shape[0]
    size = min(n, 2 ** (size.bit_length() - 1))
    groups = -(-n // size)
    a = jnp.pad(a, ((0, groups * size - n), (0, 0), (0, 0), (0, 0)))
    return a.reshape(groups, size, *a.shape[1:])


# On an image of 2x2 or less, which XLA's fast routine does not take, each pixel sees all others: the convolution is a
# product of whole images with a matrix whose blocks are the places of the kernel.


def _is_tiny(x_shape):
    return max(x_shape[1:3]) < 3


def _tiny_places(height, width):
    """For each pixel that is read, a row: the place of the kernel that it meets for each pixel of the result."""
    pixels = list(itertools.product(range(height), range(width)))
    return [[(a - i + 1, b - j + 1) for i, j in pixels] for a, b in pixels]


def _tiny_conv(x, w, precision):
    n, height, width, _ = x.shape
    rows = [jnp.concatenate([w[place] for place in row], axis=1) for row in _tiny_places(height, width)]
    y = _dot(x.reshape(n, -1), jnp.concatenate(rows), precision)
    return y.reshape(n, height, width, -1).astype(x.dtype)


def _tiny_kernel_gradient(x, dy, precision):
    n, height, width, c = x.shape
    k = dy.shape[3]
    blocks = _dot_of_rows(x.reshape(n, -1), dy.reshape(n, -1), precision).reshape(height * width, c, height * width, k)
    gradient = [[jnp.zeros((c, k), jnp.float32)] * 3 for _ in range(3)]
    for pixel, row in enumerate(_tiny_places(height, width)):
        for result, (i, j) in enumerate(row):
            gradient[i][j] = gradient[i][j] + blocks[pixel, :, result]
    return jnp.stack([jnp.stack(row) for row in gradient])


def _dot(x, w, precision):
    """(..., c) @ (c, k) in float32: a bfloat16 result is far slower."""
    y = lax.dot(x.reshape(-1, w.shape[0]), w, precision=precision, preferred_element_type=jnp.float32)
    return y.reshape(*x.shape[:-1], w.shape[1])


def _dot_of_rows(x, dy, precision):
    """(rows, c), (rows, k) -> (c, k), in float32."""
    dimensions = (((0,), (0,)), ((), ()))
    return lax.dot_general(x, dy, dimensions, precision=precision, preferred_element_type=jnp.float32)


# Winograd's convolution F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308, section 4.1): a tile of 2x2 results comes from
# 16 products of sums of 4x4 inputs with sums of the kernel, not from 36.  Each of the five maps is along one direction;
# `_both_ways` applies it along two.


def _winograd_is_faster(x_shape, w_shape):
    n, height, width, c = x_shape
    k = w_shape[3]
    even = height % 2 == 0 and width % 2 == 0 and min(height, width) >= 4
    return even and min(c, k) >= 64 and n * height * width * 9 * c * k >= WINOGRAD_PRODUCTS


def _of_input(a, b, c, d):
    return a - c, b + c, c - b, b - d


def _of_kernel(a, b, c):
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _to_output(a, b, c, d):
    return a + b + c, b - c - d


def _of_output_gradient(a, b):  # _to_output, transposed
    return a, a + b, a - b, -b


def _to_kernel_gradient(a, b, c, d):  # _of_kernel, transposed
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


def _both_ways(f, grid):
    """f of the rows of a grid of arrays, then of its columns."""
    columns = zip(*[f(*row) for row in grid], strict=True)
    return list(zip(*[f(*column) for column in columns], strict=True))


def _tiles(x):
    """(n, h, w, c) -> 4x4 grid of float32 (tiles, c): sums of the 4x4 inputs at every second row and column."""
    _, height, width, c = x.shape
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    grid = [[x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]
    return [[a.reshape(-1, c) for a in row] for row in _both_ways(_of_input, grid)]


def _images_per_group(x, w):
    tiles = x.shape[1] * x.shape[2] // 4
    return max(1, WINOGRAD_BYTES // (16 * 4 * tiles * max(w)))


def _winograd(x, w, precision, turned=False):
    """The convolution; `turned`: with the kernel turned by half a circle and its channels exchanged, (3, 3, k, c)."""
    n, height, width, _ = x.shape
    kernel = _both_ways(_of_kernel, [list(row) for row in w.astype(jnp.float32)])
    if turned:  # which exchanges the first and the last sums of each direction
        kernel = [[kernel[i][j] for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    channels = 1 if turned else 0

    def product(a, b):
        a, b = a.astype(x.dtype), b.astype(x.dtype)
        dimensions = (((1,), (channels,)), ((), ()))
        return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)

    def one_group(x):
        products = [
            [product(*pair) for pair in zip(*rows, strict=True)] for rows in zip(_tiles(x), kernel, strict=True)
        ]
        y = jnp.stack([jnp.stack(row) for row in _both_ways(_to_output, products)]).astype(x.dtype)
        y = y.reshape(2, 2, -1, height // 2, width // 2, y.shape[-1])
        return y.transpose(2, 3, 0, 4, 1, 5).reshape(-1, height, width, y.shape[-1])

    y = lax.map(one_group, _split(x, _images_per_group(x, w.shape[2:])))
    return y.reshape(-1, height, width, y.shape[-1])[:n]


def _winograd_kernel_gradient(x, dy, precision):
    c, k = x.shape[3], dy.shape[3]
    size = _images_per_group(x, (c, k))

    def one_group(total, pair):
        x, dy = pair[0], pair[1].astype(jnp.float32)
        grid = [[dy[:, i::2, j::2].reshape(-1, k) for j in range(2)] for i in range(2)]
        products = [
            [_dot_of_rows(a, b, precision) for a, b in zip(*rows, strict=True)]
            for rows in zip(_tiles(x), _both_ways(_of_output_gradient, grid), strict=True)
        ]
        return jax.tree.map(jnp.add, total, products), None

    zero = [[jnp.zeros((c, k), jnp.float32)] * 4] * 4
    total, _ = lax.scan(one_group, zero, (_split(x, size), _split(dy, size)))
    return jnp.stack([jnp.stack(row) for row in _both_ways(_to_kernel_gradient, total)])


def _keep(a):
    # The barrier keeps XLA from folding a transposition into the convolution or
    # product, which gives back the slow layout.
    return lax.optimization_barrier(a)
