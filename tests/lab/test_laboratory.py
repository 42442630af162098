"""The runs of a comparison are the trainer's, and the test set is looked at once."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from fake_outcomes import known, only
from lab import laboratory
from lab.laboratory import Laboratory, Stopped, split
from lab.options import SETTABLE
from lab.spaces import settings_of
from trainer import data, optimizers
from trainer.config import Config, resolve
from trainer.devices import Replicas
from trainer.loop import Trainer

FLAGS = {"model": "mlp", "width": 0.05, "limit": 96, "epochs": 2, "search_seeds": 1, "seeds": 1}  # compiled fast
# Of an entrant's own. Together they set everything that can be set.
SETTINGS = (
    "gravity:alpha=0.1,beta=0.99,first_step=0,norm=group",
    "gravity:max_step_grad=inverse_std,velocity=glorot_normal,weight_decay=0.1",
    "adam:precision=bfloat16,schedule=cosine,warmup_epochs=0.5,clip_norm=0.5",
    "rmsprop:schedule=step,final_learning_rate=0.00001,clip_value=0.1",
    "adam:accumulate=2,schedule=linear",
    "gravity:max_step_grad=rms,max_step_grad_factor=5,init=he,init_noise=0.01,augment=crop-flip",
)


def slow(test):
    """optax's own code promotes dtypes."""
    return pytest.mark.slow(jax.numpy_dtype_promotion("standard")(test))


def made_on(devices=1, **flags):
    return Laboratory(only(**FLAGS | flags), Replicas(jax.devices()[:devices]))


def first_trial(made_in, optimizer, **fields):
    return next(t for t in known(made_in.comparison) if t.optimizer == optimizer)._replace(**fields)


def trainer_of(config, made_in):
    """The trainer of that run, on the training part."""
    digits, rows = data.load("digits", limit=96), made_in.training
    if config.augment == "none":
        part = {"train_images": digits.train_images[rows], "train_labels": digits.train_labels[rows]}
        return Trainer(config, dataclasses.replace(digits, **part), jax.devices()[:1])
    trainer = Trainer(config, digits, jax.devices()[:1])  # it augments by pictures' numbers in the whole training set
    order = lambda epoch: rows[np.random.default_rng([config.seed, epoch]).permutation(len(rows))]
    trainer.train_size, trainer._order = len(rows), order
    return trainer


def losses_of(trainer):
    return pytest.approx([trainer.train_epoch(epoch)[0] for epoch in (1, 2)], rel=1e-4)


@pytest.fixture(scope="module")
def momentum():
    """Compiled once for the tests that need no particular settings."""
    return made_on(optimizers=("momentum",))


def test_the_validation_part_is_a_fixed_tenth():
    training, validation = split(1437)
    assert len(validation) == 143
    np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), np.arange(1437))
    np.testing.assert_array_equal(split(1437)[1], validation)
    assert [len(part) for part in split(2)] == [1, 1]


def test_everything_that_can_be_set_is_tried_below():
    assert {pair.partition("=")[0] for text in SETTINGS for pair in text.partition(":")[2].split(",")} == set(SETTABLE)


def test_each_entrant_has_the_network_of_its_own_settings():
    """Six steps in bfloat16 give losses too close to float32's to tell."""
    made_in = made_on(optimizers=("adam", "adam:precision=bfloat16", "adam:norm=group"), model="vgg11")
    models = [made_in._model(config) for config in made_in.comparison.entrants.values()]
    assert [model.dtype for model in models] == [np.float32, jax.numpy.bfloat16, np.float32]
    assert [model.norm for model in models] == ["none", "none", "group"]


@slow
@pytest.mark.parametrize("optimizer", ["gravity", "adam", *SETTINGS])
def test_a_run_is_the_trainers(optimizer):
    made_in = made_on(optimizers=("sgd", optimizer), model="vgg11" if optimizer == "gravity" else "mlp")
    entrant = list(made_in.comparison.entrants)[-1]
    outcome = made_in.run(first_trial(made_in, entrant, part="final", seed=3))
    trainer = trainer_of(dataclasses.replace(made_in.comparison.entrants[entrant], seed=3), made_in)
    assert outcome.loss_by_epoch == losses_of(trainer)
    assert outcome.test_accuracy == pytest.approx(trainer.evaluate()[1], abs=0.011)  # one picture of 96


