"""A run from its configuration to its results: data, model, optimizer, compiled programs, epochs."""

import functools
import importlib.metadata
import logging
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence

import data
import jax
import numpy as np
import optimizers
import steps
import vgg
from config import Config, UserError
from devices import Replicas
from records import Epoch, Workdir
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger("train")

HEADER = "  epoch      loss  accuracy  val_loss  val_accuracy  seconds  images/s"
LINE = (
    "{epoch:>7}  {loss:8.4f}  {accuracy:8.4f}  {val_loss:8.4f}  {val_accuracy:12.4f}"
    "  {seconds:7.1f}  {images_per_second:8.0f}"
)


class Diverged(UserError):
    """The loss is no longer a finite number."""


class Trainer:
    """The compiled programs of a run and the arrays they work on."""

    def __init__(self, config: Config, dataset: data.Dataset, devices: Sequence[jax.Device] | None = None):
        """Puts the data and the initial state on the devices (default: all) and compiles; `config` is resolved."""
        self.config = config
        self.replicas = Replicas(devices)
        model = vgg.build(config.model, config.width, dataset.num_classes, config.precision)
        params_key, velocity_key = jax.random.split(jax.random.key(config.seed))
        params = vgg.init(model, params_key, dataset.train_images.shape[1:])
        tx = optimizers.build(config, velocity_key)
        self.state = self.replicas.replicate(steps.TrainState(params, tx.init(params)))
        self.train_set = self.replicas.replicate(steps.Pictures(steps.flat(dataset.train_images), dataset.train_labels))
        self.test_set = self.replicas.replicate(steps.Pictures(steps.flat(dataset.test_images), dataset.test_labels))
        self.train_size, self.test_size = len(dataset.train_labels), len(dataset.test_labels)

        apply = steps.on_flat(model.apply, dataset.train_images.shape[1:])
        chunk = functools.partial(steps.train_chunk, apply, tx)
        compile_chunk = self.replicas.run_everywhere(chunk, donate_first=True)
        self._chunks = {
            length: compile_chunk(self.state, self.train_set, self._batches(np.arange(0), length))
            for length in sorted(set(chunk_lengths(self.steps_per_epoch)))
        }
        compile_evaluation = self.replicas.run_everywhere(functools.partial(steps.evaluate, apply))
        self._test_batches = self._batches(np.arange(self.test_size), -(-self.test_size // config.batch_size))
        self._evaluation = compile_evaluation(self.state.params, self.test_set, self._test_batches)

    @property
    def steps_per_epoch(self) -> int:
        """The last, partial batch counts."""
        return -(-self.train_size // self.config.batch_size)

    def train_epoch(self, epoch: int, progress: Callable[[int], object] = lambda steps: None) -> tuple[float, float]:
        """One pass, in the order that (seed, epoch) give. Returns mean loss and accuracy.

        Calls `progress` with the number of steps, as chunks end.
        The figures are those of each batch before its update. The device is handed a chunk ahead of what is read back.
        """
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.train_size)
        total, done = np.zeros(3), 0
        pending: list[steps.Sums] = []

        def read_back():
            nonlocal total, done
            sums = [np.asarray(x, np.float64) for x in pending.pop(0)]
            if not np.all(np.isfinite(sums[0])):
                step = done + int(np.argmin(np.isfinite(sums[0]))) + 1
                raise Diverged(
                    f"the loss is not finite at epoch {epoch}, step {step} of {self.steps_per_epoch};"
                    f" try a smaller --learning-rate (it is {self.config.learning_rate:g}) or another --seed."
                )
            total += [x.sum() for x in sums]
            done += len(sums[0])
            progress(len(sums[0]))

        start = 0
        for length in chunk_lengths(self.steps_per_epoch):
            batches = self._batches(order[start * self.config.batch_size :], length)
            self.state, sums = self._chunks[length](self.state, self.train_set, batches)
            start += length
            pending.append(sums)
            if len(pending) > 1:
                read_back()
        read_back()
        loss, correct, count = total
        assert count == self.train_size, f"{count} of {self.train_size} training pictures were seen"
        return loss / count, correct / count

    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy over the whole test set, every picture once."""
        sums = self._evaluation(self.state.params, self.test_set, self._test_batches)
        loss, correct, count = (float(x) for x in sums)
        assert count == self.test_size, f"{count} of {self.test_size} test pictures were scored"
        return loss / count, correct / count

    def _batches(self, order: np.ndarray, length: int) -> np.ndarray:
        """The next `length` batches of the picture numbers `order`, split among the devices."""
        batches = np.full(length * self.config.batch_size, -1, np.int32)
        batches[: len(order)] = order[: len(batches)]
        return self.replicas.split(batches.reshape(length, -1))


def chunk_lengths(count: int) -> list[int]:
    """Splits an epoch's steps into chunks, one dispatch each, of one length (one program) or of two.

    A chunk is long enough that the host has nothing to do per step, and short enough for the progress bar.
    """
    fewest = max(min(8, count), math.ceil(count / 128))
    chunks = next((n for n in range(fewest, min(10 * fewest, count) + 1) if count % n == 0 and n < count), fewest)
    return [count // chunks + (i < count % chunks) for i in range(chunks)]


def train(config: Config, devices: Sequence[jax.Device] | None = None) -> list[Epoch]:
    """Trains as the resolved `config` says, records each epoch in the workdir and returns the rows."""
    workdir = Workdir(config)
    dataset = data.load(config.dataset, config.data_dir, config.limit)
    started = time.perf_counter()
    trainer = Trainer(config, dataset, devices)
    what = facts(trainer, dataset)
    workdir.write_config(config, what)
    log.info(
        f"{config.dataset}: {trainer.train_size} training and {trainer.test_size} test pictures;"
        f" {config.model} x {config.width:g}: {what['parameters']:,} parameters; {config.optimizer},"
        f" learning rate {config.learning_rate:g}; {len(what['devices'])} x {what['devices'][0]};"
        f" compiled in {time.perf_counter() - started:.1f} s"
    )
    log.info(HEADER)
    history = []
    with logging_redirect_tqdm([log]):
        for epoch in range(1, config.epochs + 1):
            row = _epoch(trainer, epoch)
            workdir.write_epoch(row)
            history.append(row)
            log.info(LINE.format(**vars(row)))
    workdir.write_figure(config, history)
    log.info(f"results are in {workdir.path}")
    return history


def _epoch(trainer: Trainer, epoch: int) -> Epoch:
    """Trains for an epoch and evaluates, with a progress bar on a terminal."""
    options = {
        "total": trainer.steps_per_epoch,
        "desc": f"epoch {epoch}/{trainer.config.epochs}",
        "unit": "step",
        "leave": False,
        "disable": not sys.stderr.isatty(),
        # Said outright, because on a terminal that does not tell its size tqdm would show nothing.
        "ncols": shutil.get_terminal_size().columns,
        "nrows": 2,
    }
    start = time.perf_counter()
    with tqdm(**options) as bar:
        loss, accuracy = trainer.train_epoch(epoch, bar.update)
    trained = time.perf_counter()
    val_loss, val_accuracy = trainer.evaluate()
    seconds, val_seconds = trained - start, time.perf_counter() - trained
    return Epoch(epoch, loss, accuracy, val_loss, val_accuracy, seconds, trainer.train_size / seconds, val_seconds)


def facts(trainer: Trainer, dataset: data.Dataset) -> dict:
    """What config.json says beside the flags."""
    packages = ("gravity-optax", "jax", "jaxlib", "optax", "flax", "numpy")
    return {
        "train_examples": trainer.train_size,
        "test_examples": trainer.test_size,
        "num_classes": dataset.num_classes,
        "parameters": sum(x.size for x in jax.tree.leaves(trainer.state.params)),
        "steps_per_epoch": trainer.steps_per_epoch,
        "devices": [str(d.device_kind) for d in trainer.replicas.devices],
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
    }
