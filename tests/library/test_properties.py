"""Updates of random leaves against the float64 oracle, to a tolerance that follows from the arithmetic.

Let a = beta_hat V and b = (1 - beta_hat) zeta be the two terms, and u half the machine epsilon of the dtype that is
computed in. To first order in u the computed a is off by at most 5 u |a|: beta, its product with t, the sum, the
quotient, the product with V. The computed b is off by at most 13 u |b|: 4 for 1 - beta_hat, 1 for its product with G, 2
for the steepness G / m (rounded once, squared by the formula), 2 for the inverse and the product with it, 3 for the
denominator, 1 for the quotient. Adding rounds |a + b| <= |a| + |b| once. In sum 20 u max(|a|, |b|). A float16 or
bfloat16 leaf is then rounded to its own dtype, whose half epsilon is U: another 2 U max(|a|, |b|). In float64 the
oracle errs as well: as much again, and because it takes 1 - beta_hat as a difference, which with t <= 10 is at least
1 / 12, by 4 * 12 u: together 90 u.

On top come the dtype's smallest steps, because XLA flushes subnormal numbers to zero. With n the smallest normal number
of the dtype computed in, inputs, both products with a weight and the sum lose up to n each; where the inverse of the
steepness is flushed or the steepness overflows, |zeta| was at most 4.8 n. In all 10 n, and for float16, whose
subnormal numbers are kept, half of the smallest of those.

a + b lies between V and G, so that the true value is always representable and every output must be finite.
"""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import compat
import oracle
from gravity_optax import ScaleByGravityState, scale_by_gravity

SHAPES = [(), (0,), (1,), (6,), (3, 0), (2, 5), (1, 1), (3, 2, 4), (2, 0, 3), (2, 3, 1, 3)]
DTYPES = ["bfloat16", "float16", "float32", "float64"]
FILLINGS = ["plain", "zeros", "holes", "outlier", "every scale"]


def numbers(rng, shape, dtype):
    """An array with one of the fillings, of about 10^exponent, within the dtype's range."""
    filling, exponent, size = rng.choice(FILLINGS), rng.uniform(-30, 30), int(np.prod(shape))
    values = rng.normal(size=size)
    if filling == "zeros":
        values[:] = 0
    elif filling == "every scale":
        values *= 10.0 ** rng.uniform(-30, 30, size)
    else:
        values *= 10.0**exponent
    if filling == "holes":
        values[rng.random(size) < 0.5] = 0
    if filling == "outlier" and size:
        values[rng.integers(size)] = 10.0 ** rng.uniform(exponent, 30)
    limit = min(float(jnp.finfo(dtype).max), 1e31)
    return np.clip(values, -limit, limit).reshape(shape).astype(jnp.dtype(dtype))


@jax.jit
def update(gradients, count, velocity, beta):  # compiled once: beta and the count are traced
    tx = scale_by_gravity(0.0, beta, key=0, first_step=0)
    return tx.update(gradients, ScaleByGravityState(count, velocity))


def tolerance(dtype, larger):
    computed = jnp.finfo("float64" if dtype == "float64" else "float32")
    relative = (90 if dtype == "float64" else 20) * float(computed.eps) / 2
    if jnp.finfo(dtype).bits < computed.bits:
        relative += float(jnp.finfo(dtype).eps)
    smallest = 10 * float(computed.tiny)
    if dtype == "float16":
        smallest += float(jnp.finfo(dtype).smallest_subnormal) / 2
    return relative * larger + smallest


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), t=st.integers(0, 10), beta=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def check_an_update(seed, t, beta):
    rng = np.random.default_rng(seed)
    draw = lambda: {dtype: [numbers(rng, shape, dtype) for shape in SHAPES] for dtype in DTYPES}
    gradients, velocity = draw(), draw()
    updates, state = update(gradients, np.int32(t), velocity, np.float64(beta))
    exact = functools.partial(oracle.velocity_after, t=t, beta=beta)
    for dtype in DTYPES:
        leaves = [tree[dtype] for tree in (gradients, velocity, updates, state.velocity)]
        for g, v, *outputs in zip(*leaves, strict=True):
            with np.errstate(over="ignore", under="ignore"):
                expected = exact(g, v)
                larger = np.maximum(np.abs(exact(np.zeros_like(g), v)), np.abs(exact(g, np.zeros_like(v))))
            for ours in outputs:
                assert ours.dtype == dtype and ours.shape == g.shape
                error, allowed = np.abs(np.asarray(ours, np.float64) - expected), tolerance(dtype, larger)
                assert (error <= allowed).all(), (dtype, (error / allowed).max())  # so it is finite


def test_random_leaves_agree_with_the_oracle_and_stay_finite():
    with compat.enable_x64():
        check_an_update()
