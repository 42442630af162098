"""A run beyond its process: how far it is, what of it is kept while it trains, and what it goes on from."""

import logging
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer import devices
from trainer.checkpoints import Arrays, Checkpoints
from trainer.config import SAME_RUN, Config, RunAgain, UserError, flag
from trainer.records import Epoch, Workdir

log = logging.getLogger("train")


class Diverged(UserError):
    """The loss or the state is no longer made of finite numbers."""


class Preempted(RunAgain):
    """The machine is being taken away; a checkpoint is written."""


class Partial(NamedTuple):
    """An epoch that is under way: the chunks that are done, and sums over their pictures."""

    chunks: int = 0
    loss: float = 0.0
    correct: float = 0.0
    pictures: float = 0.0
    seconds: float = 0.0


class Progress:
    """The rows so far, the epoch under way, and what keeps them: the workdir and the checkpoints (primary only)."""

    def __init__(self, config: Config):
        """Opens the workdir; with `config.resume`, reads the newest checkpoint that is whole."""
        self.config = config
        self.workdir = Workdir(config) if devices.primary() else None
        self._checkpoints = Checkpoints(self.workdir.checkpoints, config.keep) if self.workdir else None
        found = self._checkpoints.restore() if self._checkpoints and config.resume else None
        shared_config, found = devices.from_primary((config, found))
        for name in SAME_RUN:
            if getattr(shared_config, name) != (value := getattr(config, name)):
                raise UserError(f"{flag(name)} is {value}, but process 0 has {getattr(shared_config, name)}.")
        self.arrays: Arrays | None = found[0] if found else None
        progress = found[1] if found else {"rows": [], "partial": ()}
        self.rows = [Epoch(*row) for row in progress["rows"]]
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
                " program trains; go on with the version that wrote it, or choose another folder."
            )
        return jax.tree.unflatten(treedef, [self.arrays[name] for name in expected])

    def begin(self, facts: dict, state: Any) -> None:
        """Before the first step: is there room, and what will be trained."""
        if self.workdir:
            self._checkpoints.check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self.workdir.write_config(self.config, facts)
            if self.config.resume:  # it may hold rows of epochs that come again
                self.workdir.write_history(self.rows)
        if self.rows or self.partial.chunks:
            more = f" and {self.partial.chunks} chunks of the next" if self.partial.chunks else ""
            log.info(f"going on after epoch {len(self.rows)}{more}")

    def add(self, row: Epoch) -> None:
        """Records an epoch that has ended."""
        self.rows.append(row)
        self.partial = Partial()
        if self.workdir:
            self.workdir.write_history(self.rows)

    def due(self) -> bool:
        """Whether the epoch that has ended is to have a checkpoint."""
        return len(self.rows) % self.config.checkpoint_every == 0 or self.finished

    def save(self, state: Any, chunks_per_epoch: int, where: str) -> None:
        """Begins to write a checkpoint of `state`, which may be changed afterwards; Diverged if it is not finite.

        `where` says for the error how far the run is.
        """
        number = len(self.rows) * chunks_per_epoch + self.partial.chunks
        if self._checkpoints and self._checkpoints.newest == number:
            return
        leaves = jax.tree.leaves_with_path(state)
        arrays: Arrays = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}
        for name, array in arrays.items():
            if not np.all(np.isfinite(array)):
                raise Diverged(f"{name} is not finite after {where}; {advice(self.config)}")
        if not self._checkpoints:
            return
        rows = [list(vars(row).values()) for row in self.rows]
        self._checkpoints.save(number, arrays, {"rows": rows, "partial": list(self.partial)})

    def wait(self) -> None:
        """Until all checkpoints are on disk."""
        if self._checkpoints:
            self._checkpoints.wait()

    def end(self) -> None:
        """Draws the figure, when all checkpoints are on disk."""
        self.wait()
        if self.workdir:
            self.workdir.write_figure(self.config, self.rows)
            log.info(f"results are in {self.workdir.path}")

    def close(self) -> None:
        """Ends the threads that write."""
        if self._checkpoints:
            self._checkpoints.close()


def advice(config: Config) -> str:
    """What may keep a run from diverging."""
    return (
        f"try a smaller --learning-rate (it is {config.learning_rate:g}) or another --seed;"
        " the checkpoints before it are kept."
    )
