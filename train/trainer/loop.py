"""Training: a run from its configuration to its results, epoch by epoch, with its compiled programs.

What one device computes is in `steps`, what is kept of a run in `progress`.
"""

import concurrent.futures
import contextlib
import functools
import importlib
import itertools
import logging
import math
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from trainer import augment, command, data, jax_setup, networks, optimizers, steps, watch
from trainer.config import ResolvedConfig
from trainer.devices import Program, Replicas, asked_to_stop, primary, release_memory
from trainer.preemption import StopRequest
from trainer.progress import Chunk, Diverged, Partial, Preempted, Progress, advice
from trainer.records import Epoch

log = logging.getLogger("train")

HEADER = "  epoch      loss  accuracy  val_loss  val_accuracy  seconds  images/s"
LINE = (
    "{epoch:>7}  {loss:8.4f}  {accuracy:8.4f}  {val_loss:8.4f}  {val_accuracy:12.4f}"
    "  {seconds:7.1f}  {images_per_second:8.0f}"
)


class Built(NamedTuple):
    """A run's programs and their pictures, on all devices."""

    lengths: list[int]  # of the chunks of an epoch, in steps
    chunks: dict[int, Program]  # by the number of steps
    evaluation: Program
    watching: Program | None  # with `config.watch`: `watch.measure`
    train_set: steps.Split
    test_set: steps.Split
    test_batches: np.ndarray


