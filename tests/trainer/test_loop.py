"""Training itself, on the real digits (`loop`, `steps`, `devices`): on one device and eight, and what is recorded."""

import contextlib
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gravity_optax
import processes
from trainer import data, devices, loop, networks, steps
from trainer.config import Config, resolve
from trainer.loop import chunk_lengths

TINY = Config(model="mlp", width=0.05, epochs=2, limit=200)


def trainer_of(config, count, on=None, **flags):
    """A trainer on the first `count` digits."""
    digits = data.load("digits")
    few = {"train_images": digits.train_images[:count], "train_labels": digits.train_labels[:count]}
    return loop.Trainer(resolve(dataclasses.replace(config, **flags)), dataclasses.replace(digits, **few), on)


@pytest.mark.parametrize("count", [1, 8])
def test_an_epoch_and_its_evaluation_are_those_of_plain_sgd_on_any_number_of_devices(count):
    """No batch divides by eight, and the last is partial: a mean of means would be another number."""
    flags = {"batch_size": 31, "optimizer": "sgd", "learning_rate": 0.5}
    trainer, digits = trainer_of(TINY, 137, jax.devices()[:count], **flags), data.load("digits")
    model, params = networks.build(trainer.config, 10), jax.tree.map(np.array, trainer.state.params)

    def sums(params, images, labels):
        logits = model.apply({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum(), (jnp.argmax(logits, -1) == labels).sum()

    step, loss, hits = jax.jit(jax.value_and_grad(sums, has_aux=True)), 0.0, 0
    for rows in np.split(np.random.default_rng([0, 1]).permutation(137), range(31, 137, 31)):
        of_batch, gradients = step(params, digits.train_images[rows], digits.train_labels[rows])
        rate = 0.5 / len(rows)
        params = jax.tree.map(lambda w, g, rate=rate: w - rate * g, params, gradients)
        loss, hits = loss + float(of_batch[0]), hits + int(of_batch[1])
    np.testing.assert_allclose(trainer.train_epoch(1), (loss / 137, hits / 137), rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), trainer.state.params, params)
    loss, hits = sums(params, digits.test_images, digits.test_labels)
    np.testing.assert_allclose(trainer.evaluate(), (loss / 360, hits / 360), rtol=1e-4)


def test_pictures_that_lie_flat_are_seen_in_their_shape():
    images = np.arange(9 * 2 * 3).reshape(9, 2, 3, 1).astype(np.uint8)
    seen = steps.on_flat(lambda variables, images: images, (2, 3, 1))({}, steps.flat(images)[np.array([4, 0])])
    np.testing.assert_array_equal(seen, images[[4, 0]])


def test_the_device_runs_a_chunk_ahead_of_the_results():
    trainer, handed = trainer_of(TINY, 360), []
    chunks = trainer.advance(1, (handed.append(chunk) or chunk for chunk in range(len(trainer.lengths))))
    for number, chunk in enumerate(chunks, 1):
        assert len(chunk.loss) == trainer.lengths[number - 1]
        assert handed == list(range(min(number + 1, len(trainer.lengths))))
    assert number == len(trainer.lengths) > 2


def test_a_run_records_its_configuration_and_results(tmp_path):
    history = loop.train(resolve(dataclasses.replace(TINY, workdir=str(tmp_path))))
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {"learning_rate": 0.1, "train_examples": 200, "test_examples": 200, "devices": ["cpu"] * 8}
    assert config.items() >= expected.items()  # the learning rate is resolved, not None
    versions = {"jax": jax.__version__, "gravity-optax": gravity_optax.__version__}  # installed or not
    assert config["versions"].items() >= versions.items()
    rows = processes.table(tmp_path / "history.csv")
    columns = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    columns += ["seconds", "images_per_second", "val_seconds", "learning_rate"]
    assert list(rows[0]) == columns and [row["epoch"] for row in rows] == ["1", "2"]
    for row, epoch in zip(rows, history, strict=True):
        np.testing.assert_allclose([float(row[c]) for c in columns], [getattr(epoch, c) for c in columns], rtol=1e-5)
        np.testing.assert_allclose(float(row["images_per_second"]) * float(row["seconds"]), 200, rtol=1e-3)
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_is_not_finite_stops_the_run_at_its_epoch_and_step(tmp_path):
    with pytest.raises(loop.Diverged, match="not finite at epoch 1, step 2 of 7; try a smaller --learning-rate"):
        processes.train_here(TINY, tmp_path, devices=8, optimizer="adam", learning_rate=1e30)


def test_colour_pictures_train_and_the_state_stays_float32(tiny_tfds, tmp_path):
    config = Config("cifar100_coarse", "mlp", 0.05, epochs=1, precision="bfloat16", data_dir=tiny_tfds)
    (row,) = loop.train(resolve(dataclasses.replace(config, workdir=str(tmp_path))))
    np.testing.assert_allclose(row.loss, np.log(20), rtol=0.1)  # chance: two steps teach nothing
    assert json.loads((tmp_path / "config.json").read_text())["num_classes"] == 20
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


def test_what_is_replicated_is_not_copied_again_when_a_program_is_called():
    replicas = devices.Replicas()
    w, batches = replicas.replicate(jnp.ones((1000, 1000))), replicas.split(np.ones((1, 8), np.int32))
    function = lambda x, pictures, batches: x + devices.sum_over_devices(batches.sum().astype(x.dtype))
    program = devices.Program(replicas, function, w, w[:1], batches, donate_first=True).compile()
    places = lambda x: [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]
    before = places(w)
    out = program(w, replicas.replicate(w[:1]), batches)
    assert w.is_deleted() and places(out) == before, "the state was copied, not donated"
    np.testing.assert_array_equal(out, np.full((1000, 1000), 9.0))
    assert out.sharding.is_fully_replicated


@pytest.mark.parametrize("broken", [False, True])
def test_a_tpu_compiler_that_refuses_the_option_compiles_without_it_or_fails_with_its_own_message(broken):
    class Lowered:
        def compile(self, compiler_options=None):
            if compiler_options or broken:
                raise jax.errors.JaxRuntimeError("the option is unknown" if compiler_options else "too large")
            return "compiled"

    with pytest.raises(jax.errors.JaxRuntimeError, match="too large") if broken else contextlib.nullcontext():
        assert devices._compile(Lowered(), "tpu") == "compiled"
