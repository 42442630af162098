"""What Gravity does to a gradient, and how near it is to SGD with momentum: the numbers of Section 6 of
how_gravity_works.ipynb, and of "What Gravity is, in practice" in gravity_optax/README.md, measured again."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gravity_optax
from gravity_optax import gravity, gravity_term, scale_by_gravity

SCALES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)
AT_REST = gravity(0.1, alpha=0, key=0)
BY_NORM, BY_ENTRY = optax.clip_by_global_norm(1.0), optax.clip(1.0)


@jax.numpy_dtype_promotion("standard")  # Adam raises a float to an int32
def test_first_step_by_the_scale_of_the_gradient():
    rows = [
        (optax.sgd(0.1), SCALES),
        (optax.adam(1e-3), (1, 1, 1, 1, 1, 1, 1)),
        (AT_REST, (1.17e-3, 1.17e-2, 0.117, 1, 6.99e-2, 6.88e-4, 7.77e-7)),
        (optax.chain(BY_NORM, AT_REST), (7.93e-3, 7.93e-2, 0.793, 1, 1, 1, 1)),
        (optax.chain(BY_ENTRY, AT_REST), (1.17e-3, 1.17e-2, 0.117, 1, 2.18, 2.32, 2.34)),
    ]
    gradient = np.random.default_rng(0).normal(size=1000)
    gradient = jnp.asarray(gradient / np.max(np.abs(gradient)), jnp.float32)
    size = lambda tx, scale: optax.tree.norm(tx.update(gradient * scale, tx.init(gradient), gradient)[0])
    sizes = jax.jit(jax.vmap(lambda scale: jnp.stack([size(tx, scale) for tx, _ in rows])))(jnp.array(SCALES))
    expected = np.array([row for _, row in rows]).T
    np.testing.assert_allclose(sizes / sizes[SCALES.index(1.0)][None], expected, rtol=1e-2)


def test_one_outlier_stops_its_leaf():
    rows = [  # what is in front; the outlier among entries of 0.1; what becomes of it, and of them
        (optax.identity(), 1, 0.5, 0.099),
        (optax.identity(), 10, 1e-3, 0.05),
        (optax.identity(), 100, 1e-6, 9.9e-4),
        (BY_NORM, 100, 0.5, 1e-3),
        (BY_ENTRY, 100, 0.5, 0.099),
    ]

    def zeta(before, outlier):
        gradient = jnp.full(100, 0.1).at[0].set(outlier)
        tx = optax.chain(before, scale_by_gravity(0.0, key=0, first_step=0))  # V is half of zeta
        return 2 * tx.update(gradient, tx.init(gradient))[0][:2]

    found = jax.jit(lambda outliers: [zeta(before, x) for (before, *_), x in zip(rows, outliers, strict=True)])
    outliers = [float(outlier) for _, outlier, *_ in rows]
    np.testing.assert_allclose(found(outliers), [expected for _, _, *expected in rows], rtol=0.02)


def test_a_steep_parabola_stalls_unless_clipped_or_scaled():
    def end(before, key):
        tx, start = optax.chain(before, gravity(0.1, key=key)), jnp.float32(10)

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(100 * w, state, w)  # the gradient of 50 w^2, 1000 at the start
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (start, tx.init(start)), length=1000)[0][0]

    ends = jax.vmap(lambda key: [end(before, key) for before in (optax.identity(), BY_NORM, optax.scale(1e-3))])
    plain, clipped, scaled = jax.jit(ends)(jax.vmap(jax.random.key)(jnp.arange(50)))
    # V_0 carries the parameter 0.03 away on average: its standard deviation 0.1 times 2.8 times the learning rate.
    np.testing.assert_allclose(plain, 10, rtol=0, atol=0.15)
    np.testing.assert_allclose([clipped, scaled], 0, rtol=0, atol=0.01)


@jax.numpy_dtype_promotion("standard")  # a float32 learning rate times a bfloat16 update
def test_injected_hyperparameters_of_bfloat16_parameters_are_rounded_unless_told_otherwise():
    params = jnp.zeros(3, jnp.bfloat16)
    for beta, rounded in ((0.9, 0.8984375), (0.99, 0.98828125), (0.999, 1.0)):
        for options, expected in (({}, rounded), ({"hyperparam_dtype": jnp.float32}, np.float32(beta))):
            tx = optax.inject_hyperparams(gravity, **options)(learning_rate=0.1, beta=beta, key=0)
            assert float(tx.init(params).hyperparams["beta"]) == expected


# ---- beside momentum, up to the damping, the first steps and V_0

RATE, BETA, ALPHA = 0.1, 0.9, 0.01
UNDAMPED = {"max_step_grad": lambda g: jnp.inf}
MOMENTUM = optax.sgd(RATE * (1 - BETA), momentum=BETA)
LATE = functools.partial(gravity, RATE, 0.0, BETA, key=0, first_step=10**8)  # where beta_hat is beta, from rest
DAMPED = LATE()


@functools.partial(jax.jit, static_argnums=0)
def scanned(tx, gradients):
    step = lambda state, gradient: tx.update(gradient, state)[::-1]
    return jax.lax.scan(step, tx.init(gradients[0]), gradients)[1]


def updates(tx, gradients):
    """The updates of `tx` for a sequence of gradients, float64 (steps, n)."""
    return np.float64(scanned(tx, gradients))


def gradients_of(largest, steps=60, size=50):
    """Heavy-tailed, each with max|G| = `largest`."""
    drawn = np.random.default_rng(0).standard_t(2, size=(steps, size))
    return jnp.asarray(largest * drawn / np.abs(drawn).max(1, keepdims=True), jnp.float32)


def test_without_damping_late_and_from_rest_it_is_momentum():
    gradients = gradients_of(5.0)
    np.testing.assert_allclose(updates(LATE(**UNDAMPED), gradients), updates(MOMENTUM, gradients), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("largest", [0.03, 0.3, 0.9])
def test_the_damping_takes_less_than_the_fourth_power_of_the_largest_gradient(largest):
    """M^4 / (1 + M^4) of the largest entry, and less of the others; so of every step, as a share of mean |G|."""
    gradients, share = gradients_of(largest), largest**4 / (1 + largest**4)
    taken = 1 - np.float64(gravity_term(gradients, 1 / largest)) / np.float64(gradients)
    assert taken.max() == pytest.approx(share, rel=1e-3, abs=2e-7) and taken.min() >= -2e-7
    ours, theirs, most = updates(DAMPED, gradients), updates(MOMENTUM, gradients), updates(MOMENTUM, jnp.abs(gradients))
    assert np.all(np.abs(ours - theirs) <= 1.001 * share * np.abs(most) + 1e-8)
    assert np.abs(ours - theirs).max() > 0.5 * share * np.abs(theirs).max() or largest < 0.1


@pytest.mark.parametrize(
    ("first_step", "said", "noise"), [(1, (1.64, 1.13, 1.02), 2.83), (0, (1.92, 1.15, 1.02), 1.92)]
)
def test_the_first_gradients_count_more_than_with_momentum_and_v0_adds_noise(first_step, said, noise):
    """How far a gradient of 1 carries a weight in all, over l: momentum's 1 for every one; of steps 1, 11 and 51.

    V_0 adds noise of so many alpha to each weight, whatever the gradients.
    """
    from_rest, with_v0 = (gravity(RATE, a, BETA, key=0, first_step=first_step, **UNDAMPED) for a in (0.0, ALPHA))
    gradients = gradients_of(5.0, steps=400, size=4000)
    gradients = gradients.at[:, :3].set(0).at[jnp.array([0, 10, 50]), jnp.arange(3)].set(1.0)  # a column for each
    carried = {tx: updates(tx, gradients).sum(0) for tx in (from_rest, with_v0, MOMENTUM)}
    np.testing.assert_allclose(-carried[from_rest][:3] / RATE, said, atol=0.006)
    np.testing.assert_allclose(-carried[MOMENTUM][:3] / RATE, 1, atol=1e-4)
    added = carried[with_v0] - carried[from_rest]
    assert added.std() / ALPHA == pytest.approx(noise, rel=0.04)
    assert abs(added.mean()) < 4 * added.std() / np.sqrt(added.size)
    expected = -noise * RATE * np.asarray(with_v0.init(gradients[0])[0].velocity, np.float64)
    np.testing.assert_allclose(added, expected, rtol=5e-3, atol=1e-4 * added.std())


def test_the_damping_depends_on_the_scale_of_the_loss_and_a_rule_by_the_root_mean_square_does_not():
    g = gradients_of(0.5, steps=1)
    for rule in (None, lambda g: 3 * jnp.sqrt(jnp.mean(g**2))):
        tx = gravity(RATE, 0.0, key=0, max_step_grad=rule)
        steps = [updates(tx, c * g) / c for c in (1.0, 100.0)]
        assert np.allclose(*steps, rtol=1e-4) == (rule is not None)


def test_a_spike_is_clipped_weakly():
    """One gradient of 100 times the size: momentum moves 100 times as far; Gravity's largest entry hardly moves."""
    gradients = gradients_of(0.3)
    spike = gradients.at[30].multiply(100)
    grown = lambda tx: np.abs(updates(tx, spike)[30]).max() / np.abs(updates(tx, gradients)[30]).max()
    assert grown(MOMENTUM) > 20 and grown(DAMPED) < 2


def test_what_v0_makes_of_the_weights_of_a_layer_is_what_the_readme_says():
    """Glorot's deviation of a 3 x 3 convolution between layers of equal width, with the noise of V_0 added."""
    text = " ".join((pathlib.Path(gravity_optax.__file__).parent / "README.md").read_text().split())
    times = lambda channels, factor: np.hypot(1, factor * ALPHA / np.sqrt(2 / (9 * 2 * channels)))
    assert f"deviation of {np.sqrt(2 / (9 * 2 * 512)):.4f}" in text
    said = "alpha = 0.01 makes them {:.1f} ({:.1f}) times as large, in one an eighth as wide {:.1f} ({:.1f}) times"
    assert said.format(*(times(channels, factor) for channels in (512, 64) for factor in (2.83, 1.92))) in text
    for largest, share, said in (
        (0.1, 0.0001, "0.0001 of it at M = 0.1"),
        (0.3, 0.008, "0.008 at 0.3"),
        (1, 0.5, "half at 1"),
    ):
        assert said in text and round(largest**4 / (1 + largest**4), 4) == share