def build(config: ResolvedConfig, dataset: data.Dataset, replicas: Replicas) -> tuple[Built, steps.TrainState]:
    """Puts the data and the initial state on all devices, and compiles."""
    image_shape, size, test_size = dataset.train_images.shape[1:], config.batch_size, len(dataset.test_labels)
    lengths = chunk_lengths(-(-len(dataset.train_labels) // size))  # the last, partial batch counts
    model = networks.build(config, dataset.num_classes)
    params_key, velocity_key = jax.random.split(jax.random.key(config.seed))
    tx = optimizers.build(config, velocity_key, sum(lengths))

    def initial_state() -> steps.TrainState:
        params = networks.initial(config, model, params_key, image_shape)
        return steps.TrainState(params, tx.init(params))

    train_set = replicas.replicate(steps.Split(steps.flat(dataset.train_images), dataset.train_labels))
    test_set = replicas.replicate(steps.Split(steps.flat(dataset.test_images), dataset.test_labels))
    test_batches = replicas.split(steps.in_batches(np.arange(test_size), -(-test_size // size), size))

    apply, view = steps.on_flat(model.apply, image_shape), augment.view(config, image_shape)
    train, evaluate = (
        functools.partial(steps.train_chunk, apply, tx, view=view),
        functools.partial(steps.evaluate, apply),
    )
    seen = augment.pictures_of(train_set, config, 1, replicas.replicate)
    shapes = jax.eval_shape(initial_state)
    evaluation = Program(replicas, evaluate, shapes.params, test_set, test_batches)
    no_batch = lambda length: replicas.split(np.full((length, size), -1, np.int32))
    measure = functools.partial(watch.measure, apply, config, view=view)
    watching = Program(replicas, measure, shapes, seen, no_batch(1)) if config.watch else None
    # Meanwhile the other programs are compiled, and the many small ones that draw the initial state.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(initial_state)
        compiled = [pool.submit(program.compile) for program in (evaluation, watching) if program]
        chunks = {
            length: Program(replicas, train, shapes, seen, no_batch(length), donate_first=True).compile()
            for length in sorted(set(lengths))
        }
    for other in compiled:
        other.result()  # raises its error, if any
    state = replicas.replicate(drawn.result())
    del drawn
    release_memory()
    return Built(lengths, chunks, evaluation, watching, train_set, test_set, test_batches), state


def chunk_lengths(count: int) -> list[int]:
    """Splits the steps of an epoch into chunks, one dispatch each, of one length (one program) or two.

    Chunks are long enough to keep the host idle and short enough for the progress bar.
    """
    fewest = max(min(8, count), math.ceil(count / 128))
    chunks = next((n for n in range(fewest, min(10 * fewest, count) + 1) if count % n == 0 and n < count), fewest)
    return [count // chunks + (i < count % chunks) for i in range(chunks)]


class Trainer:
    """The programs and the state of a run, which is trained in chunks of steps."""

    def __init__(self, config: ResolvedConfig, dataset: data.Dataset, devices: Sequence[jax.Device] | None = None):
        """Builds the run of the resolved `config` on `devices` (default: all)."""
        self.config, self.replicas = config, Replicas(devices)
        self.train_size, self.test_size = len(dataset.train_labels), len(dataset.test_labels)
        self.built, self.state = build(config, dataset, self.replicas)
        self.lengths = self.built.lengths

    @property
    def steps_per_epoch(self) -> int:
        """Including the last, partial batch."""
        return sum(self.lengths)

    def learning_rate(self, epoch: int) -> float:
        """At the end of `epoch` (from 1)."""
        updates = epoch * self.steps_per_epoch // self.config.accumulate
        return float(optimizers.schedule(self.config, self.steps_per_epoch)(updates))

    def advance(self, epoch: int, chunks: Iterable[int]) -> Iterator[Chunk]:
        """Trains the chunks of these consecutive numbers, on pictures in the order given by (seed, epoch).

        Yields the results of each. The device runs a chunk ahead of the results: when the first are yielded, the second
        number has been taken from `chunks`, and `state` is the state after the second chunk.
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
        """Trains a whole epoch; its mean loss and accuracy."""
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
        """With `config.watch`: how Gravity treats the gradient of the step that follows `epoch`, leaf by leaf."""
        assert self.built.watching, "config.watch is off"
        batches = self.replicas.split(steps.in_batches(self._order(epoch + 1), 1, self.config.batch_size))
        measured = self.built.watching(self.state, self._pictures(epoch + 1), batches)
        return watch.rows(epoch, self.state.params, measured)

    def profile(self, profiling: contextlib.AbstractContextManager) -> None:
        """Runs two chunks of steps, the second one in `profiling`. The state does not change."""
        order, length = np.arange(self.train_size), min(self.lengths)
        state, _ = jax.block_until_ready(self._run(jax.tree.map(jnp.copy, self.state), 1, order, length))
        with profiling:
            jax.block_until_ready(self._run(state, 1, order, length))

    def _order(self, epoch: int) -> np.ndarray:
        """The numbers of the pictures, in the order of this epoch."""
        return np.random.default_rng([self.config.seed, epoch]).permutation(self.train_size)

    def _pictures(self, epoch: int) -> steps.Split:
        return augment.pictures_of(self.built.train_set, self.config, epoch, self.replicas.replicate)

    def _run(
        self, state: steps.TrainState, epoch: int, order: np.ndarray, length: int
    ) -> tuple[steps.TrainState, steps.Sums]:
        """Dispatches `length` steps on the first of the picture numbers `order`; `state` is donated."""
        batches = self.replicas.split(steps.in_batches(order, length, self.config.batch_size))
        return self.built.chunks[length](state, self._pictures(epoch), batches)


def _read_back(sums: steps.Sums) -> Chunk:
    """Waits for the devices."""
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
        run.end()
    return run.rows


def _train(run: Progress, devices: Sequence[jax.Device] | None, notice: StopRequest) -> None:
    """Trains the remaining epochs."""
    config = run.config
    dataset = data.load(config.dataset, config.data_dir, config.limit)
    started = time.perf_counter()
    trainer = Trainer(config, dataset, devices)
    if run.arrays:
        trainer.state = trainer.replicas.replicate(run.state(trainer.state))
    what = facts(trainer, dataset)
    run.begin(what, trainer.state, len(run.rows) * trainer.steps_per_epoch + sum(trainer.lengths[: run.partial.chunks]))
    for line in jax_setup.what_was_said():  # after any error about the data, which is one line
        log.info(line)
    log.info(
        f"{config.dataset}: {trainer.train_size} training and {trainer.test_size} test pictures;"
        f" {config.model} x {config.width:g}: {what['parameters']:,} parameters; {config.optimizer},"
        f" learning rate {config.learning_rate:g}; {len(what['devices'])} x {what['devices'][0]};"
        f" compiled in {time.perf_counter() - started:.1f} s"
    )
    if config.profile:
        trainer.profile(run.profiling())
    log.info(HEADER)
    notice.watched = True
    with logging_redirect_tqdm([log]):
        while not run.finished:
            row = _epoch(trainer, run, notice)
            gradients = trainer.watch(row.epoch) if config.watch else []
            run.add_epoch(row, gradients, row.epoch * trainer.steps_per_epoch)
            log.info(LINE.format(**vars(row)))
            if run.due():
                run.save(trainer.state, len(trainer.lengths), _where(trainer, row.epoch, trainer.steps_per_epoch))


def _epoch(trainer: Trainer, run: Progress, notice: StopRequest) -> Epoch:
    """Trains to the end of the epoch that the run is in and evaluates, with a progress bar on a terminal."""
    epoch, count = len(run.rows) + 1, len(trainer.lengths)
    proceed = lambda chunk: not asked_to_stop(notice.given, len(run.rows) * count + chunk)
    chunks = itertools.takewhile(proceed, range(run.partial.chunks, count))
    with _progress_bar(trainer, epoch, step := sum(trainer.lengths[: run.partial.chunks])) as bar:
        start = time.perf_counter() - run.partial.seconds
        for chunk in trainer.advance(epoch, chunks):
            if not np.all(finite := np.isfinite(chunk.loss)):
                where = _where(trainer, epoch, step + int(np.argmin(finite)) + 1)
                raise Diverged(f"the loss is not finite at {where}; {advice(trainer.config)}")
            step += len(chunk.loss)
            run.add_chunk(chunk, (epoch - 1) * trainer.steps_per_epoch + step)
            bar.update(len(chunk.loss))
        run.partial = run.partial._replace(seconds=time.perf_counter() - start)
    if run.partial.chunks < count:
        where = _where(trainer, epoch, step)
        run.save(trainer.state, count, where)
        run.wait()
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
    """Over the steps of an epoch; `done` of them are finished."""
    what = {"total": trainer.steps_per_epoch, "initial": done, "desc": f"epoch {epoch}/{trainer.config.epochs}"}
    return command.progress_bar(**what, unit="step", leave=False, **{} if primary() else {"disable": True})


def _where(trainer: Trainer, epoch: int, step: int) -> str:
    return f"epoch {epoch}, step {step} of {trainer.steps_per_epoch}"


def facts(trainer: Trainer, dataset: data.Dataset) -> dict:
    """What config.json holds in addition to the flags."""
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
