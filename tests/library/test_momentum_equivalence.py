"""Gravity at l is SGD with momentum beta at l (1 - beta), up to the damping, its first steps and V_0; with bounds."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gravity_optax
from gravity_optax import gravity, gravity_term

RATE, BETA, ALPHA = 0.1, 0.9, 0.01
LATE = 10**8  # a first step at which beta_hat is beta
UNDAMPED = {"max_step_grad": lambda g: jnp.inf}


def updates(tx, gradients):
    """The updates of `tx` for a sequence of gradients, float64 (steps, n)."""

    def step(state, gradient):
        update, state = tx.update(gradient, state)
        return state, update

    return np.float64(
        jax.jit(lambda state, gradients: jax.lax.scan(step, state, gradients)[1])(tx.init(gradients[0]), gradients)
    )


def momentum(gradients):
    return updates(optax.sgd(RATE * (1 - BETA), momentum=BETA), gradients)


def late(alpha=0.0, **options):
    return gravity(RATE, alpha, BETA, key=0, first_step=LATE, **options)


def gradients_of(largest, steps=60, size=50):
    """Heavy-tailed, each with max|G| = `largest`."""
    drawn = np.random.default_rng(0).standard_t(2, size=(steps, size))
    return jnp.asarray(largest * drawn / np.abs(drawn).max(1, keepdims=True), jnp.float32)


def test_without_damping_late_and_from_rest_it_is_momentum():
    gradients = gradients_of(5.0)
    np.testing.assert_allclose(updates(late(**UNDAMPED), gradients), momentum(gradients), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("largest", [0.03, 0.3, 0.9])
def test_the_damping_takes_less_than_the_fourth_power_of_the_largest_gradient(largest):
    """M^4 / (1 + M^4) of the largest entry, and less of the others; so of every step, as a share of mean |G|."""
    gradients = gradients_of(largest)
    share = largest**4 / (1 + largest**4)
    taken = 1 - np.float64(gravity_term(gradients, 1 / largest)) / np.float64(gradients)
    assert taken.max() == pytest.approx(share, rel=1e-3, abs=2e-7) and taken.min() >= -2e-7
    most = share * np.abs(momentum(jnp.abs(gradients)))
    difference = np.abs(updates(late(), gradients) - momentum(gradients))
    assert np.all(difference <= 1.001 * most + 1e-8)
    assert difference.max() > 0.5 * share * np.abs(momentum(gradients)).max() or largest < 0.1


@pytest.mark.parametrize(("first_step", "said"), [(1, (1.64, 1.13, 1.02)), (0, (1.92, 1.15, 1.02))])
def test_the_first_gradients_count_more_than_with_momentum(first_step, said):
    """How far a gradient of 1 carries a weight in all, over l: momentum's 1 for every one; of steps 1, 11 and 51."""
    gradients = jnp.zeros((400, 3)).at[jnp.array([0, 10, 50]), jnp.arange(3)].set(1.0)  # a column for each
    tx = gravity(RATE, 0.0, BETA, key=0, first_step=first_step, **UNDAMPED)
    np.testing.assert_allclose(-updates(tx, gradients).sum(0) / RATE, said, atol=0.006)
    np.testing.assert_allclose(-momentum(gradients).sum(0) / RATE, 1, atol=1e-4)


@pytest.mark.parametrize(("first_step", "factor"), [(1, 2.83), (0, 1.92)])
def test_v0_adds_noise_of_so_many_alpha_to_each_weight_whatever_the_gradients(first_step, factor):
    gradients = gradients_of(5.0, steps=200, size=4000)
    with_v0, from_rest = (
        gravity(RATE, alpha, BETA, key=0, first_step=first_step, **UNDAMPED) for alpha in (ALPHA, 0.0)
    )
    added = updates(with_v0, gradients).sum(0) - updates(from_rest, gradients).sum(0)
    assert added.std() / ALPHA == pytest.approx(factor, rel=0.04)
    assert abs(added.mean()) < 4 * added.std() / np.sqrt(added.size)
    expected = -factor * RATE * np.asarray(with_v0.init(gradients[0])[0].velocity, np.float64)
    np.testing.assert_allclose(added, expected, rtol=5e-3, atol=1e-4 * added.std())


def test_the_damping_depends_on_the_scale_of_the_loss_and_a_rule_by_the_root_mean_square_does_not():
    g = gradients_of(0.5, steps=1)
    rules = {"paper's": None, "rms": lambda g: 3 * jnp.sqrt(jnp.mean(g**2))}
    for name, rule in rules.items():
        steps = [updates(gravity(RATE, 0.0, key=0, max_step_grad=rule), c * g) / c for c in (1.0, 100.0)]
        assert np.allclose(*steps, rtol=1e-4) == (name == "rms")


def test_a_spike_is_clipped_weakly():
    """One gradient of 100 times the size: momentum moves 100 times as far; Gravity's largest entry hardly moves."""
    gradients = gradients_of(0.3)
    spike = gradients.at[30].multiply(100)
    grown = lambda moved: np.abs(moved(spike)[30]).max() / np.abs(moved(gradients)[30]).max()
    assert grown(momentum) > 20 and grown(lambda g: updates(late(), g)) < 2


def test_what_v0_makes_of_the_weights_of_a_layer_is_what_the_readme_says():
    """Glorot's deviation of a 3 x 3 convolution between layers of equal width, with the noise of V_0 added."""
    text = " ".join((pathlib.Path(gravity_optax.__file__).parent / "README.md").read_text().split())
    times = lambda channels, factor: np.hypot(1, factor * ALPHA / np.sqrt(2 / (9 * 2 * channels)))
    assert f"deviation of {np.sqrt(2 / (9 * 2 * 512)):.4f}" in text
    said = "alpha = 0.01 makes them {:.1f} ({:.1f}) times as large, in one an eighth as wide {:.1f} ({:.1f}) times"
    assert said.format(*(times(channels, factor) for channels in (512, 64) for factor in (2.83, 1.92))) in text
    for largest, share in ((0.1, "0.0001 of it at M = 0.1"), (0.3, "0.008 at 0.3"), (1.0, "half at 1")):
        assert share in text and round(largest**4 / (1 + largest**4), 4) == {0.1: 0.0001, 0.3: 0.008, 1.0: 0.5}[largest]
