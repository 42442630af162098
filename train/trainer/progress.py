"""How far a run is, what it records and checkpoints as it trains, and from where it resumes.

The files are written by `records`, `watch` and `checkpoints`; training is in `loop`.
"""

import contextlib
import dataclasses
import logging
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer import devices
from trainer.checkpoints import Arrays, Checkpoints
from trainer.config import ResolvedConfig, RunAgain, UserError, flag, same_run
from trainer.records import Epoch, EventFiles, Workdir
from trainer.watch import GradientFile, LeafOfEpoch

log = logging.getLogger("train")


class Diverged(UserError):
    """The loss or the state is no longer finite."""


class Preempted(RunAgain):
    """The run was stopped on request; a checkpoint is written."""


class Chunk(NamedTuple):
    """The results of a chunk of steps: sums over the batch of each step, before its update; float64 (steps,)."""

    loss: np.ndarray
    correct: np.ndarray
    pictures: np.ndarray


class Partial(NamedTuple):
    """An unfinished epoch: how many chunks are done, and sums over their pictures."""

    chunks: int = 0
    loss: float = 0.0
    correct: float = 0.0
    pictures: float = 0.0
    seconds: float = 0.0

    def plus(self, chunk: Chunk) -> "Partial":
        """With one more chunk; the seconds are unchanged."""
        loss, correct, pictures = (so_far + float(x.sum()) for so_far, x in zip(self[1:4], chunk, strict=True))
        return Partial(self.chunks + 1, loss, correct, pictures, self.seconds)


class Progress:
    """The rows so far and the epoch under way; in the primary process also the files and checkpoints that keep them."""

    _workdir: Workdir | None = None  # this and the next three: None in the other processes, which write nothing
    _checkpoints: Checkpoints | None = None
    _gradients: GradientFile | None = None  # None without --watch, too
    _events: EventFiles | None = None  # None without --tensorboard, too

    def __init__(self, config: ResolvedConfig):
        """Claims the workdir; with `config.resume`, reads the newest intact checkpoint."""
        self.config = config
        self._closing = contextlib.ExitStack()
        try:
            if devices.primary():
                self._claim()
            self._restore()
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        self._workdir = Workdir(self.config)
        self._closing.callback(self._workdir.close)
        if self.config.watch:
            self._gradients = GradientFile(self._workdir, self.config)
        self._checkpoints = Checkpoints(self._workdir.checkpoints, self.config.keep)
        self._closing.callback(self._checkpoints.close)

    def _restore(self) -> None:
        found = self._checkpoints.restore() if self._checkpoints and self.config.resume else None
        arrays, progress = found or ({}, {"rows": [], "partial": []})
        (shared, progress), self.arrays = devices.from_primary((dataclasses.asdict(self.config), progress), arrays)
        for name in (*same_run(self.config), "watch"):  # all processes must run the same programs
            if shared[name] != (value := getattr(self.config, name)):
                raise UserError(f"{flag(name)} is {value}, but process 0 has {shared[name]}.")
        # Rows from before there were schedules lack the learning rate.
        self.rows = [Epoch(*[*row, self.config.learning_rate][:9]) for row in progress["rows"]]
        self.partial = Partial(*progress["partial"])

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return len(self.rows) >= self.config.epochs

    def state(self, like: Any) -> Any:
        """The checkpoint's arrays in the structure of the initial state `like`."""
        paths, treedef = jax.tree.flatten_with_path(like)
        expected = {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype) for path, leaf in paths}
        if expected != {name: (array.shape, array.dtype) for name, array in self.arrays.items()}:
            raise UserError(
                f"--workdir is {self.config.workdir}, whose checkpoint holds other arrays than this version of the"
                " program trains; resume with the version that wrote it, or choose another folder."
            )
        return jax.tree.unflatten(treedef, [self.arrays[name] for name in expected])

    def begin(self, facts: dict, state: Any, step: int) -> None:
        """Before the first step: checks the free space and records `facts`; `step` training steps are done already."""
        if self._workdir and self._checkpoints:
            self._checkpoints.check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._workdir.begin(self.config, facts)
            if self.config.resume:  # history.csv may hold rows of epochs that will be repeated
                self._workdir.write_history(self.rows)
            if self.config.tensorboard:
                self._events = EventFiles(self._workdir.path / "tensorboard", step)
                self._closing.callback(self._events.close)
        if self.rows or self.partial.chunks:
            more = f" and {self.partial.chunks} chunks of the next" if self.partial.chunks else ""
            log.info(f"resuming after epoch {len(self.rows)}{more}")

    def profiling(self) -> contextlib.AbstractContextManager:
        """What runs in it is profiled, for TensorBoard, XProf or Perfetto."""
        if self._workdir:
            return jax.profiler.trace(str(self._workdir.path / "profile"))
        return contextlib.nullcontext()

    def add_chunk(self, chunk: Chunk, step: int) -> None:
        """Counts a chunk that ended with training step `step` of the run."""
        self.partial = self.partial.plus(chunk)
        if self._events:
            self._events.add_chunk(step, float(chunk.loss.sum() / chunk.pictures.sum()))

    def add_epoch(self, row: Epoch, gradients: list[LeafOfEpoch], step: int) -> None:
        """Records an epoch that ended with training step `step`, and what --watch measured at its end, if anything."""
        self.rows.append(row)
        self.partial = Partial()
        if self._gradients:
            self._gradients.add(gradients)
        if self._workdir:
            self._workdir.write_history(self.rows)
        if self._events:
            self._events.add_epoch(step, row)

    def due(self) -> bool:
        """Whether the epoch that has just ended should be checkpointed."""
        return len(self.rows) % self.config.checkpoint_every == 0 or self.finished

    def save(self, state: Any, chunks_per_epoch: int, where: str) -> None:
        """Begins to write a checkpoint of `state`, which may be changed afterwards; Diverged if it is not finite.

        `where` tells the error how far the run is.
        """
        leaves = jax.tree.leaves_with_path(state)
        arrays: Arrays = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}
        for name, array in arrays.items():
            if not np.all(np.isfinite(array)):
                raise Diverged(f"{name} is not finite after {where}; {advice(self.config)}")
        rows = [list(vars(row).values()) for row in self.rows]
        number = len(self.rows) * chunks_per_epoch + self.partial.chunks
        if self._checkpoints and self._checkpoints.newest != number:
            self._checkpoints.save(number, arrays, {"rows": rows, "partial": list(self.partial)})

    def wait(self) -> None:
        """Waits until all checkpoints are on disk."""
        if self._checkpoints:
            self._checkpoints.wait()

    def end(self) -> None:
        """Waits for the checkpoints, then draws the figures; history.csv may be damaged since."""
        self.wait()
        if self._workdir:
            self._workdir.write_history(self.rows)
            self._workdir.write_figure(self.config, self.rows)
            if self._gradients:
                self._gradients.draw()
            log.info(f"results are in {self._workdir.path}")

    def close(self) -> None:
        """Ends the threads that write and releases the workdir."""
        self._closing.close()


def advice(config: ResolvedConfig) -> str:
    """What to try when a run diverges."""
    return (
        f"try a smaller --learning-rate (it is {config.learning_rate:g}) or another --seed;"
        " earlier checkpoints are kept."
    )
