"""VGG's two image layers, in a form that stays fast on the CPU inside a `lax.scan`.

XLA:CPU brings convolutions into the layout of its fast routine (NHWC images,
HWIO kernels) in the entry computation only, not in the body of a loop.  The
two convolutions that autodiff makes have another layout, and in a loop they
run on a naive routine that is about 100 times slower.  So on the CPU the
backward pass is written out here as convolutions of the fast layout.
Elsewhere the layers are the plain ones.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# How much of x and dy, in float32, the kernel gradient takes at a time: about the
# cache of two cores.  1 MiB measured the same; 4 MiB was up to 20% slower.
GROUP_BYTES = 2 * 2**20


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
    if min(height, width) >= 3 and c > 1:
        return _plain_conv(x, w, precision)
    # XLA's fast routine takes no image smaller than the kernel and no single
    # channel.  There, make the product with the 3x3 neighbourhoods:
    # (n, h, w, 9c) @ (9c, k).
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    y = lax.dot(
        jnp.concatenate(patches, axis=-1).reshape(n * height * width, 9 * c),
        w.reshape(9 * c, -1),
        precision=precision,
        preferred_element_type=jnp.float32,  # a bfloat16 result is far slower
    )
    return y.astype(x.dtype).reshape(n, height, width, -1)


def _cpu_conv_fwd(x, w, precision):
    return _cpu_conv(x, w, precision), (x, w)


def _cpu_conv_bwd(precision, residuals, dy):
    x, w = residuals
    # The kernel turned by half a circle, with its channels exchanged.
    turned = _keep(w[::-1, ::-1].swapaxes(2, 3))
    dx = _cpu_conv(dy, turned, precision)
    return dx, _kernel_gradient(x, dy, precision).astype(w.dtype)


_cpu_conv.defvjp(_cpu_conv_fwd, _cpu_conv_bwd)


def _kernel_gradient(x, dy, precision):
    """Gradient of the kernel, in float32. x: (n, h, w, c), dy: (n, h, w, k).

    Images and channels change places: x is taken as c images of n channels, dy
    as a kernel of h x w.  This goes over the batch in groups that fit in the
    cache, because each element is read again for all nine places of the kernel.
    """
    n = x.shape[0]
    size = max(8, GROUP_BYTES * n // (4 * (x.size + dy.size)))
    size = min(n, 2 ** (size.bit_length() - 1))
    groups = -(-n // size)

    def split(a):
        # Images of zeros, which add nothing, fill the last group.
        a = jnp.pad(a, ((0, groups * size - n), (0, 0), (0, 0), (0, 0)))
        return a.reshape(groups, size, *a.shape[1:])

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
    dw = lax.map(one_group, (split(x), split(dy))).sum(0)
    return dw.transpose(1, 2, 0, 3)


def _keep(a):
    # Without the barrier XLA folds the transposition into the convolution,
    # which gives back the slow layout.
    return lax.optimization_barrier(a)
