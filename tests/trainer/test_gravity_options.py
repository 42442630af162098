"""The variants of the authors' tuning study: their rules for m, their first velocities, their plain average."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gravity_optax import gravity_term
from lab import published, tuning_study
from trainer import config, gravity_options, optimizers
from trainer.config import Config, UsageError, resolve

KEY = jax.random.key(0)
PARAMS = {"kernel": jnp.zeros((3, 3, 40, 80)), "bias": jnp.zeros(4000)}
FANS = {"kernel": (360, 720), "bias": (4000, 4000)}


def test_the_flags_have_the_names():
    assert set(typing.get_args(config.MaxStepGradName)) == set(gravity_options.MAX_STEP_GRAD)
    assert set(typing.get_args(config.VelocityName)) == {"normal", *gravity_options.INITIALIZERS}


@pytest.mark.parametrize(
    ("rule", "m"),
    [
        ("inverse_max_abs", 1 / 3),
        ("inverse_range", 1 / 5),
        ("inverse_std", 1 / np.std([-3.0, 1.0, 2.0])),
        ("max", 2.0),
        ("max_abs", 3.0),
        ("none", np.inf),
        ("rms", 3 * np.sqrt(14 / 3)),
    ],
)
def test_the_first_step_from_rest_has_the_rules_m(rule, m):
    tx = optimizers.build(resolve(Config(alpha=0.0, first_step=0, max_step_grad=rule)), KEY)
    g = np.array([-3.0, 1.0, 2.0])
    updates, _ = tx.update(jnp.asarray(g), tx.init(jnp.zeros(3)))
    np.testing.assert_allclose(updates, -0.1 * 0.5 * g / (1 + (g / m) ** 2), rtol=1e-5)


def test_with_rms_the_step_scales_with_the_gradient_and_with_the_papers_rule_it_does_not():
    g = np.random.default_rng(0).normal(size=50)
    for rule, scales in (("rms", True), ("inverse_max_abs", False)):
        tx = optimizers.build(resolve(Config(alpha=0.0, max_step_grad=rule)), KEY)
        small, large = (tx.update(jnp.asarray(c * g, jnp.float32), tx.init(jnp.zeros(50)))[0] for c in (1, 1000))
        assert np.allclose(large, 1000 * small, rtol=1e-4) == scales


def test_the_factor_is_of_the_root_mean_square_alone():
    assert resolve(Config()).max_step_grad_factor is None
    assert resolve(Config(max_step_grad="rms")).max_step_grad_factor == 3
    g, updates = jnp.array([0.5, -2.0, 1.0]), []
    for factor in (1.0, 7.0):
        tx = optimizers.build(resolve(Config(alpha=0.0, max_step_grad="rms", max_step_grad_factor=factor)), KEY)
        updates.append(np.asarray(tx.update(g, tx.init(jnp.zeros(3)))[0]))
    ratio = np.asarray(g) ** 2 / (21 / 12)
    np.testing.assert_allclose(updates[1] / updates[0], (1 + ratio) / (1 + ratio / 49), rtol=1e-5)
    with pytest.raises(UsageError, match=r"^--max-step-grad-factor is 2.0; only --max-step-grad rms has it: leave"):
        resolve(Config(max_step_grad_factor=2.0))


@pytest.mark.parametrize("leaf", PARAMS)
@pytest.mark.parametrize("name", gravity_options.INITIALIZERS)
def test_a_first_velocity_has_the_size_of_keras_initialiser(name, leaf):
    fan_in, fan_out = FANS[leaf]
    kind, shape = name.rsplit("_", 1)
    variance = {"glorot": 2 / (fan_in + fan_out), "he": 2 / fan_in, "lecun": 1 / fan_in}.get(kind)
    if name == "random_uniform":
        variance = 0.1**2 / 12
    elif name == "random_normal":
        variance = 0.05**2
    elif name == "truncated_normal":  # Keras cuts at two standard deviations and does not make up for it
        variance = (0.05 * 0.8796) ** 2
    tx = optimizers.build(resolve(Config(velocity=name)), KEY)
    velocity = np.asarray(optax.tree.get(tx.init(PARAMS), "velocity")[leaf])
    np.testing.assert_allclose(velocity.std(), np.sqrt(variance), rtol=0.05)
    assert abs(velocity.mean()) < 0.06 * np.sqrt(variance)
    if shape == "uniform":
        assert np.abs(velocity).max() <= np.sqrt(3 * variance) * (1 + 1e-6)


def test_from_a_very_late_first_step_the_average_is_the_plain_exponential_one():
    beta = 0.99
    tx = optimizers.build(resolve(Config(alpha=0.0, beta=beta, first_step=tuning_study.CONSTANT_BETA)), KEY)
    zeta = optax.stateless(lambda g, _: jax.tree.map(lambda x: gravity_term(x, 1 / jnp.max(jnp.abs(x))), g))
    plain = optax.chain(zeta, optax.ema(beta, debias=False), optax.scale_by_learning_rate(0.1))
    w = jnp.zeros(20)
    state, plain_state = tx.init(w), plain.init(w)
    with jax.numpy_dtype_promotion("standard"):
        for g in np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32):
            updates, state = tx.update(jnp.asarray(g), state)
            expected, plain_state = plain.update(jnp.asarray(g), plain_state)
            np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-8)


def test_every_row_of_the_authors_is_a_variant_or_undefined():
    rows = [row for variant in tuning_study.VARIANTS for row in variant.rows]
    assert sorted([*rows, *tuning_study.UNDEFINED_ROWS]) == list(range(len(published.tuning())))
    names = [(variant.dataset, variant.name) for variant in tuning_study.VARIANTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("variant", tuning_study.VARIANTS, ids=lambda v: f"{v.dataset}-{v.name}")
def test_a_variant_is_what_the_authors_rows_say(variant):
    tuning = [*published.tuning().itertuples()]
    resolved = resolve(Config(variant.dataset, "vgg16", **variant.settings))
    runs = [tuning[row] for row in variant.rows]
    assert variant.epochs == max(run.epochs for run in runs)
    for run in runs:
        assert (run.dataset, run.model) == (variant.dataset, "vgg16")
        assert (resolved.learning_rate, resolved.beta) == (run.learning_rate, run.beta)
        comment = run.authors_comment.replace(" ", "")
        rule = {
            "inverse_range": "1/(max_grad-min_grad+self.epsilon)",
            "inverse_std": "1/(tf.math.reduce_std(grad)+self.epsilon)",
            "max": "=tf.math.reduce_max(grad)",
            "max_abs": "=tf.math.reduce_max(tf.math.abs(grad))",
            "inverse_max_abs": "=1/",
        }[resolved.max_step_grad]
        assert rule in comment
        assert ("beta_hat" in comment or "alphaadded" in comment) == (resolved.first_step == 0)
        drawn = resolved.velocity if resolved.velocity != "normal" else ""
        assert drawn in comment
        assert (resolved.alpha == 0) == ("initializer" not in comment and "alphaadded" not in comment)


def test_alpha_beside_another_first_velocity_is_refused():
    with pytest.raises(UsageError, match=r"^--alpha is 0.01, but --velocity is he_normal: leave --alpha out\.$"):
        resolve(Config(alpha=0.01, velocity="he_normal"))
