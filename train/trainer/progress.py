"""A run beyond its process: how far it is, what of it is kept while it trains, and what it goes on from."""

import contextlib
import dataclasses
import logging
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer import devices
from trainer.checkpoints import Arrays, Checkpoints
from trainer.config import ResolvedConfig, RunAgain, UserError, flag, same_run
from trainer.event_files import EventFiles, NoEventFiles
from trainer.records import Epoch, Workdir
from trainer.watch import GradientFile, LeafOfEpoch

log = logging.getLogger("train")


class Diverged(UserError):
    """The loss or the state is no longer made of finite numbers."""


class Preempted(RunAgain):
    """The machine is being taken away; a checkpoint is written."""


class Chunk(NamedTuple):
    """What came of a chunk of steps: sums over each one's batch, before its update; float64 (steps,)."""

    loss: np.ndarray
    correct: np.ndarray
    pictures: np.ndarray


class Partial(NamedTuple):
    """An epoch that is under way: the chunks that are done, and sums over their pictures."""

    chunks: int = 0
    loss: float = 0.0
    correct: float = 0.0
    pictures: float = 0.0
    seconds: float = 0.0

    def plus(self, chunk: Chunk) -> "Partial":
        """With one more chunk; the seconds stay."""
        loss, correct, pictures = (so_far + float(x.sum()) for so_far, x in zip(self[1:4], chunk, strict=True))
        return Partial(self.chunks + 1, loss, correct, pictures, self.seconds)


class Recorder:
    """What the primary keeps of a run: the workdir and the checkpoints."""

    def __init__(self, config: ResolvedConfig):
        """Claims the workdir."""
        self._config = config
        self._workdir = Workdir(config)
        try:
            self._gradients = GradientFile(self._workdir, config) if config.watch else None
            self._checkpoints = Checkpoints(self._workdir.checkpoints, config.keep)
        except BaseException:
            self._workdir.close()
            raise

    def restore(self) -> tuple[Arrays, dict[str, Any]] | None:
        """With `config.resume`, the newest checkpoint that is whole, if there is one."""
        return self._checkpoints.restore() if self._config.resume else None

    def begin(self, facts: dict, state: Any, rows: list[Epoch]) -> None:
        """Before the first step: is there room, and what will be trained."""
        self._checkpoints.check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        self._workdir.begin(self._config, facts)
        if self._config.resume:  # it may hold rows of epochs that come again
            self._workdir.write_history(rows)

    def profiling(self) -> contextlib.AbstractContextManager:
        """What runs in it is profiled, for TensorBoard, XProf or Perfetto."""
        return jax.profiler.trace(str(self._workdir.path / "profile"))

    def event_files(self, step: int) -> EventFiles:
        """Where to write for TensorBoard from training step `step` on."""
        folder = str(self._workdir.path / "tensorboard")
        return EventFiles(folder, step) if self._config.tensorboard else NoEventFiles()

    def write_history(self, rows: list[Epoch]) -> None:
        self._workdir.write_history(rows)

    def add_gradients(self, epoch: list[LeafOfEpoch]) -> None:
        """What --watch found at an epoch's end."""
        assert self._gradients
        self._gradients.add(epoch)

    def save(self, number: int, arrays: Arrays, progress: dict[str, Any]) -> None:
        """Begins to write a checkpoint, unless it is there."""
        if self._checkpoints.newest != number:
            self._checkpoints.save(number, arrays, progress)

    def wait(self) -> None:
        """Until all checkpoints are on disk."""
        self._checkpoints.wait()

    def end(self, rows: list[Epoch]) -> None:
        """Draws the figures, when all checkpoints are on disk."""
        self.wait()
        self._workdir.write_figure(self._config, rows)
        if self._gradients:
            self._gradients.draw()
        log.info(f"results are in {self._workdir.path}")

    def close(self) -> None:
        """Ends the threads that write, and leaves the workdir to others."""
        self._checkpoints.close()
        self._workdir.close()


class NoRecorder(Recorder):
    """The same in the other processes, which keep nothing."""

    def __init__(self, config: ResolvedConfig): ...

    def restore(self) -> None: ...

    def begin(self, facts: dict, state: Any, rows: list[Epoch]) -> None: ...

    def profiling(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def event_files(self, step: int) -> EventFiles:
        return NoEventFiles()

    def write_history(self, rows: list[Epoch]) -> None: ...

    def add_gradients(self, epoch: list[LeafOfEpoch]) -> None: ...

    def save(self, number: int, arrays: Arrays, progress: dict[str, Any]) -> None: ...

    def wait(self) -> None: ...

    def end(self, rows: list[Epoch]) -> None: ...

    def close(self) -> None: ...


class Progress:
    """The rows so far, the epoch under way, and the recorder that keeps them."""

    def __init__(self, config: ResolvedConfig):
        """Claims the workdir; with `config.resume`, reads the newest checkpoint that is whole."""
        self.config = config
        self.recorder = Recorder(config) if devices.primary() else NoRecorder(config)
        try:
            self._restore()
        except BaseException:
            self.close()
            raise

    def _restore(self) -> None:
        arrays, progress = self.recorder.restore() or ({}, {"rows": [], "partial": []})
        (shared, progress), self.arrays = devices.from_primary((dataclasses.asdict(self.config), progress), arrays)
        for name in (*same_run(self.config), "watch"):  # all processes must run the same programs
            if shared[name] != (value := getattr(self.config, name)):
                raise UserError(f"{flag(name)} is {value}, but process 0 has {shared[name]}.")
        # Rows of before there were schedules lack the learning rate.
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

    def begin(self, facts: dict, state: Any) -> None:
        """Before the first step."""
        self.recorder.begin(facts, state, self.rows)
        if self.rows or self.partial.chunks:
            more = f" and {self.partial.chunks} chunks of the next" if self.partial.chunks else ""
            log.info(f"resuming after epoch {len(self.rows)}{more}")

    def add(self, row: Epoch) -> None:
        """Records an epoch that has ended."""
        self.rows.append(row)
        self.partial = Partial()
        self.recorder.write_history(self.rows)

    def due(self) -> bool:
        """Whether the epoch that has ended is to have a checkpoint."""
        return len(self.rows) % self.config.checkpoint_every == 0 or self.finished

    def save(self, state: Any, chunks_per_epoch: int, where: str) -> None:
        """Begins to write a checkpoint of `state`, which may be changed afterwards; Diverged if it is not finite.

        `where` says for the error how far the run is.
        """
        leaves = jax.tree.leaves_with_path(state)
        arrays: Arrays = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}
        for name, array in arrays.items():
            if not np.all(np.isfinite(array)):
                raise Diverged(f"{name} is not finite after {where}; {advice(self.config)}")
        rows = [list(vars(row).values()) for row in self.rows]
        number = len(self.rows) * chunks_per_epoch + self.partial.chunks
        self.recorder.save(number, arrays, {"rows": rows, "partial": list(self.partial)})

    def close(self) -> None:
        """Leaves the workdir to others."""
        self.recorder.close()


def advice(config: ResolvedConfig) -> str:
    """What may keep a run from diverging."""
    return (
        f"try a smaller --learning-rate (it is {config.learning_rate:g}) or another --seed;"
        " the checkpoints before it are kept."
    )
