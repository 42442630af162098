"""VGG's two image layers, in a form that stays fast on the CPU inside a `lax.scan`.

XLA:CPU brings convolutions into the layout of its fast routine (NHWC images,
HWIO kernels) in the entry computation only, not in the body of a loop.  The
two convolutions that autodiff makes have another layout, and in a loop they
run on a naive routine that is about 100 times slower.  So on the CPU the
backward pass is written out here as convolutions of the fast layout.
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
WINOGRAD_BYTES = 16 * 2**20


def conv3x3(x: jax.Array, w: jax.Array, *, precision: lax.Precision | None = None) -> jax.Array:
    """3x3 convolution, stride 1, zero padding that keeps the image size.

    x: (n, h, w, c), w: (3, 3, c, k), both float32 or both bfloat16.
    Returns (n, h, w, k) of the same type.
    """
    return lax.platform_dependent(
        x,
        w,
        cpu=lambda x, w: _cpu_conv(x, w, precision),
        default=lambda x, w: _plain_conv(x, w, precision),
    )


def max_pool2x2(x: jax.Array) -> jax.Array:
    """Largest of each 2x2 square. x: (n, h, w, c) -> (n, h // 2, w // 2, c).

    An odd last row or column is left out.  Where several values of a square are
    the largest, the CPU form divides the gradient equally between them; the
    other form gives it to the first.
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


def _cpu_pool(x):
    # The gradient of reduce_window runs on a slow loop; that of max does not.
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_conv(x, w, precision):
    n, height, width, c = x.shape
    if _winograd_is_faster(x.shape, w.shape):
        return _winograd(x, w, precision)
    if min(height, width) < 3:
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
    # The kernel turned by half a circle, with its channels exchanged.
    turned = _keep(w[::-1, ::-1].swapaxes(2, 3))
    dx = _cpu_conv(dy, turned, precision)
    if _winograd_is_faster(x.shape, w.shape):
        dw = _winograd_kernel_gradient(x, dy, precision)
    elif min(x.shape[1:3]) < 3:
        dw = _tiny_kernel_gradient(x, dy, precision)
    else:
        dw = _kernel_gradient(x, dy, precision)
    return dx, dw.astype(w.dtype)


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


# On an image smaller than the kernel, which XLA's fast routine does not take, most places of the kernel lie on the
# padding for most pixels (20 of 36 at 2x2).  Here the product with each place takes only the pixels that it reaches.


def _tiny_conv(x, w, precision):
    y = jnp.zeros((*x.shape[:3], w.shape[3]), jnp.float32)
    for i, j in itertools.product(range(3), range(3)):
        (above, from_above), (left, from_left) = _reach(i, x.shape[1]), _reach(j, x.shape[2])
        y = y.at[:, above, left].add(_dot(x[:, from_above, from_left], w[i, j], precision))
    return y.astype(x.dtype)


def _tiny_kernel_gradient(x, dy, precision):
    places = []
    for i, j in itertools.product(range(3), range(3)):
        (above, from_above), (left, from_left) = _reach(i, x.shape[1]), _reach(j, x.shape[2])
        pixels = x[:, from_above, from_left], dy[:, above, left]
        places.append(_dot_of_rows(*(a.reshape(-1, a.shape[-1]) for a in pixels), precision))
    return jnp.stack(places).reshape(3, 3, *places[0].shape)


def _reach(i, size):
    """Which outputs, of `size` in a line, see an input through place i of the kernel, and which inputs those are."""
    return slice(max(0, 1 - i), max(0, size + min(0, 1 - i))), slice(max(0, i - 1), max(0, size + min(0, i - 1)))


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
    _, height, width, c = x_shape
    k = w_shape[3]
    return height % 2 == 0 and width % 2 == 0 and min(height, width) >= 4 and min(c, k) >= 64


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
    """(n, h, w, c) -> 4x4 grid of float32 (tiles, c): the sums of the overlapping 4x4 inputs, every 2nd row and column."""
    n, height, width, c = x.shape
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    grid = [[x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]
    return [[a.reshape(-1, c) for a in row] for row in _both_ways(_of_input, grid)]


def _tiles_per_group(x, w):
    tiles = x.shape[1] * x.shape[2] // 4
    return max(1, WINOGRAD_BYTES // (16 * 4 * tiles * max(w)))


def _winograd(x, w, precision):
    n, height, width, c = x.shape
    k = w.shape[3]
    kernel = _both_ways(_of_kernel, [list(row) for row in w.astype(jnp.float32)])

    def one_group(x):
        sums = _tiles(x)
        products = [
            [_dot(a, b, precision) for a, b in zip(*rows, strict=True)] for rows in zip(sums, kernel, strict=True)
        ]
        y = jnp.stack([jnp.stack(row) for row in _both_ways(_to_output, products)]).astype(x.dtype)
        y = y.reshape(2, 2, -1, height // 2, width // 2, k)
        return y.transpose(2, 3, 0, 4, 1, 5).reshape(-1, height, width, k)

    y = lax.map(one_group, _split(x, _tiles_per_group(x, (c, k))))
    return y.reshape(-1, height, width, k)[:n]


def _winograd_kernel_gradient(x, dy, precision):
    c, k = x.shape[3], dy.shape[3]
    size = _tiles_per_group(x, (c, k))

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
    total = _keep(total)
    return _keep(jnp.stack([jnp.stack(row) for row in _both_ways(_to_kernel_gradient, total)]))


def _keep(a):
    # Without the barrier XLA folds the transposition into the convolution,
    # which gives back the slow layout.
    return lax.optimization_barrier(a)