@slow
def test_one_program_serves_every_learning_rate_and_seed():
    made_in = made_on(optimizers=("adam",))
    trial = first_trial(made_in, "adam")
    others = trial._replace(learning_rate=trial.learning_rate * 3), trial._replace(seed=1, part="final")
    one, *more = (made_in.run(each) for each in (trial, *others, trial))
    assert len({outcome.loss_by_epoch for outcome in (one, *more)}) == 3
    assert len(made_in._programs) == 2  # a training and an evaluation
    assert dataclasses.replace(more[-1], seconds=None) == dataclasses.replace(one, seconds=None)


@slow
def test_a_point_of_a_space_is_the_trainers_run_and_a_program_serves_all_of_a_warm_up(monkeypatch):
    made_in = made_on(optimizers=("gravity", "momentum"), sampler="qmc", trials=1)
    points = {"gravity": "beta=0.6 warmup_epochs=1 weight_decay=0.5"}
    points["momentum"] = "momentum=0.5 warmup_epochs=0 weight_decay=0.5"
    for name, point in points.items():
        settings = settings_of(point)
        own = {"momentum": settings.pop("momentum")} if name == "momentum" else {}
        config = Config(model="mlp", optimizer=name, learning_rate=0.05, **settings, width=0.05, epochs=2)
        with monkeypatch.context() as patch:  # the trainer has no flag for momentum
            patch.setattr(optimizers, "make", functools.partial(optimizers.make, **own))
            expected = losses_of(trainer_of(resolve(config), made_in))
        assert made_in.run(first_trial(made_in, name, learning_rate=0.05, point=point)).loss_by_epoch == expected
    other = first_trial(made_in, "gravity", learning_rate=0.05, point="beta=0.7 warmup_epochs=1 weight_decay=0.1")
    assert made_in.run(other).loss_by_epoch != made_in.run(other._replace(point=points["gravity"])).loss_by_epoch
    assert len(made_in._programs) == 2 + 1  # a training for each optimizer and warm-up, and an evaluation


@slow
def test_neither_validation_nor_test_pictures_are_trained_on_and_the_search_sees_no_test_picture(momentum, monkeypatch):
    seen, chunks = {}, momentum._chunks

    def recorded(rows, length):
        kind = "train" if length == laboratory._STEPS else "score"
        seen.setdefault(kind, []).append(set(rows.tolist()))
        return chunks(rows, length)

    monkeypatch.setattr(momentum, "_chunks", recorded)
    parts = (momentum.training, momentum.validation, momentum.test)
    training, validation, test = (set(part.tolist()) for part in parts)
    for part, scored in (("search", []), ("final", [test])):
        seen.clear()
        outcome = momentum.run(first_trial(momentum, "momentum", part=part))
        assert (outcome.test_accuracy is None) == (part == "search")
        assert seen == {"train": [training] * 2, "score": [validation] * 2 + scored}


@slow
def test_several_devices_make_the_same_run(momentum):
    trial, four = first_trial(momentum, "momentum"), made_on(4, optimizers=("momentum",))
    expected, got = momentum.run(trial), four.run(trial)
    assert got.loss_by_epoch == pytest.approx(expected.loss_by_epoch, rel=1e-4)
    assert got.accuracy_by_epoch == pytest.approx(expected.accuracy_by_epoch, abs=0.12)  # one picture of 9


@slow
def test_a_run_that_diverges_is_recorded_and_one_can_be_stopped_between_two_chunks(momentum):
    trial, epochs = first_trial(momentum, "momentum", part="final"), []
    outcome = momentum.run(trial._replace(learning_rate=1e20, epochs=3))
    assert not math.isfinite(outcome.loss_by_epoch[-1]) and 0 <= outcome.test_accuracy < 0.3
    assert len(outcome.loss_by_epoch) == len(outcome.accuracy_by_epoch) == 3
    with pytest.raises(Stopped):
        momentum.run(trial, lambda: len(epochs) == 1, epochs.append)
    assert epochs == [1]
