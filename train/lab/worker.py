"""Works through a plan together with other workers: claims a free run, makes it, records the result, and repeats.

What a run is and how it is made depends on the kind of experiment (`cells`, `comparing`).
"""

import abc
import collections
import datetime
import logging
import pathlib
import signal
import time
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from lab.store import Claim, Store
from trainer import command
from trainer.config import RunAgain

log = logging.getLogger("train")

_SECONDS_BETWEEN_LOOKS = 0.5
_LOOKS_BETWEEN_TRIES = 6  # at the store, while other workers make all that is left

Run = TypeVar("Run")
Alike = tuple[tuple, ...]  # what a run shares with others that take as long, the most similar first


class Worker(abc.ABC, Generic[Run]):
    """Makes runs until all are finished or it is told to stop."""

    def __init__(self, folder: pathlib.Path, store: Store):
        self.folder = folder
        self.store = store
        self.signal: int | None = None
        self._waiting = False

    @abc.abstractmethod
    def todo(self) -> list[Run]:
        """The known runs that are neither finished nor failed, in order, according to the store."""

    @abc.abstractmethod
    def name(self, run: Run) -> str:
        """Its name in the store."""

    @abc.abstractmethod
    def make(self, run: Run, claim: Claim) -> int | None:
        """Makes it and ends the claim; returns an exit code if the worker should end too."""

    @abc.abstractmethod
    def end(self) -> int:
        """The exit code after the last run."""

    def free(self, run: Run) -> bool:
        """Whether no process unknown to the store is making it."""
        return True

    def stop(self, number: int, again: bool) -> None:
        """Reacts to a signal; `again` if it is not the first."""

    def run(self) -> int:
        """The exit code: that of `end`; 75 after SIGTERM or SIGHUP, 130 after Ctrl-C."""
        command.on_stop(self._on_signal, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        while not self.signal and (todo := self.todo()):
            running = self.store.running()
            free = (run for run in todo if self.name(run) not in running and self.free(run))
            claimed = next(((run, claim) for run in free if (claim := self.store.claim(self.name(run)))), None)
            if claimed is None:
                self._wait(len(todo))
            elif (code := self.make(*claimed)) is not None and not self.signal:
                log.error("stopped; the same command resumes from here")
                return code
        if self.signal == signal.SIGINT:
            log.error("interrupted; the same command resumes from here")
            return command.INTERRUPTED
        if self.signal:
            log.error("stopped; the same command resumes from here")
            return RunAgain.exit_code
        return self.end()

    def _wait(self, count: int) -> None:
        """Waits for the runs of other workers: they decide what comes next, and a stale one is made here."""
        if not self._waiting:
            log.info(f"waiting for other workers, which are making {count} run{'s' * (count > 1)} of this plan")
            self._waiting = True
        for _ in range(_LOOKS_BETWEEN_TRIES):
            if not self.signal:
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _on_signal(self, number: int, frame: Any) -> None:
        again, self.signal = self.signal is not None, self.signal or number
        self.stop(number, again)


def time_left(left: Iterable[tuple[Alike, int]], took: Iterable[tuple[Alike, float, int]]) -> str:
    """The time for `left` (kind, epochs), at the mean pace of the most similar of `took` (kind, seconds, epochs)."""
    pace: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for alike, seconds, epochs in took:
        for group in (*alike, ()):
            pace[group][0] += seconds
            pace[group][1] += epochs
    if not pace:
        return "not measured yet"
    total = 0.0
    for alike, epochs in left:
        seconds, count = next(pace[group] for group in (*alike, ()) if group in pace)
        total += epochs * seconds / count
    return f"about {datetime.timedelta(seconds=round(total))}"


def aligned(rows: Sequence[Sequence[object]]) -> str:
    """Rows of text in aligned columns; the last column is not padded."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]) - 1)] + [0]
    lines = ["  ".join(str(x).ljust(width) for x, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines)
