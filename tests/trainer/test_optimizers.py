"""Optimizers against their published formulas and Keras (marker `peers`); the recipe against chains written out."""

import functools
import json
import os
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gravity_optax import gravity
from trainer import config, optimizers
from trainer.config import Config, UserError, resolve

RATE, KEY = 0.01, jax.random.key(0)
# On both sides of every epsilon, and falling over the steps, so that epsilon's size and place and all maxima matter.
COUNTER = np.arange(1, 21)[:, None]
GRADIENTS = np.random.default_rng(0).normal(size=(20, 50)) * np.logspace(-9, 0, 50) * np.logspace(0, -2, 20)[:, None]


def build(steps_per_epoch=10, hyperparameters=(), **flags):
    return optimizers.build(resolve(Config(**flags)), KEY, steps_per_epoch, **dict(hyperparameters))


def updates(tx, params, gradients):
    """What `tx` makes of the gradients, one after another; the parameters stay."""
    with jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        state, out = tx.init(params), []
        for g in gradients:
            update, state = tx.update(g, state, params)
            out.append(update)
    return out


def steps_of_optax(name, **hyperparameters):
    """The updates that the trainer's optimizer makes of GRADIENTS, float64."""
    with jax.enable_x64(True):
        tx = build(optimizer=name, learning_rate=RATE, hyperparameters=hyperparameters)
        return np.array(updates(tx, jnp.ones(50), jnp.asarray(GRADIENTS)))


def running_mean(values, decay):
    """m <- decay m + (1 - decay) x, from 0."""
    m, out = 0.0, []
    for x in values:
        m = decay * m + (1 - decay) * x
        out.append(m)
    return np.array(out)


def polyak(g, mu=0.9):
    """w' = w - l g + mu (w - w_before)."""
    steps = [-RATE * g[0]]
    for x in g[1:]:
        steps.append(-RATE * x + mu * steps[-1])
    return np.array(steps)


def adadelta(g, rho=0.95, eps=1e-7):
    squares, deltas, steps = 0.0, 0.0, []
    for x in g:
        squares = rho * squares + (1 - rho) * x**2
        steps.append(-np.sqrt(deltas + eps) / np.sqrt(squares + eps) * x)
        deltas = rho * deltas + (1 - rho) * steps[-1] ** 2
    return RATE * np.array(steps)


def adam(g, b1=0.9, b2=0.999, eps=1e-7, second_moment=lambda v: v):
    m, v = running_mean(g, b1) / (1 - b1**COUNTER), running_mean(g**2, b2) / (1 - b2**COUNTER)
    return -RATE * m / (np.sqrt(second_moment(v)) + eps)


def adamax(g, b1=0.9, b2=0.999, eps=1e-7):
    u = np.abs(g) + eps
    for i in range(1, len(g)):
        u[i] = np.maximum(b2 * u[i - 1], u[i])
    return -RATE * running_mean(g, b1) / (1 - b1**COUNTER) / u


def nadam(g, b1=0.9, b2=0.999, eps=1e-7):
    """Dozat's, with a constant b1."""
    m_bar = b1 * running_mean(g, b1) / (1 - b1 ** (COUNTER + 1)) + (1 - b1) * g / (1 - b1**COUNTER)
    return -RATE * m_bar / (np.sqrt(running_mean(g**2, b2) / (1 - b2**COUNTER)) + eps)


