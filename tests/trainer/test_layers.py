"""The CPU forms of the layers against the plain ones, forward and backward, in a loop and outside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from trainer import layers


@pytest.fixture(autouse=True)
def winograd_from_64_channels_on(monkeypatch):
    monkeypatch.setattr(layers, "WINOGRAD_PRODUCTS", 0)
    monkeypatch.setattr(layers, "WINOGRAD_GROUP", 2 * 4 * 4 * 8 * 6 * 72)  # bytes of two pictures of the largest below


conv = functools.partial(layers.conv3x3, precision=lax.Precision.HIGHEST)
plain_conv = functools.partial(layers._plain_conv, lax.Precision.HIGHEST)


def normal(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def data(n, h, w, c, k, **dtype):
    return normal((n, h, w, c), (3, 3, c, k), (n, h, w, k), **dtype)


def with_gradients(f, scan=False):
    """(arguments of f, dy) -> its value and its gradients; or of the last of two rounds, whose work is in the loop."""

    def run(*args):
        y, vjp = jax.vjp(f, *args[:-1])
        return y, *vjp(args[-1])

    def body(args, _):
        out = run(*args)
        return jax.tree.map(lambda a: a + 0 * out[0].ravel()[0], args), out

    in_scan = lambda *args: jax.tree.map(lambda a: a[1], lax.scan(body, args, length=2)[1])
    return jax.jit(in_scan if scan else run)


def assert_close(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize(
    ("shape", "scan"),
    [
        ((4, 6, 6, 1, 8), True),
        ((3, 2, 5, 2, 3), False),  # not square, one side smaller than the kernel
        ((3, 7, 4, 64, 64), False),  # odd, and so not Winograd's
        ((5, 8, 6, 64, 72), True),  # Winograd's form, in three groups, the last one filled with zeros
    ],
)
def test_conv(shape, scan):
    args = data(*shape)
    assert_close(with_gradients(conv, scan)(*args), with_gradients(plain_conv)(*args), 1e-5)


def test_winograds_form_is_for_even_pictures_of_4_x_4_and_more_and_64_channels():
    pays = lambda h, w, c, k: layers.winograd_pays((8, h, w, c), (3, 3, c, k))
    assert pays(4, 6, 64, 64) and pays(6, 4, 64, 64)
    assert not any(pays(*s) for s in ((5, 6, 64, 64), (6, 5, 64, 64), (2, 4, 64, 64), (4, 4, 32, 64), (4, 4, 64, 32)))


both_forms = pytest.mark.parametrize("size, c, k", [(8, 3, 8), (4, 64, 64)])


@both_forms
def test_conv_bfloat16(size, c, k):
    args = data(4, size, size, c, k, dtype=jnp.bfloat16)
    got, want = with_gradients(conv)(*args), with_gradients(plain_conv)(*(a.astype(jnp.float32) for a in args))
    # One rounding to 8 bits at the end; before it, of the nine terms of the gradient of x; in Winograd's form, of sums.
    for a, b, terms in zip(got, want, (1, 9, 1), strict=True):
        assert_close([a], [b.astype(jnp.bfloat16)], 2**-6.5 if c >= 64 or terms > 1 else 2**-8)


@both_forms
@pytest.mark.parametrize("precision", [None, lax.Precision.HIGHEST])
def test_precision_reaches_every_product(size, c, k, precision):
    f = functools.partial(layers.conv3x3, precision=precision)
    jaxpr = str(jax.make_jaxpr(with_gradients(f))(*data(4, size, size, c, k)))
    products = jaxpr.count("conv_general_dilated[") + jaxpr.count("dot_general[")
    assert products >= 3  # forward, dx and dw, in both forms, the CPU's and the plain one
    assert jaxpr.count("HIGHEST") >= products if precision else "HIGHEST" not in jaxpr


@pytest.mark.parametrize(("size", "dtype", "scan"), [((5, 7), jnp.float32, False), ((6, 6), jnp.bfloat16, True)])
def test_pool_keeps_the_largest_and_gives_the_gradient_to_the_first_of_equals(size, dtype, scan):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4, *size, 8)), dtype)  # full of ties
    (dy,) = normal((4, size[0] // 2, size[1] // 2, 8), dtype=dtype)
    assert_close(with_gradients(layers.max_pool2x2, scan)(x, dy), with_gradients(layers._plain_pool)(x, dy), 0)
    holed = x.at[0, 1, 0].set(jnp.nan).at[0, 2, 3].set(jnp.nan)
    assert jnp.isnan(layers.max_pool2x2(holed))[0, :2, :2, 0].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-8)])
def test_dense_and_bias(dtype, tolerance):
    args = normal((16, 40), (40, 24), (24,), (16, 24), dtype=dtype)
    f = lambda x, w, b: layers.add_bias(layers.dense(x, w, precision=lax.Precision.HIGHEST), b)
    x, w, b, dy = (np.asarray(a, np.float64) for a in args)
    product = np.asarray(jnp.asarray(x @ w, dtype), np.float64)  # rounded before the bias is added
    want = [jnp.asarray(a, dtype) for a in (product + b, dy @ w.T, x.T @ dy, dy.sum(0))]
    assert_close(with_gradients(f)(*args), want, tolerance)
