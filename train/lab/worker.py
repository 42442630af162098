"""Works through a plan together with other workers: claims a free run, does it, records the result, and repeats.

What a run is, its state and how it is done depend on the kind of experiment (`cells`, `comparing`).
"""

import abc
import collections
import datetime
import logging
import math
import os
import pathlib
import signal
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from trainer import command
from trainer.config import RunAgain, UsageError, UserError

if TYPE_CHECKING:
    from lab.store import Claim

log = logging.getLogger("train")

FILE = "runs.db"  # the storage in the workdir, if no other is given
_SECONDS_BETWEEN_LOOKS = 0.5
_LOOKS_BETWEEN_TRIES = 6  # at the store, while other workers do all that is left


class Run(NamedTuple):
    """A run of the plan, and how much of it is done."""

    what: Any  # what `execute` needs of it
    planned: int  # epochs
    name: str  # in the store
    title: str  # for people
    columns: tuple[str, ...]  # of the listing
    alike: tuple[object, ...]  # what it shares with runs that take as long, the closest match first
    kind: Literal["done", "running", "under way", "to do", "not known yet", "failed", "other run"]
    text: str  # the state for people
    epochs: int = 0  # finished
    seconds: float = math.nan  # that those epochs took; NaN where that is not known


class Worker(abc.ABC):
    """Lists the runs of a plan, or does them until all are finished or it is told to stop."""

    kind: ClassVar[str]  # the study's name in the store
    head: ClassVar[tuple[str, ...]]  # of the listing's columns but for the state

    def __init__(self, folder: pathlib.Path, storage: str | None, write: bool):
        """Opens the given storage, or FILE in the folder. UserError if the folder or storage cannot be used.

        Without `write` it only lists, and creates nothing in the folder: `store` is None where there is no storage.
        """
        if storage is not None and not storage.strip():
            raise UsageError("--storage is empty; leave it out, or give a URL (is a variable in it unset?).")
        self.write = write
        if write:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                why = f"where nothing can be written ({error.strerror})"
                raise UserError(f"--workdir is {folder}, {why}; choose another folder.") from error
        self.store: Any = None
        if write or storage or ((folder / FILE).exists() and os.access(folder, os.W_OK)):
            from lab.store import Store

            fix = "" if storage else " If it is damaged, delete it: it is written again from the results beside it."
            self.store = Store(storage or f"sqlite:///{(folder / FILE).absolute()}", self.kind, fix)
        self.signal: int | None = None
        self.failed = False  # whether the exit code is 1 whatever the states say
        self.bar: Any = None

    @abc.abstractmethod
    def runs(self) -> Sequence[Run]:
        """All of the plan, in the order in which they are run."""

    @abc.abstractmethod
    def execute(self, run: Run, claim: "Claim") -> int | None:
        """Does it and ends the claim if it is finished; returns an exit code if the worker should end too."""

    @abc.abstractmethod
    def on_signal(self, number: int, again: bool) -> None:
        """Reacts to a signal; `again` if it is not the first."""

    def listing(self) -> str:
        """A line per run, and a sum."""
        runs = self.runs()
        rows = [(*self.head, "state"), *((*run.columns, run.text) for run in runs)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, self.summary(runs), ""])

    def summary(self, runs: Sequence[Run]) -> str:
        """How many runs are in which state, and the time left, in a line."""
        counts = ", ".join(f"{n} {kind}" for kind, n in collections.Counter(run.kind for run in runs).items())
        done, total = _epochs(runs)
        plural = "s" * (len(runs) != 1)
        return f"{len(runs)} run{plural}: {counts}; {done:,} of {total:,} epochs; time left: {self.left(runs)}"

    def left(self, runs: Sequence[Run]) -> str:
        """The time left, at the mean pace of the most similar runs, on whatever machine."""
        pace: dict[object, list[float]] = collections.defaultdict(lambda: [0.0, 0])
        for run in runs:
            if run.epochs and math.isfinite(run.seconds):
                for group in (*run.alike, ()):
                    pace[group][0] += run.seconds
                    pace[group][1] += run.epochs
        if not pace:
            return "not measured yet"
        total, skipped = 0.0, ("done", "other run", *(["failed"] if self.write else []))
        for run in runs:
            if run.kind not in skipped:
                seconds, epochs = next(pace[group] for group in (*run.alike, ()) if group in pace)
                total += (run.planned - run.epochs) * seconds / epochs
        return f"about {datetime.timedelta(seconds=round(total))}"

    def work(self) -> int:
        """The exit code: 1 if a run failed or its folder has another; 75 after SIGTERM or SIGHUP, 130 after Ctrl-C."""
        from tqdm.contrib.logging import logging_redirect_tqdm

        command.on_stop(self._on_signal, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        log.info(f"{self.summary(self.runs())}; --list shows them all")
        bar = {"unit": "epoch", "bar_format": "{n_fmt}/{total_fmt} epochs |{bar}| {elapsed}{postfix}"}
        with command.progress_bar(**bar) as self.bar, logging_redirect_tqdm([log]):
            code = self._work()
        if code:
            word = "interrupted" if code == command.INTERRUPTED else "stopped"
            log.error(f"{word}; the same command resumes from here")
            return code
        runs = self.runs()
        for run in runs:
            if run.kind in ("failed", "other run"):
                log.error(f"{run.title}: {run.text}")
        if runs:
            log.info(self.summary(runs))
        return int(self.failed or any(run.kind in ("failed", "other run") for run in runs))

    def _work(self) -> int:
        waiting = False
        while not self.signal:
            runs = self.runs()
            self.bar.n, self.bar.total = _epochs(runs)
            free = (run for run in runs if run.kind in ("to do", "under way"))
            claimed = next(((run, claim) for run in free if (claim := self.store.claim(run.name))), None)
            if claimed:
                with claimed[1]:
                    code = self.execute(*claimed)
                if code is not None and not self.signal:
                    return code
            elif left := sum(run.kind in ("to do", "under way", "running") for run in runs):
                if not waiting:
                    log.info(f"waiting for other workers, which are doing all that is left (runs: {left})")
                    waiting = True
                for _ in range(_LOOKS_BETWEEN_TRIES):  # their runs decide what comes next; a stale one is done here
                    if not self.signal:
                        time.sleep(_SECONDS_BETWEEN_LOOKS)
            else:
                return 0
        return command.INTERRUPTED if self.signal == signal.SIGINT else RunAgain.exit_code

    def tell(self, run: Run, text: str) -> None:
        """Logs that of a run, with the time left."""
        left = self.left(self.runs())
        self.bar.set_postfix_str(f"time left: {left}; {run.title}", refresh=False)
        log.info(f"{run.title}: {text}; time left: {left}")

    def _on_signal(self, number: int, frame: Any) -> None:
        again, self.signal = self.signal is not None, self.signal or number
        self.on_signal(number, again)


def _epochs(runs: Sequence[Run]) -> tuple[int, int]:
    """How many of the planned epochs are done (a run may have more), and how many are planned."""
    return sum(min(run.epochs, run.planned) for run in runs), sum(run.planned for run in runs)