# With the trainer's settings; what differs from the papers is in the docstring of `optimizers`.
PUBLISHED = {
    "sgd": lambda g: -RATE * g,
    "momentum": polyak,
    "nesterov": lambda g: 0.9 * polyak(g) - RATE * g,  # as seen from where it takes the gradient
    "adagrad": lambda g: -RATE * g / np.sqrt(0.1 + np.cumsum(g**2, 0) + 1e-7),
    "adadelta": adadelta,
    "rmsprop": lambda g: -RATE * g / (np.sqrt(running_mean(g**2, 0.9)) + 1e-7),
    "adam": adam,
    "adamax": adamax,
    "nadam": nadam,
    "amsgrad": functools.partial(adam, second_moment=np.maximum.accumulate),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_update_is_the_published_formula(name):
    np.testing.assert_allclose(steps_of_optax(name), PUBLISHED[name](GRADIENTS), rtol=1e-9)


def test_hyperparameters_replace_the_trainers_settings():
    expected = -RATE * GRADIENTS / np.sqrt(running_mean(GRADIENTS**2, 0.9) + 1e-7)
    np.testing.assert_allclose(steps_of_optax("rmsprop", eps_in_sqrt=True), expected, rtol=1e-9)


def test_the_flags_have_the_names():
    assert set(typing.get_args(config.OptimizerName)) == set(optimizers.NAMES) == set(config.OTHER_LEARNING_RATES)
    assert set(typing.get_args(config.MaxStepGradName)) == set(optimizers.MAX_STEP_GRAD)
    assert set(typing.get_args(config.VelocityName)) == {"normal", *optimizers.INITIALIZERS}


KERAS_PROGRAM = """
import importlib, json, sys
import numpy as np, tensorflow as tf
gradients, rate, legacy = json.loads(sys.stdin.read())
out = {}
for name, (cls, own) in {
    "sgd": ("SGD", {}), "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {"initial_accumulator_value": 1e-12}), "adadelta": ("Adadelta", {}),
    "rmsprop": ("RMSprop", {}), "adam": ("Adam", {}), "adamax": ("Adamax", {}), "nadam": ("Nadam", {}),
    "amsgrad": ("Adam", {"amsgrad": True}),
}.items():
    w = np.zeros(len(gradients[0]))
    if legacy:  # TensorFlow still carries the Keras optimizers of 2021, in a private module
        module = "gradient_descent" if cls == "SGD" else cls.lower()
        keras = importlib.import_module("tensorflow.python.keras.optimizer_v2." + module)
        w, tx = tf.Variable(w), getattr(keras, cls)(rate, **own)
    else:
        import keras
        w, tx = keras.Variable(w, dtype="float64"), getattr(keras.optimizers, cls)(learning_rate=rate, **own)
    out[name] = []
    for g in gradients:
        before = np.array(w)
        tx.apply_gradients([(tf.constant(g, tf.float64), w)])
        out[name].append((np.array(w) - before).tolist())
sys.stdout.write(json.dumps(out))
"""


@pytest.mark.peers
@pytest.mark.parametrize(("legacy", "epsilon_as_in"), [(True, "rmsprop"), (False, "adagrad")], ids=["2021", "3"])
def test_keras_takes_other_steps_where_the_module_says_so_and_nowhere_else(legacy, epsilon_as_in):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    task = json.dumps([GRADIENTS.tolist(), RATE, legacy])
    command = [sys.executable, "-c", KERAS_PROGRAM]
    done = subprocess.run(command, input=task, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    same = set()
    for name, steps in json.loads(done.stdout).items():
        # From 0.1 AdaGrad would hide where its epsilon is.
        ours = steps_of_optax(name, **({"initial_accumulator_value": 1e-12} if name == "adagrad" else {}))
        # Keras rounds its settings to float32; sums of steps may cancel.
        if np.all(np.max(np.abs(steps - ours), 0) < 3e-5 * np.max(np.abs(ours), 0)):
            same.add(name)
    assert same == {"sgd", "momentum", "nesterov", "adadelta", epsilon_as_in}


@pytest.mark.parametrize(
    ("rule", "m", "factor"),
    [
        ("inverse_max_abs", 1 / 3, None),
        ("inverse_range", 1 / 5, None),
        ("inverse_std", 1 / np.std([-3.0, 1.0, 2.0]), None),
        ("max", 2.0, None),
        ("max_abs", 3.0, None),
        ("none", np.inf, None),
        ("rms", 3 * np.sqrt(14 / 3), None),
        ("rms", 0.5 * np.sqrt(14 / 3), 0.5),
    ],
)
def test_the_first_step_from_rest_has_the_rules_m(rule, m, factor):
    g = np.array([-3.0, 1.0, 2.0])
    for flags, share in (({"first_step": 0}, 1 / 2), ({"beta": 0.5}, 1 / 2), ({"learning_rate": 0.3}, 1.9 / 3)):
        tx = build(alpha=0.0, max_step_grad=rule, max_step_grad_factor=factor, **flags)
        updates, _ = tx.update(jnp.asarray(g), tx.init(jnp.zeros(3)))
        expected = -flags.get("learning_rate", 0.1) * (1 - share) * g / (1 + (g / m) ** 2)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)


@pytest.mark.parametrize("name", optimizers.INITIALIZERS)
def test_a_first_velocity_has_the_size_of_keras_initialiser(name):
    kind, shape = name.rsplit("_", 1)
    # Keras cuts the truncated one at two standard deviations and does not compensate for it.
    fixed = {"random_uniform": 0.1**2 / 12, "random_normal": 0.05**2, "truncated_normal": (0.05 * 0.8796) ** 2}
    shapes = {(3, 3, 40, 80): (360, 720), (4000,): (4000, 4000)}  # with their fans
    velocities = optax.tree.get(jax.jit(build(velocity=name).init)([jnp.zeros(s) for s in shapes]), "velocity")
    for velocity, (fan_in, fan_out) in zip(map(np.asarray, velocities), shapes.values(), strict=True):
        scaled = {"glorot": 2 / (fan_in + fan_out), "he": 2 / fan_in, "lecun": 1 / fan_in}
        variance = fixed[name] if name in fixed else scaled[kind]
        np.testing.assert_allclose(velocity.std(), np.sqrt(variance), rtol=0.05)
        assert abs(velocity.mean()) < 0.06 * np.sqrt(variance)
        if shape == "uniform":
            assert np.abs(velocity).max() <= np.sqrt(3 * variance) * (1 + 1e-6)


# The recipe: clipping, weight decay, schedules and accumulation.

PARAMS = {"kernel": jnp.linspace(-1.0, 2.0, 12).reshape(3, 4), "bias": jnp.linspace(0.5, 1.0, 4)}
TREES = [jax.tree.map(lambda w, i=i: jnp.sin(3 * w + i) * 4, PARAMS) for i in range(6)]
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)

