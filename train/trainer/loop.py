"""A run from its configuration to its results: data, model, optimizer, compiled programs, epochs."""

import concurrent.futures
import contextlib
import functools
import importlib
import logging
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from trainer import data, jaxlib_fault, optimizers, steps, vgg
from trainer.config import ResolvedConfig
from trainer.devices import Replicas, asked_to_stop, primary, release_memory
from trainer.event_files import EventFiles
from trainer.preemption import StopRequest
from trainer.progress import Diverged, Partial, Preempted, Progress, advice
from trainer.records import Epoch

log = logging.getLogger("train")

HEADER = "  epoch      loss  accuracy  val_loss  val_accuracy  seconds  images/s"
LINE = (
    "{epoch:>7}  {loss:8.4f}  {accuracy:8.4f}  {val_loss:8.4f}  {val_accuracy:12.4f}"
    "  {seconds:7.1f}  {images_per_second:8.0f}"
)


class Trainer:
    """The compiled programs of a run and the arrays they work on."""

    def __init__(self, config: ResolvedConfig, dataset: data.Dataset, devices: Sequence[jax.Device] | None = None):
        """Puts the data and the initial state on the devices (default: all) and compiles; `config` is resolved."""
        self.config = config
        self.replicas = Replicas(devices)
        model = vgg.build(config.model, config.width, dataset.num_classes, config.precision, config.norm)
        params_key, velocity_key = jax.random.split(jax.random.key(config.seed))
        tx = optimizers.build(config, velocity_key, -(-len(dataset.train_labels) // config.batch_size))

        def initial_state():
            params = vgg.init(model, params_key, dataset.train_images.shape[1:])
            return steps.TrainState(params, tx.init(params))

        self.train_set = self.replicas.replicate(steps.Split(steps.flat(dataset.train_images), dataset.train_labels))
        self.test_set = self.replicas.replicate(steps.Split(steps.flat(dataset.test_images), dataset.test_labels))
        self.train_size, self.test_size = len(dataset.train_labels), len(dataset.test_labels)
        self._test_batches = self._batches(np.arange(self.test_size), -(-self.test_size // config.batch_size))

        apply = steps.on_flat(model.apply, dataset.train_images.shape[1:])
        trace_chunk = self.replicas.run_everywhere(functools.partial(steps.train_chunk, apply, tx), donate_first=True)
        trace_evaluation = self.replicas.run_everywhere(functools.partial(steps.evaluate, apply))
        shapes = jax.eval_shape(initial_state)
        compile_evaluation = trace_evaluation(shapes.params, self.test_set, self._test_batches)
        # Meanwhile: the evaluation's compilation, and the many small ones that draw the initial state.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            evaluation, state = pool.submit(compile_evaluation), pool.submit(initial_state)
            self._chunks = {
                length: trace_chunk(shapes, self.train_set, self._batches(np.arange(0), length))()
                for length in sorted(set(chunk_lengths(self.steps_per_epoch)))
            }
        self._evaluation, self.state = evaluation.result(), self.replicas.replicate(state.result())
        del state
        release_memory()

    @property
    def steps_per_epoch(self) -> int:
        """The last, partial batch counts."""
        return -(-self.train_size // self.config.batch_size)

    def learning_rate(self, epoch: int) -> float:
        """At the end of `epoch` (from 1)."""
        updates = epoch * self.steps_per_epoch // self.config.accumulate
        return float(optimizers.schedule(self.config, self.steps_per_epoch)(updates))

    @property
    def chunks_per_epoch(self) -> int:
        """How many times per epoch the device is handed work."""
        return len(chunk_lengths(self.steps_per_epoch))

    def steps_of(self, chunks: int) -> int:
        """How many steps an epoch's first so many chunks are."""
        return sum(chunk_lengths(self.steps_per_epoch)[:chunks])

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """One pass, in the order that (seed, epoch) give. Returns mean loss and accuracy."""
        return self.means(self.advance(epoch, Partial()))

    def means(self, done: Partial) -> tuple[float, float]:
        """Mean loss and accuracy of a whole epoch."""
        assert done.pictures == self.train_size, f"{done.pictures:.0f} of {self.train_size} training pictures were seen"
        return done.loss / done.pictures, done.correct / done.pictures

    def advance(
        self,
        epoch: int,
        done: Partial,
        progress: Callable[[int, float], object] = lambda steps, loss: None,
        stop: Callable[[int], bool] = lambda chunks: False,
    ) -> Partial:
        """Goes on with an epoch until it ends, or `stop` (of the chunks done in it) says so between two chunks.

        Calls `progress` with the number of steps and their mean loss, as chunks end. The sums are those of each batch
        before its update.
        The device is handed a chunk ahead of what is read back.
        """
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.train_size)
        start = time.perf_counter()
        totals = np.array([done.loss, done.correct, done.pictures])
        lengths = chunk_lengths(self.steps_per_epoch)
        chunk = read = done.chunks
        pending: list[steps.Sums] = []

        def read_back():
            nonlocal totals, read
            sums = [np.asarray(x, np.float64) for x in pending.pop(0)]
            if not np.all(np.isfinite(sums[0])):
                step = sum(lengths[:read]) + int(np.argmin(np.isfinite(sums[0]))) + 1
                where = f"epoch {epoch}, step {step} of {self.steps_per_epoch}"
                raise Diverged(f"the loss is not finite at {where}; {advice(self.config)}")
            totals = totals + [x.sum() for x in sums]
            progress(lengths[read], float(sums[0].sum() / sums[2].sum()))
            read += 1

        while chunk < len(lengths) and not stop(chunk):
            first = sum(lengths[:chunk]) * self.config.batch_size
            batches = self._batches(order[first:], lengths[chunk])
            self.state, sums = self._chunks[lengths[chunk]](self.state, self.train_set, batches)
            chunk += 1
            pending.append(sums)
            if len(pending) > 1:
                read_back()
        while pending:
            read_back()
        loss, correct, pictures = totals.tolist()
        return Partial(chunk, loss, correct, pictures, done.seconds + time.perf_counter() - start)

    def profile(self, profiling: contextlib.AbstractContextManager) -> None:
        """Runs two chunks of steps, the second one in `profiling`. The state stays as it is."""
        length = min(self._chunks)
        batches = self._batches(np.arange(self.train_size), length)
        state = jax.tree.map(jnp.copy, self.state)
        state, _ = jax.block_until_ready(self._chunks[length](state, self.train_set, batches))
        with profiling:
            jax.block_until_ready(self._chunks[length](state, self.train_set, batches))

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
    done = len(run.rows) * trainer.steps_per_epoch + trainer.steps_of(run.partial.chunks)
    with contextlib.closing(run.recorder.event_files(done)) as events, logging_redirect_tqdm([log]):
        while not run.finished:
            row = _epoch(trainer, run, notice, events)
            run.add(row)
            events.add_epoch(row.epoch * trainer.steps_per_epoch, row)
            log.info(LINE.format(**vars(row)))
            if run.due():
                where = f"epoch {row.epoch}, step {trainer.steps_per_epoch} of {trainer.steps_per_epoch}"
                run.save(trainer.state, trainer.chunks_per_epoch, where)


def _epoch(trainer: Trainer, run: Progress, notice: StopRequest, events: EventFiles) -> Epoch:
    """Trains to the end of the epoch that the run is in and evaluates, with a progress bar on a terminal."""
    epoch, chunks = len(run.rows) + 1, trainer.chunks_per_epoch
    step = (epoch - 1) * trainer.steps_per_epoch + trainer.steps_of(run.partial.chunks)
    options = {
        "total": trainer.steps_per_epoch,
        "initial": trainer.steps_of(run.partial.chunks),
        "desc": f"epoch {epoch}/{trainer.config.epochs}",
        "unit": "step",
        "leave": False,
        "disable": not (sys.stderr.isatty() and primary()),
        # Said outright, because on a terminal that does not tell its size tqdm would show nothing.
        "ncols": shutil.get_terminal_size().columns,
        "nrows": 2,
    }
    stop = lambda chunk: asked_to_stop(notice.given, len(run.rows) * chunks + chunk)
    with tqdm(**options) as bar:

        def progress(steps: int, mean_loss: float) -> None:
            nonlocal step
            step += steps
            bar.update(steps)
            events.add_chunk(step, mean_loss)

        done = trainer.advance(epoch, run.partial, progress, stop)
    if done.chunks < chunks:
        run.partial = done
        where = f"epoch {epoch}, step {trainer.steps_of(done.chunks)} of {trainer.steps_per_epoch}"
        run.save(trainer.state, chunks, where)
        run.recorder.wait()
        raise Preempted(f"stopped on SIGTERM after {where}; a checkpoint is written: start again with --resume.")
    loss, accuracy = trainer.means(done)
    start = time.perf_counter()
    val_loss, val_accuracy = trainer.evaluate()
    speed = trainer.train_size / done.seconds
    val_seconds, rate = time.perf_counter() - start, trainer.learning_rate(epoch)
    return Epoch(epoch, loss, accuracy, val_loss, val_accuracy, done.seconds, speed, val_seconds, rate)


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
