"""A run from its configuration to its results, epoch by epoch."""

import contextlib
import importlib
import itertools
import logging
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from trainer import augment, command, data, jaxlib_fault, optimizers, steps, watch
from trainer.building import build
from trainer.config import ResolvedConfig
from trainer.devices import Replicas, asked_to_stop, primary
from trainer.event_files import EventFiles
from trainer.preemption import StopRequest
from trainer.progress import Chunk, Diverged, Partial, Preempted, Progress, advice
from trainer.records import Epoch

log = logging.getLogger("train")

HEADER = "  epoch      loss  accuracy  val_loss  val_accuracy  seconds  images/s"
LINE = (
    "{epoch:>7}  {loss:8.4f}  {accuracy:8.4f}  {val_loss:8.4f}  {val_accuracy:12.4f}"
    "  {seconds:7.1f}  {images_per_second:8.0f}"
)


class Trainer:
    """The state of a run, which goes on from chunk to chunk of its steps."""

    def __init__(self, config: ResolvedConfig, dataset: data.Dataset, devices: Sequence[jax.Device] | None = None):
        """Builds for the devices (default: all) what the resolved `config` says."""
        self.config, self.replicas = config, Replicas(devices)
        self.train_size, self.test_size = len(dataset.train_labels), len(dataset.test_labels)
        self.built, self.state = build(config, dataset, self.replicas)
        self.lengths = self.built.lengths

    @property
    def steps_per_epoch(self) -> int:
        """The last, partial batch counts."""
        return sum(self.lengths)

    def learning_rate(self, epoch: int) -> float:
        """At the end of `epoch` (from 1)."""
        updates = epoch * self.steps_per_epoch // self.config.accumulate
        return float(optimizers.schedule(self.config, self.steps_per_epoch)(updates))

    def advance(self, epoch: int, chunks: Iterable[int]) -> Iterator[Chunk]:
        """Trains the chunks of these numbers, rising by one, in the order of pictures that (seed, epoch) give.

        Yields what came of each. The device is handed a chunk ahead of what is read back: as the first is yielded, the
        second number has been taken from `chunks`, and `state` is what comes after the second.
        """
        order = self._order(epoch)
        ahead = None
        for chunk in chunks:
            first, length = sum(self.lengths[:chunk]) * self.config.batch_size, self.lengths[chunk]
            read, (self.state, ahead) = ahead, self._run(self.state, epoch, order[first:], length)
            if read:
                yield _read_back(read)
        if ahead:
            yield _read_back(ahead)

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """A whole epoch; its mean loss and accuracy."""
        done = Partial()
        for chunk in self.advance(epoch, range(len(self.lengths))):
            done = done.plus(chunk)
        return self.means(done)

    def means(self, done: Partial) -> tuple[float, float]:
        """Mean loss and accuracy of a whole epoch."""
        assert done.pictures == self.train_size, f"{done.pictures:.0f} of {self.train_size} training pictures were seen"
        return done.loss / done.pictures, done.correct / done.pictures

    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy over the whole test set, every picture once."""
        sums = self.built.evaluation(self.state.params, self.built.test_set, self.built.test_batches)
        loss, correct, count = (float(x) for x in sums)
        assert count == self.test_size, f"{count} of {self.test_size} test pictures were scored"
        return loss / count, correct / count

    def watch(self, epoch: int) -> list[watch.LeafOfEpoch]:
        """With `config.watch`: what Gravity makes of the gradient of the step that follows `epoch`, leaf by leaf."""
        assert self.built.watching, "config.watch is off"
        batches = self.replicas.split(steps.in_batches(self._order(epoch + 1), 1, self.config.batch_size))
        measured = self.built.watching(self.state, self._pictures(epoch + 1), batches)
        return watch.rows(epoch, self.state.params, measured)

    def profile(self, profiling: contextlib.AbstractContextManager) -> None:
        """Runs two chunks of steps, the second one in `profiling`. The state stays as it is."""
        order, length = np.arange(self.train_size), min(self.lengths)
        state, _ = jax.block_until_ready(self._run(jax.tree.map(jnp.copy, self.state), 1, order, length))
        with profiling:
            jax.block_until_ready(self._run(state, 1, order, length))

    def _order(self, epoch: int) -> np.ndarray:
        """The numbers of the pictures, as this epoch goes through them."""
        return np.random.default_rng([self.config.seed, epoch]).permutation(self.train_size)

    def _pictures(self, epoch: int) -> steps.Split:
        return augment.pictures_of(self.built.train_set, self.config, epoch, self.replicas.replicate)

    def _run(
        self, state: steps.TrainState, epoch: int, order: np.ndarray, length: int
    ) -> tuple[steps.TrainState, steps.Sums]:
        """Hands the devices `length` steps on the first of the picture numbers `order`; `state` is used up."""
        batches = self.replicas.split(steps.in_batches(order, length, self.config.batch_size))
        return self.built.chunks[length](state, self._pictures(epoch), batches)


def _read_back(sums: steps.Sums) -> Chunk:
    """When the devices have come so far."""
    return Chunk(*(np.asarray(x, np.float64) for x in sums))


def train(
    config: ResolvedConfig, devices: Sequence[jax.Device] | None = None, notice: StopRequest | None = None
) -> list[Epoch]:
    """Trains as the resolved `config` says, records each epoch in the workdir and returns the rows.

    With `config.resume`, resumes the run in the workdir, and returns its rows at once if all epochs are done.
    After `notice.given`, ends at the next chunk with a checkpoint and `Preempted`.
    """
    data.check_data_dir(config.dataset, config.data_dir)
    run = Progress(config)
    with contextlib.closing(run):
        if run.finished:
            log.info(f"all {len(run.rows)} epochs of this run are done")
        else:
            _train(run, devices, notice or StopRequest())
        run.recorder.end(run.rows)
    return run.rows


def _train(run: Progress, devices: Sequence[jax.Device] | None, notice: StopRequest) -> None:
    """The epochs that the run still lacks."""
    config = run.config
    dataset = data.load(config.dataset, config.data_dir, config.limit)
    started = time.perf_counter()
    trainer = Trainer(config, dataset, devices)
    if run.arrays:
        trainer.state = trainer.replicas.replicate(run.state(trainer.state))
    what = facts(trainer, dataset)
    run.begin(what, trainer.state)
    for line in jaxlib_fault.what_was_said():  # not before an error about the data, which is one line
        log.info(line)
    log.info(
        f"{config.dataset}: {trainer.train_size} training and {trainer.test_size} test pictures;"
        f" {config.model} x {config.width:g}: {what['parameters']:,} parameters; {config.optimizer},"
        f" learning rate {config.learning_rate:g}; {len(what['devices'])} x {what['devices'][0]};"
        f" compiled in {time.perf_counter() - started:.1f} s"
    )
    if config.profile:
        trainer.profile(run.recorder.profiling())
    log.info(HEADER)
    notice.watched = True
    done = len(run.rows) * trainer.steps_per_epoch + sum(trainer.lengths[: run.partial.chunks])
    with contextlib.closing(run.recorder.event_files(done)) as events, logging_redirect_tqdm([log]):
        while not run.finished:
            row = _epoch(trainer, run, notice, events)
            if config.watch:
                run.recorder.add_gradients(trainer.watch(row.epoch))
            run.add(row)
            events.add_epoch(row.epoch * trainer.steps_per_epoch, row)
            log.info(LINE.format(**vars(row)))
            if run.due():
                run.save(trainer.state, len(trainer.lengths), _where(trainer, row.epoch, trainer.steps_per_epoch))


def _epoch(trainer: Trainer, run: Progress, notice: StopRequest, events: EventFiles) -> Epoch:
    """Trains to the end of the epoch that the run is in and evaluates, with a progress bar on a terminal."""
    epoch, count = len(run.rows) + 1, len(trainer.lengths)
    go_on = lambda chunk: not asked_to_stop(notice.given, len(run.rows) * count + chunk)
    chunks = itertools.takewhile(go_on, range(run.partial.chunks, count))
    with _progress_bar(trainer, epoch, step := sum(trainer.lengths[: run.partial.chunks])) as bar:
        start = time.perf_counter() - run.partial.seconds
        for chunk in trainer.advance(epoch, chunks):
            if not np.all(finite := np.isfinite(chunk.loss)):
                where = _where(trainer, epoch, step + int(np.argmin(finite)) + 1)
                raise Diverged(f"the loss is not finite at {where}; {advice(trainer.config)}")
            run.partial = run.partial.plus(chunk)
            step += len(chunk.loss)
            bar.update(len(chunk.loss))
            mean_loss = float(chunk.loss.sum() / chunk.pictures.sum())
            events.add_chunk((epoch - 1) * trainer.steps_per_epoch + step, mean_loss)
        run.partial = run.partial._replace(seconds=time.perf_counter() - start)
    if run.partial.chunks < count:
        where = _where(trainer, epoch, step)
        run.save(trainer.state, count, where)
        run.recorder.wait()
        raise Preempted(
            f"stopped on {notice.reason} after {where}; a checkpoint is written: start again with --resume."
        )
    loss, accuracy = trainer.means(run.partial)
    start = time.perf_counter()
    val_loss, val_accuracy = trainer.evaluate()
    val_seconds, seconds = time.perf_counter() - start, run.partial.seconds
    speed, rate = trainer.train_size / seconds, trainer.learning_rate(epoch)
    return Epoch(epoch, loss, accuracy, val_loss, val_accuracy, seconds, speed, val_seconds, rate)


def _progress_bar(trainer: Trainer, epoch: int, done: int) -> Any:
    """Of the steps of an epoch; so many are `done`."""
    what = {"total": trainer.steps_per_epoch, "initial": done, "desc": f"epoch {epoch}/{trainer.config.epochs}"}
    return command.progress_bar(**what, unit="step", leave=False, **{} if primary() else {"disable": True})


def _where(trainer: Trainer, epoch: int, step: int) -> str:
    return f"epoch {epoch}, step {step} of {trainer.steps_per_epoch}"


def facts(trainer: Trainer, dataset: data.Dataset) -> dict:
    """What config.json says beside the flags."""
    packages = ("gravity_optax", "jax", "jaxlib", "optax", "flax", "numpy")
    return {
        "train_examples": trainer.train_size,
        "test_examples": trainer.test_size,
        "num_classes": dataset.num_classes,
        "parameters": sum(x.size for x in jax.tree.leaves(trainer.state.params)),
        "steps_per_epoch": trainer.steps_per_epoch,
        "devices": [str(d.device_kind) for d in trainer.replicas.devices],
        "versions": {"python": platform.python_version()}
        | {name.replace("_", "-"): importlib.import_module(name).__version__ for name in packages},
    }