recipe = functools.partial(updates, params=PARAMS, gradients=TREES)


def assert_close(some, others, rtol=1e-5, atol=1e-7):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), some, others)


def test_without_flags_the_chain_is_gravity_alone_bit_for_bit():
    plain = gravity(0.1, alpha=0.01, beta=0.9, key=KEY)
    assert_close(recipe(build()), recipe(plain), rtol=0, atol=0)
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
    clipped = [clip(g, float(optax.tree.norm(g))) for g in TREES]
    assert all(not np.allclose(a["kernel"], b["kernel"]) for a, b in zip(clipped, TREES, strict=True))
    assert_close(recipe(build(optimizer=optimizer, **flags)), recipe(build(optimizer=optimizer), gradients=clipped))


def test_weight_decay_is_decoupled_and_of_kernels_alone():
    adamw = optax.adamw(0.01, eps=1e-7, weight_decay=0.2, mask={"kernel": True, "bias": False})
    assert_close(recipe(build(optimizer="adam", learning_rate=0.01, weight_decay=0.2)), recipe(adamw))


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
    expected = [jax.tree.map(lambda u, r=r: u * r, u) for r, u in zip(rates, recipe(build(**flags)), strict=True)]
    assert_close(recipe(build(2, schedule="linear", warmup_epochs=1.0, epochs=3, **flags)), expected)


def test_accumulation_takes_one_maximum_over_the_mean_gradient():
    means = [jax.tree.map(lambda *x: sum(x) / 3, *TREES[i : i + 3]) for i in (0, 3)]
    first, second = recipe(build(), gradients=means)
    assert_close(recipe(build(accumulate=3)), [ZEROS, ZEROS, first, ZEROS, ZEROS, second])


def test_under_accumulation_the_schedule_counts_updates_of_which_there_must_be_one():
    rate = optimizers.schedule(resolve(Config(schedule="linear", epochs=4, accumulate=2, learning_rate=0.4)), 5)
    np.testing.assert_allclose([rate(count) for count in (0, 5, 10)], [0.4, 0.2, 0], atol=1e-8)
    with pytest.raises(UserError, match="--accumulate is 21; this run has only 20 steps"):
        build(10, accumulate=21, epochs=2)
