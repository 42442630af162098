"""Training itself, on the real digits: one device against eight, exactness, and what is recorded."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gravity_optax
import processes
import stop_after
from trainer import data, loop, networks
from trainer.config import Config, resolve
from trainer.loop import chunk_lengths

TINY = Config(model="mlp", width=0.05, epochs=2, limit=200)


def trainer_of(config, count, devices=None, **flags):
    """A trainer on the first `count` digits."""
    digits = data.load("digits")
    few = {"train_images": digits.train_images[:count], "train_labels": digits.train_labels[:count]}
    return loop.Trainer(resolve(dataclasses.replace(config, **flags)), dataclasses.replace(digits, **few), devices)


def tree_difference(a, b):
    """The worst max|a - b| / max|a| over leaves."""
    ratio = lambda x, y: np.max(np.abs(np.asarray(x) - np.asarray(y))) / np.max(np.abs(x))
    return max(jax.tree.leaves(jax.tree.map(ratio, a, b)))


def test_eight_devices_train_and_evaluate_as_one_does():
    """No batch divides by eight, and the last is partial."""
    states = []
    for devices in (jax.devices()[:1], jax.devices()):
        trainer = trainer_of(TINY, 4 * 31 + 13, devices, batch_size=31)
        assert trainer.steps_per_epoch == 5
        before = jax.tree.map(np.array, trainer.state)
        trainer.train_epoch(1)
        states.append(trainer.state)
        test_set, model = trainer.built.test_set, networks.build(trainer.config, 10)
        logits = jax.jit(model.apply)({"params": jax.tree.map(np.array, trainer.state.params)}, test_set.images)
        logits, labels = np.asarray(logits, np.float64), np.asarray(test_set.labels)
        loss, accuracy = trainer.evaluate()
        losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), labels]
        np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
        assert accuracy == np.mean(logits.argmax(-1) == labels)
    one, eight = states
    assert tree_difference(one.params, before.params) > 1e-3, "nothing was learned: the test is empty"
    assert tree_difference(one.params, eight.params) <= 1e-4
    # Where a leaf's gradients are small, rounding is larger beside them than beside the parameters.
    assert tree_difference(one.opt_state[0].velocity, eight.opt_state[0].velocity) <= 1e-3


def test_the_loss_of_an_epoch_is_the_mean_over_its_pictures_and_read_back_a_chunk_later():
    """With a learning rate that moves nothing it is the loss at the start, each picture counted once."""
    trainer = trainer_of(TINY, 360, learning_rate=1e-12, alpha=0.0)
    trainer.built = trainer.built._replace(train_set=trainer.built.test_set)
    expected_loss, expected_accuracy = trainer.evaluate()
    handed = []
    chunks = trainer.advance(1, (handed.append(chunk) or chunk for chunk in range(len(trainer.lengths))))
    done = loop.Partial()
    for number, chunk in enumerate(chunks, 1):
        assert len(chunk.loss) == trainer.lengths[number - 1]
        assert handed == list(range(min(number + 1, len(trainer.lengths))))
        done = done.plus(chunk)
    assert number == len(trainer.lengths) > 2
    loss, accuracy = trainer.means(done)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert accuracy == expected_accuracy


def test_a_run_records_its_configuration_and_results(tmp_path):
    history = loop.train(resolve(dataclasses.replace(TINY, workdir=str(tmp_path))))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["learning_rate"] == 0.1  # resolved, not None
    assert config["train_examples"] == config["test_examples"] == 200
    assert config["devices"] == ["cpu"] * 8
    assert config["versions"]["jax"] == jax.__version__
    assert config["versions"]["gravity-optax"] == gravity_optax.__version__  # installed or not
    rows = stop_after.rows(tmp_path / "history.csv")
    columns = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    columns += ["seconds", "images_per_second", "val_seconds", "learning_rate"]
    assert list(rows[0]) == columns
    for number, (row, epoch) in enumerate(zip(rows, history, strict=True), 1):
        assert row["epoch"] == str(number)
        np.testing.assert_allclose([float(row[c]) for c in columns], [getattr(epoch, c) for c in columns], rtol=1e-5)
        np.testing.assert_allclose(float(row["images_per_second"]) * float(row["seconds"]), 200, rtol=1e-3)
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_is_not_finite_stops_the_run_at_its_epoch_and_step(tmp_path):
    message = "not finite at epoch 1, step 2 of 7; try a smaller --learning-rate"
    with pytest.raises(loop.Diverged, match=message):
        stop_after.train(TINY, tmp_path, devices=8, optimizer="adam", learning_rate=1e30)


@pytest.mark.parametrize(
    ("dataset", "model", "precision", "classes"),
    [
        ("cifar100_coarse", "mlp", "bfloat16", 20),
        pytest.param("cifar10", "vgg16", "float32", 10, marks=pytest.mark.slow),
    ],
)
def test_colour_pictures_train_and_the_state_stays_float32(tiny_tfds, tmp_path, dataset, model, precision, classes):
    config = Config(dataset, model, 0.05, epochs=1, precision=precision, data_dir=tiny_tfds, workdir=str(tmp_path))
    (row,) = loop.train(resolve(config))
    np.testing.assert_allclose(row.loss, np.log(classes), rtol=0.1)  # chance: two steps teach nothing
    assert json.loads((tmp_path / "config.json").read_text())["num_classes"] == classes
    for name, array in processes.result(tmp_path)[0].items():
        if array.ndim:
            assert array.dtype == np.float32, name
            assert np.any(array != array.astype(jnp.bfloat16).astype(np.float32)), f"{name} was rounded to bfloat16"


@pytest.mark.slow
def test_a_profile_is_written_and_leaves_the_state_as_it_was(tmp_path):
    trainer = trainer_of(TINY, 40, jax.devices()[:2])
    before = jax.tree.map(np.array, trainer.state)
    trainer.profile(jax.profiler.trace(str(tmp_path)))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    jax.tree.map(np.testing.assert_array_equal, before, trainer.state)


@pytest.mark.parametrize("count", [1, 3, 7, 8, 45, 391, 469, 1009, 10_000])
def test_chunks_cover_an_epoch_with_at_most_two_programs(count):
    lengths = chunk_lengths(count)
    assert sum(lengths) == count
    assert len(set(lengths)) <= (1 if count in (391, 469) else 2)  # one for the paper's epochs
    assert max(lengths) <= 128
    assert len(lengths) <= 10 * max(8, -(-count // 128))
