"""The variants of the authors' tuning study: which of their runs each stands for, and their plain average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gravity_optax import gravity_term
from lab import published, tuning_study
from trainer import optimizers
from trainer.config import Config, resolve

KEY = jax.random.key(0)


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


def test_from_a_very_late_first_step_the_average_is_the_plain_exponential_one():
    beta = 0.99
    tx = optimizers.build(resolve(Config(alpha=0.0, beta=beta, first_step=tuning_study.CONSTANT_BETA)), KEY)
    zeta = optax.stateless(lambda g, _: jax.tree.map(lambda x: gravity_term(x, 1 / jnp.max(jnp.abs(x))), g))
    plain = optax.chain(zeta, optax.ema(beta, debias=False), optax.scale_by_learning_rate(0.1))
    w = jnp.zeros(20)
    state, plain_state = tx.init(w), plain.init(w)
    with jax.numpy_dtype_promotion("standard"):
        for g in np.random.default_rng(0).normal(size=(25, 20)).astype(np.float32):
            updates, state = tx.update(jnp.asarray(g), state)
            expected, plain_state = plain.update(jnp.asarray(g), plain_state)
            np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-8)
