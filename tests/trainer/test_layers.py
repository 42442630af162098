"""The CPU forms of the layers against the plain ones, forward and backward, in a loop and outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from trainer import layers


@pytest.fixture(autouse=True)
def winograd_from_64_channels_on(monkeypatch):
    monkeypatch.setattr(layers, "WINOGRAD_PRODUCTS", 0)


def plain_conv(x, w):
    return lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def conv(x, w):
    return layers.conv3x3(x, w, precision=lax.Precision.HIGHEST)


def data(n, h, w, c, k, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(n * h + c), 3)
    shapes = (n, h, w, c), (3, 3, c, k), (n, h, w, k)
    return [jax.random.normal(*a, dtype) for a in zip(keys, shapes, strict=True)]


def value_and_gradients(f):
    def run(x, w, dy):
        y, vjp = jax.vjp(f, x, w)
        return y, *vjp(dy)

    return run


def in_scan(f):
    # The last of two rounds; the arguments are carried so that the work stays in the loop.
    def run(*args):
        def body(args, _):
            out = f(*args)
            args = jax.tree.map(lambda a: a + 0 * out[0][0, 0, 0, 0], args)
            return args, out

        outs = lax.scan(body, args, length=2)[1]
        return jax.tree.map(lambda a: a[1], outs)

    return run


def assert_close(got, want, tolerance):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("c, k", [(1, 8), (8, 3)])
@pytest.mark.parametrize("size", [2, 32])
def test_conv(size, c, k, scan):
    args = data(4, size, size, c, k)
    f = value_and_gradients(conv)
    got = jax.jit(in_scan(f) if scan else f)(*args)
    assert_close(got, jax.jit(value_and_gradients(plain_conv))(*args), 1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 2, 3),  # one pixel
        (3, 2, 5, 2, 3),  # not square, one side smaller than the kernel
        (3, 7, 4, 64, 64),  # odd, and so not Winograd's
        (3, 4, 4, 64, 72),  # Winograd's form and those below
        (3, 6, 4, 72, 64),
        (19, 32, 32, 64, 64),  # two groups, the last one filled with zeros
    ],
)
def test_conv_other_shapes(shape):
    args = data(*shape)
    got = jax.jit(value_and_gradients(conv))(*args)
    assert_close(got, jax.jit(value_and_gradients(plain_conv))(*args), 1e-5)


@pytest.mark.parametrize("size, c, k", [(8, 3, 8), (4, 64, 64)])
def test_conv_bfloat16(size, c, k):
    args = data(4, size, size, c, k, jnp.bfloat16)
    got = jax.jit(in_scan(value_and_gradients(conv)))(*args)
    exact = [a.astype(jnp.float32) for a in args]
    want = jax.jit(value_and_gradients(plain_conv))(*exact)
    # One rounding to 8 bits at the end; before it, of the nine terms of the gradient of x; in Winograd's form, of sums.
    want = [a.astype(jnp.bfloat16) for a in want]
    for a, b, terms in zip(got, want, (1, 9, 1), strict=True):
        assert_close([a], [b], 2**-6.5 if c >= 64 or terms > 1 else 2**-8)


@pytest.mark.parametrize("precision", [None, lax.Precision.HIGHEST])
@pytest.mark.parametrize("size, c, k", [(8, 3, 8), (4, 64, 64)])
def test_precision_reaches_every_product(size, c, k, precision):
    args = data(4, size, size, c, k)

    def f(x, w):
        return layers.conv3x3(x, w, precision=precision)

    jaxpr = str(jax.make_jaxpr(value_and_gradients(f))(*args))
    products = jaxpr.count("conv_general_dilated[") + jaxpr.count("dot_general[")
    # Forward, dx and dw.  (Counted in both forms, the CPU's and the plain one.)
    assert products >= 3
    assert jaxpr.count("HIGHEST") >= products if precision else "HIGHEST" not in jaxpr


@pytest.mark.parametrize("size, c, k", [(8, 3, 8), (4, 64, 64)])
def test_pmap(size, c, k):
    x, w, dy = data(16, size, size, c, k)

    def f(x, w, dy):
        return lax.psum(value_and_gradients(conv)(x, w, dy)[2], "d")

    parts = [a.reshape(8, 2, *a.shape[1:]) for a in (x, dy)]
    got = jax.pmap(f, axis_name="d", in_axes=(0, None, 0))(parts[0], w, parts[1])
    want = value_and_gradients(plain_conv)(x, w, dy)[2]
    assert_close([got[0]], [want], 1e-5)


def plain_pool(x):
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("h, w", [(2, 2), (32, 32), (5, 7)])
def test_pool(h, w, scan):
    # Numbers that are all different.
    x = jax.random.permutation(jax.random.key(0), 2 * h * w * 3)
    x = x.reshape(2, h, w, 3).astype(jnp.float32)
    dy = jax.random.normal(jax.random.key(1), plain_pool(x).shape)

    def both(f):
        def run(x, dy):
            y, vjp = jax.vjp(f, x)
            return y, *vjp(dy)

        return run

    f = both(layers.max_pool2x2)
    got = jax.jit(in_scan(f) if scan else f)(x, dy)
    assert_close(got, both(plain_pool)(x, dy), 0)


def test_pool_keeps_a_nan():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 0].set(jnp.nan).at[0, 2, 3].set(jnp.nan)
    assert jnp.isnan(jax.jit(layers.max_pool2x2)(x))[0, :, :, 0].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pool_gives_the_gradient_to_the_first_of_equals(dtype):
    x = jax.random.randint(jax.random.key(0), (4, 6, 6, 8), 0, 3).astype(dtype)  # full of ties
    dy = jax.random.normal(jax.random.key(1), (4, 3, 3, 8), dtype)
    got, want = (jax.jit(lambda x, f=f: jax.vjp(f, x)[1](dy)[0])(x) for f in (layers.max_pool2x2, plain_pool))
    assert got.dtype == dtype and (got == want).all()


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-8)])
def test_dense_and_bias(dtype, tolerance, scan):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (16, 40), (40, 24), (24,), (16, 24)
    x, w, b, dy = (jax.random.normal(*a, dtype) for a in zip(keys, shapes, strict=True))

    def run(x, w, b, dy):
        y, vjp = jax.vjp(
            lambda x, w, b: layers.add_bias(layers.dense(x, w, precision=lax.Precision.HIGHEST), b), x, w, b
        )
        return y[:, :, None, None], *vjp(dy)

    y, *gradients = jax.jit(in_scan(run) if scan else run)(x, w, b, dy)
    x, w, b, dy = (np.asarray(a, np.float64) for a in (x, w, b, dy))
    product = np.asarray(jnp.asarray(x @ w, dtype), np.float64)  # rounded before the bias is added
    want = [(product + b)[:, :, None, None], dy @ w.T, x.T @ dy, dy.sum(0)]
    assert_close([y, *gradients], [jnp.asarray(a, dtype) for a in want], tolerance)
