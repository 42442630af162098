"""What Gravity does to a gradient: the numbers of Section 6 of how_gravity_works.ipynb, measured again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gravity_optax import gravity, scale_by_gravity

SCALES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)
AT_REST = gravity(0.1, alpha=0, key=0)


@jax.numpy_dtype_promotion("standard")  # Adam raises a float to an int32
@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (optax.sgd(0.1), SCALES),
        (optax.adam(1e-3), (1, 1, 1, 1, 1, 1, 1)),
        (AT_REST, (1.17e-3, 1.17e-2, 0.117, 1, 6.99e-2, 6.88e-4, 7.77e-7)),
        (optax.chain(optax.clip_by_global_norm(1.0), AT_REST), (7.93e-3, 7.93e-2, 0.793, 1, 1, 1, 1)),
        (optax.chain(optax.clip(1.0), AT_REST), (1.17e-3, 1.17e-2, 0.117, 1, 2.18, 2.32, 2.34)),
    ],
    ids=["sgd", "adam", "gravity", "clipped_by_norm", "clipped_by_entry"],
)
def test_first_step_by_the_scale_of_the_gradient(tx, expected):
    gradient = np.random.default_rng(0).normal(size=1000)
    gradient = jnp.asarray(gradient / np.max(np.abs(gradient)), jnp.float32)
    size = lambda scale: optax.tree.norm(tx.update(gradient * scale, tx.init(gradient), gradient)[0])
    sizes = np.asarray(jax.jit(jax.vmap(size))(jnp.array(SCALES)))
    np.testing.assert_allclose(sizes / sizes[SCALES.index(1.0)], expected, rtol=1e-2)


@pytest.mark.parametrize(
    ("before", "outlier", "of_the_outlier", "of_the_others"),
    [
        (optax.identity(), (1, 10, 100), (0.5, 1e-3, 1e-6), (0.099, 0.05, 9.9e-4)),
        (optax.clip_by_global_norm(1.0), (100,), (0.5,), (1e-3,)),
        (optax.clip(1.0), (100,), (0.5,), (0.099,)),
    ],
    ids=["plain", "clipped_by_norm", "clipped_by_entry"],
)
def test_one_outlier_stops_its_leaf(before, outlier, of_the_outlier, of_the_others):
    tx = optax.chain(before, scale_by_gravity(0.0, key=0, first_step=0))  # V is half of zeta
    zeta = lambda gradient: 2 * tx.update(gradient, tx.init(gradient))[0]
    gradients = np.full((len(outlier), 100), 0.1, np.float32)
    gradients[:, 0] = outlier
    found = jax.jit(jax.vmap(zeta))(gradients)[:, :2]
    np.testing.assert_allclose(found, np.stack([of_the_outlier, of_the_others], 1), rtol=0.02)


@pytest.mark.parametrize(
    ("before", "expected", "spread"),
    # V_0 carries the parameter 0.03 away on average: its standard deviation 0.1 times 2.8 times the learning rate.
    [(optax.identity(), 10, 0.15), (optax.clip_by_global_norm(1.0), 0, 0.01), (optax.scale(1e-3), 0, 0.01)],
    ids=["plain", "clipped", "scaled"],
)
def test_a_steep_parabola_stalls_unless_clipped_or_scaled(before, expected, spread):
    def end(key):
        tx, start = optax.chain(before, gravity(0.1, key=key)), jnp.float32(10)

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(100 * w, state, w)  # the gradient of 50 w^2, 1000 at the start
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (start, tx.init(start)), length=1000)[0][0]

    ends = jax.jit(jax.vmap(end))(jax.vmap(jax.random.key)(jnp.arange(50)))
    np.testing.assert_allclose(ends, expected, rtol=0, atol=spread)


@jax.numpy_dtype_promotion("standard")  # a float32 learning rate times a bfloat16 update
@pytest.mark.parametrize(("beta", "rounded"), [(0.9, 0.8984375), (0.99, 0.98828125), (0.999, 1.0)])
def test_injected_hyperparameters_of_bfloat16_parameters_are_rounded_unless_told_otherwise(beta, rounded):
    params = jnp.zeros(3, jnp.bfloat16)

    def injected(**kwargs):
        tx = optax.inject_hyperparams(gravity, **kwargs)(learning_rate=0.1, beta=beta, key=0)
        return tx.init(params).hyperparams["beta"]

    assert float(injected()) == rounded
    assert float(injected(hyperparam_dtype=jnp.float32)) == np.float32(beta)
