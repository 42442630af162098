"""The runs of a comparison are the trainer's, and the test set is looked at once."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from lab import laboratory, search
from lab.laboratory import Laboratory, Stopped, split
from lab.options import SETTABLE, CompareOptions, comparisons
from lab.spaces import settings_of
from trainer import data, optimizers, steps
from trainer.config import Config, resolve
from trainer.devices import Program, Replicas
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
    (comparison,) = comparisons(CompareOptions("unused", **FLAGS | flags))
    return Laboratory(comparison, Replicas(jax.devices()[:devices]))


def first_trial(made_in, optimizer, part="search"):
    trial = next(t for t in search.known(made_in.comparison, {}) if t.optimizer == optimizer)
    return trial._replace(part=part)


def training_part(made_in):
    digits, rows = data.load("digits", limit=96), made_in.training
    return dataclasses.replace(digits, train_images=digits.train_images[rows], train_labels=digits.train_labels[rows])


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
    outcome = made_in.run(first_trial(made_in, entrant, "final")._replace(seed=3))
    digits, part = data.load("digits", limit=96), training_part(made_in)
    config = dataclasses.replace(made_in.comparison.entrants[entrant], seed=3)
    if config.augment == "none":
        trainer = Trainer(config, part, jax.devices()[:1])
    else:  # it goes by the pictures' numbers, which are those of the whole training set
        trainer, size = Trainer(config, digits, jax.devices()[:1]), len(made_in.training)
        order = lambda epoch: made_in.training[np.random.default_rng([3, epoch]).permutation(size)]
        trainer.train_size, trainer._order = size, order
    losses = [trainer.train_epoch(epoch)[0] for epoch in (1, 2)]
    assert outcome.loss_by_epoch == pytest.approx(losses, rel=1e-4)
    assert outcome.test_accuracy == pytest.approx(trainer.evaluate()[1], abs=0.011)  # one picture of 96


@pytest.fixture(scope="module")
def momentum():
    """Compiled once for the tests that need no particular settings."""
    return made_on(optimizers=("momentum",))


@slow
def test_one_program_serves_every_learning_rate_and_seed():
    made_in = made_on(optimizers=("adam",))
    trial = first_trial(made_in, "adam")
    one = made_in.run(trial)
    other = made_in.run(trial._replace(learning_rate=trial.learning_rate * 3))
    seeded = made_in.run(trial._replace(seed=1, part="final"))
    assert len({o.loss_by_epoch for o in (one, other, seeded)}) == 3
    assert len(made_in._programs) == 2  # a training and an evaluation
    assert dataclasses.replace(made_in.run(trial), seconds=None) == dataclasses.replace(one, seconds=None)


@slow
def test_a_point_of_a_space_is_the_trainers_run_and_a_program_serves_all_of_a_warm_up(monkeypatch):
    made_in = made_on(optimizers=("gravity", "momentum"), sampler="qmc", trials=1)
    part = training_part(made_in)
    gravity, momentum = (first_trial(made_in, name)._replace(learning_rate=0.05) for name in ("gravity", "momentum"))
    gravity = gravity._replace(point="beta=0.6 warmup_epochs=1 weight_decay=0.5")
    momentum = momentum._replace(point="momentum=0.5 warmup_epochs=0 weight_decay=0.5")
    for trial, own in ((gravity, {}), (momentum, {"momentum": 0.5})):
        settings = {name: value for name, value in settings_of(trial.point).items() if name not in own}
        config = Config(model="mlp", optimizer=trial.optimizer, learning_rate=0.05, **settings, width=0.05, epochs=2)
        with monkeypatch.context() as patch:  # the trainer has no flag for momentum
            patch.setattr(optimizers, "make", functools.partial(optimizers.make, **own))
            trainer = Trainer(resolve(config), part, jax.devices()[:1])
            losses = [trainer.train_epoch(epoch)[0] for epoch in (1, 2)]
        assert made_in.run(trial).loss_by_epoch == pytest.approx(losses, rel=1e-4)
    other = made_in.run(gravity._replace(point="beta=0.7 warmup_epochs=1 weight_decay=0.1"))
    assert other.loss_by_epoch != made_in.run(gravity).loss_by_epoch
    assert len(made_in._programs) == 2 + 1  # a training for each optimizer and warm-up, and an evaluation


@slow
def test_neither_validation_nor_test_pictures_are_trained_on_and_the_search_sees_no_test_picture(momentum, monkeypatch):
    seen, chunks = {}, momentum._chunks

    def recorded(rows, length):
        kind = "train" if length == laboratory._STEPS else "score"
        seen.setdefault(kind, []).append(set(rows.tolist()))
        return chunks(rows, length)

    monkeypatch.setattr(momentum, "_chunks", recorded)
    trial, training, validation = first_trial(momentum, "momentum"), momentum.training, momentum.validation
    for part, scored in (("search", []), ("final", [set(momentum.test.tolist())])):
        seen.clear()
        outcome = momentum.run(trial._replace(part=part))
        assert (outcome.test_accuracy is None) == (part == "search")
        assert seen == {"train": [set(training.tolist())] * 2, "score": [set(validation.tolist())] * 2 + scored}


@slow
def test_several_devices_make_the_same_run(momentum):
    trial, four = first_trial(momentum, "momentum"), made_on(4, optimizers=("momentum",))
    expected, got = momentum.run(trial), four.run(trial)
    assert got.loss_by_epoch == pytest.approx(expected.loss_by_epoch, rel=1e-4)
    assert got.accuracy_by_epoch == pytest.approx(expected.accuracy_by_epoch, abs=0.12)  # one picture of 9


@slow
def test_a_run_that_diverges_is_recorded_and_one_can_be_stopped_between_two_chunks(momentum):
    trial, epochs = first_trial(momentum, "momentum", "final"), []
    outcome = momentum.run(trial._replace(learning_rate=1e20, epochs=3))
    assert not math.isfinite(outcome.loss_by_epoch[-1]) and 0 <= outcome.test_accuracy < 0.3
    assert len(outcome.loss_by_epoch) == len(outcome.accuracy_by_epoch) == 3
    with pytest.raises(Stopped):
        momentum.run(trial, lambda: len(epochs) == 1, epochs.append)
    assert epochs == [1]


def test_a_step_count_below_the_chunks_trains_on_what_is_there_alone():
    """The batches beyond the count have no pictures, and would divide by none."""
    import optax

    apply = lambda variables, images: images.astype(np.float32)[:, :2] @ variables["params"]["w"]
    pictures = steps.Split(np.array([[1, 2], [3, 4], [5, 6]], np.uint8), np.array([0, 1, 0], np.int32))
    batches = np.full((1, 4, 1), -1, np.int32)
    batches[0, :2, 0] = [2, 1]
    replicas = Replicas(jax.devices()[:1])
    (comparison,) = comparisons(CompareOptions("unused", **FLAGS, optimizers=("sgd",)))
    params = {"w": np.zeros((2, 2), np.float32)}
    state = steps.TrainState(params, optax.sgd(0.5).init(params))
    arguments = (state, (pictures, {"learning_rate": np.float32(0.5)}, np.int32(2), np.uint32(0)), batches)
    chunk = lambda *a: laboratory._train_some(apply, comparison.config, 2, (1, 2, 1), *a)
    after, sums = Program(replicas, chunk, *arguments).compile()(*arguments)
    w = np.zeros((2, 2))
    for row in (2, 1):
        x, y = pictures.images[row].astype(float), pictures.labels[row]
        p = np.exp(x @ w) / np.exp(x @ w).sum()
        w -= 0.5 * np.outer(x, p - np.eye(2)[y])
    np.testing.assert_allclose(after.params["w"], w, rtol=1e-5)
    assert int(sums.count) == 2
