"""Clipping, weight decay, schedules and accumulation: against the chains written out, and through a whole run."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stop_after
from gravity_optax import gravity, scale_by_gravity
from processes import differences, result
from trainer import optimizers
from trainer.config import Config, UserError, resolve
from trainer.progress import Preempted

KEY = jax.random.key(3)
PARAMS = {"kernel": jnp.linspace(-1.0, 2.0, 12).reshape(3, 4), "bias": jnp.linspace(0.5, 1.0, 4)}
GRADIENTS = [jax.tree.map(lambda w, i=i: jnp.sin(3 * w + i) * 4, PARAMS) for i in range(6)]
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def updates(tx, gradients=GRADIENTS):
    """What `tx` makes of them, one after another; the parameters stay."""
    with jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        state, out = tx.init(PARAMS), []
        for g in gradients:
            update, state = tx.update(g, state, PARAMS)
            out.append(update)
    return out


def build(steps_per_epoch=10, **flags):
    return optimizers.build(resolve(Config(**flags)), KEY, steps_per_epoch)


def assert_close(some, others, rtol=1e-5, atol=1e-7):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), some, others)


def test_without_flags_the_chain_is_gravity_alone_bit_for_bit():
    plain = gravity(0.1, alpha=0.01, beta=0.9, key=KEY)
    assert_close(updates(build()), updates(plain), rtol=0, atol=0)
    # A weight decay of 0 too, so that checkpoints of either can be resumed with the other.
    structure = lambda tx: jax.tree.structure(tx.init(PARAMS))
    assert structure(build()) == structure(plain) == structure(build(weight_decay=0.0))


@pytest.mark.parametrize(
    ("optimizer", "flags", "clip"),
    [
        ("gravity", {"clip_norm": 2.0}, lambda g, norm: jax.tree.map(lambda x: x * min(1, 2.0 / norm), g)),
        ("momentum", {"clip_value": 1.5}, lambda g, norm: jax.tree.map(lambda x: np.clip(x, -1.5, 1.5), g)),
    ],
)
def test_what_is_clipped_is_the_gradient_that_the_optimizer_sees(optimizer, flags, clip):
    clipped = [clip(g, float(optax.tree.norm(g))) for g in GRADIENTS]
    assert all(not np.allclose(a["kernel"], b["kernel"]) for a, b in zip(clipped, GRADIENTS, strict=True))
    assert_close(updates(build(optimizer=optimizer, **flags)), updates(build(optimizer=optimizer), clipped))


def test_weight_decay_is_decoupled_and_of_kernels_alone():
    mask = {"kernel": True, "bias": False}
    chain = optax.chain(
        scale_by_gravity(beta=0.9, velocity_stddev=0.1, key=KEY),
        optax.add_decayed_weights(0.2, mask),
        optax.scale_by_learning_rate(0.1),
    )
    assert_close(updates(build(weight_decay=0.2)), updates(chain))
    adamw = optax.adamw(0.01, eps=1e-7, weight_decay=0.2, mask=mask)
    assert_close(updates(build(optimizer="adam", learning_rate=0.01, weight_decay=0.2)), updates(adamw))


# `part` of the way from the end of the warm-up to the end; for step, of the whole run.
RATES = {
    "constant": lambda part, peak, final: peak,
    "linear": lambda part, peak, final: peak + (final - peak) * part,
    "cosine": lambda part, peak, final: final + (peak - final) * (1 + np.cos(np.pi * part)) / 2,
    "step": lambda part, peak, final: peak * (final / peak) ** ((part >= 1 / 2) / 2 + (part >= 3 / 4) / 2),
}


@pytest.mark.parametrize("warmup", [0.0, 1.5])
@pytest.mark.parametrize(
    ("name", "given", "final"),
    [("constant", None, None), ("linear", 0.1, 0.1), ("cosine", None, 0), ("cosine", 0.1, 0.1), ("step", None, 0.002)],
)
def test_the_learning_rate_rises_from_zero_and_falls_to_its_final_value(name, given, final, warmup):
    flags = {"schedule": name, "final_learning_rate": given, "warmup_epochs": warmup, "epochs": 8}
    config = resolve(Config(learning_rate=0.2, **flags))
    rate = optimizers.schedule(config, 10)
    assert config.final_learning_rate == final
    for count in range(81):
        part = count / 80 if name == "step" else (count - 10 * warmup) / (80 - 10 * warmup)
        expected = 0.2 * count / 15 if count < 10 * warmup else RATES[name](part, 0.2, final)
        np.testing.assert_allclose(rate(count), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["gravity", "adam"])
def test_the_schedule_scales_the_updates_from_the_peaks_velocity_on(optimizer):
    flags = {"optimizer": optimizer, "learning_rate": 0.5}
    rates = [0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4]  # of the peak
    expected = [jax.tree.map(lambda u, r=r: u * r, u) for r, u in zip(rates, updates(build(**flags)), strict=True)]
    assert_close(updates(build(2, schedule="linear", warmup_epochs=1.0, epochs=3, **flags)), expected)


def test_accumulation_takes_one_maximum_over_the_mean_gradient():
    means = [jax.tree.map(lambda *x: sum(x) / 3, *GRADIENTS[i : i + 3]) for i in (0, 3)]
    first, second = updates(build(), means)
    assert_close(updates(build(accumulate=3)), [ZEROS, ZEROS, first, ZEROS, ZEROS, second])


def test_under_accumulation_the_schedule_counts_updates_of_which_there_must_be_one():
    rate = optimizers.schedule(resolve(Config(schedule="linear", epochs=4, accumulate=2, learning_rate=0.4)), 5)
    np.testing.assert_allclose([rate(count) for count in (0, 5, 10)], [0.4, 0.2, 0], atol=1e-8)
    with pytest.raises(UserError, match="--accumulate is 21; this run has only 20 steps"):
        build(10, accumulate=21, epochs=2)


# 16 steps an epoch, 8 chunks: neither the epoch's end nor the stop falls on the end of an accumulation.
SMALL = {"model": "mlp", "width": 0.05, "limit": 128, "batch_size": 8, "epochs": 2}
RECORDED = {"norm": "group", "schedule": "cosine", "final_learning_rate": 0.01, "clip_norm": 0.5, "accumulate": 3}
RUN = Config(**SMALL, **RECORDED, warmup_epochs=0.5, weight_decay=0.01)


def test_a_stopped_run_with_every_flag_resumes_bit_for_bit_and_records_them(tmp_path, kept):
    train = functools.partial(stop_after.train, RUN, devices=2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole)
    with pytest.raises(Preempted):
        train(stopped, chunks=2)
    train(stopped, resume=True)
    assert differences(result(whole), result(stopped)) == []
    assert json.loads((whole / "config.json").read_text()).items() >= RECORDED.items()
    # 10 updates in all, 2 of them warm-up; 5 are done after the first epoch.
    middle = 0.01 + 0.09 * (1 + np.cos(np.pi * 3 / 8)) / 2
    rates = [float(row["learning_rate"]) for row in stop_after.rows(whole / "history.csv")]
    np.testing.assert_allclose(rates, [middle, 0.01], rtol=1e-5)
    with pytest.raises(UserError, match="--epochs was 2 and is 3"):  # which would change the schedule
        train(whole, resume=True, epochs=3)
