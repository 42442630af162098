"""The update compiled together with what makes its gradients, right also where XLA:CPU is not (jax-ml/jax 39103)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
from gravity_optax import scale_by_gravity

ROWS, SHAPES = 100, [(4, 3), (784, 64)]


def rows(width):
    return jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, width)), jnp.float32)


# Each takes a weight matrix w (n, m) and rows x (ROWS, n), and gives a loss.
LOSSES = {
    "product with a constant": lambda w, x: jnp.mean(jnp.square(x @ w @ jnp.ones((w.shape[1], 1)))),
    "mean": lambda w, x: jnp.mean(jnp.square(x @ w)),
    "bias sum": lambda w, x: jnp.mean(jnp.square(x @ jnp.ones(w.shape) + w.sum(0)[None])) / w.shape[0],
    "row sum as a product": lambda w, x: jnp.sum(jnp.square((w * 0.1) @ jnp.ones((w.shape[1], 7)))),
}


def convolution(w, x):
    image = x.reshape(ROWS, w.shape[0], 1)
    out = jax.lax.conv_general_dilated(image, w[:3, None, :], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return jnp.mean(jnp.square(out)) + jnp.mean(jnp.square(w))


LOSSES["convolution"] = convolution


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_update_in_one_jit_with_its_gradient_agrees_with_the_oracle(loss, shape):
    tx = scale_by_gravity(0.1, key=0)
    w = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    state = tx.init(w)

    @jax.jit
    def step(w, state, x):
        gradient = jax.grad(loss)(w, x)
        return gradient, *tx.update(gradient, state)

    gradient, updates, new = step(w, state, rows(shape[0]))
    expected = oracle.velocity_after(gradient, state.velocity, t=1)
    np.testing.assert_allclose(updates, expected, rtol=2e-6, atol=2e-7 * np.abs(expected).max())
    np.testing.assert_array_equal(updates, new.velocity)
