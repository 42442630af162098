"""Works through a plan together with other workers: claims a free run, makes it, records the result, and repeats.

What a run is, its state and how it is made depend on the kind of experiment (`cells`, `comparing`).
"""

import abc
import collections
import datetime
import logging
import math
import pathlib
import signal
import tempfile
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from trainer import command
from trainer.config import RunAgain, UserError

if TYPE_CHECKING:
    from lab.store import Claim, Store

log = logging.getLogger("train")

FILE = "runs.db"  # the storage in the workdir, if no other is given
_SECONDS_BETWEEN_LOOKS = 0.5
_LOOKS_BETWEEN_TRIES = 6  # at the store, while other workers make all that is left
_OPEN = ("to do", "under way", "running")

Run = TypeVar("Run", bound=Any)  # hashable, with `epochs`


class State(NamedTuple):
    """How much of a run is done."""

    kind: Literal["done", "running", "under way", "to do", "not known yet", "failed", "other run"]
    epochs: int  # finished
    text: str  # for people
    seconds: float = math.nan  # that those epochs took; NaN where that is not known


def open_store(folder: pathlib.Path, storage: str | None, kind: str, write: bool) -> "Store | None":
    """The given storage, or FILE in the folder. Without `write` nothing is created: None where there is none."""
    if write:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"--workdir is {folder}, where nothing can be written ({error.strerror}).") from error
    elif not storage and not (folder / FILE).exists():
        return None
    from lab.store import Store

    return Store(storage or f"sqlite:///{(folder / FILE).absolute()}", kind)


class Worker(abc.ABC, Generic[Run]):
    """Lists the runs of a plan, or makes them until all are finished or it is told to stop."""

    kind: ClassVar[str]  # the study's name in the store
    head: ClassVar[tuple[str, ...]]  # of the listing's columns but for the state

    def __init__(self, folder: pathlib.Path, storage: str | None, write: bool):
        """Without `write` it only lists, and creates nothing. UserError if the folder or storage cannot be used."""
        self.folder, self.write = folder, write
        self.store = open_store(folder, storage, self.kind, write)
        self.signal: int | None = None
        self.failed = False  # whether the exit code is 1 whatever the states say
        self.bar: Any = None

    @abc.abstractmethod
    def states(self) -> Mapping[Run, State]:
        """The state of each run, in the order in which they are made."""

    @abc.abstractmethod
    def columns(self, run: Run) -> tuple[str, ...]:
        """Those of the listing."""

    @abc.abstractmethod
    def name(self, run: Run) -> str:
        """Its name in the store."""

    @abc.abstractmethod
    def title(self, run: Run) -> str:
        """Its name for people."""

    @abc.abstractmethod
    def alike(self, run: Run) -> tuple[object, ...]:
        """What it shares with runs that take as long, the closest match first."""

    @abc.abstractmethod
    def make(self, run: Run, claim: "Claim") -> int | None:
        """Makes it and ends the claim if it is finished; returns an exit code if the worker should end too."""

    def on_signal(self, number: int, again: bool) -> None:
        """Reacts to a signal; `again` if it is not the first."""

    def listing(self) -> str:
        """A line per run, and a sum."""
        found = self.states()
        rows = [(*self.head, "state"), *((*self.columns(run), state.text) for run, state in found.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, self.summary(found), ""])

    def summary(self, found: Mapping[Run, State]) -> str:
        """How many runs are in which state, and the time left, in a line."""
        kinds = collections.Counter(state.kind for state in found.values())
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        done, total = self._epochs(found)
        runs = f"{len(found)} run{'s' * (len(found) != 1)}"
        return f"{runs}: {counts}; {done:,} of {total:,} epochs; time left: {self.left(found)}"

    def left(self, found: Mapping[Run, State]) -> str:
        """The time left, at the mean pace of the most similar runs, whatever machine they were made on."""
        pace: dict[object, list[float]] = collections.defaultdict(lambda: [0.0, 0])
        for run, state in found.items():
            if state.epochs and math.isfinite(state.seconds):
                for group in (*self.alike(run), ()):
                    pace[group][0] += state.seconds
                    pace[group][1] += state.epochs
        if not pace:
            return "not measured yet"
        total, skipped = 0.0, ("done", "other run", *(["failed"] if self.write else []))
        for run, state in found.items():
            if state.kind not in skipped:
                seconds, epochs = next(pace[group] for group in (*self.alike(run), ()) if group in pace)
                total += (run.epochs - state.epochs) * seconds / epochs
        return f"about {datetime.timedelta(seconds=round(total))}"

    def work(self) -> int:
        """The exit code: 1 if a run failed; 75 after SIGTERM or SIGHUP, 130 after Ctrl-C."""
        from tqdm.contrib.logging import logging_redirect_tqdm

        command.on_stop(self._on_signal, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        log.info(f"{self.summary(self.states())}; --list shows them all")
        bar = {"unit": "epoch", "bar_format": "{n_fmt}/{total_fmt} epochs |{bar}| {elapsed}{postfix}"}
        with command.progress_bar(**bar) as self.bar, logging_redirect_tqdm([log]):
            code = self._work()
        if code in (RunAgain.exit_code, command.INTERRUPTED):
            word = "interrupted" if code == command.INTERRUPTED else "stopped"
            log.error(f"{word}; the same command resumes from here")
            return code
        found = self.states()
        for run, state in found.items():
            if state.kind in ("failed", "other run"):
                log.error(f"{self.title(run)}: {state.text}")
        log.info(self.summary(found))
        return int(self.failed or any(state.kind == "failed" for state in found.values()))

    def _work(self) -> int:
        assert self.store is not None
        waiting = False
        while not self.signal:
            found = self.states()
            self.bar.n, self.bar.total = self._epochs(found)
            free = (run for run, state in found.items() if state.kind in ("to do", "under way"))
            claimed = next(((run, claim) for run in free if (claim := self.store.claim(self.name(run)))), None)
            if claimed:
                with claimed[1]:
                    code = self.make(*claimed)
                if code is not None and not self.signal:
                    return code
            elif left := sum(state.kind in _OPEN for state in found.values()):
                if not waiting:
                    log.info(f"waiting for other workers, which are making {left} run{'s' * (left > 1)} of this plan")
                    waiting = True
                self._wait()
            else:
                return 0
        return command.INTERRUPTED if self.signal == signal.SIGINT else RunAgain.exit_code

    def tell(self, run: Run, text: str) -> None:
        """Logs that of a run, with the time left."""
        left = self.left(self.states())
        self.bar.set_postfix_str(f"time left: {left}; {self.title(run)}", refresh=False)
        log.info(f"{self.title(run)}: {text}; time left: {left}")

    def _epochs(self, found: Mapping[Run, State]) -> tuple[int, int]:
        """How many of the planned epochs are done (a run may have more), and how many are planned."""
        done = sum(min(state.epochs, run.epochs) for run, state in found.items())
        return done, sum(run.epochs for run in found)

    def _wait(self) -> None:
        """For the runs of other workers: they decide what comes next, and a stale one is made here."""
        for _ in range(_LOOKS_BETWEEN_TRIES):
            if not self.signal:
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _on_signal(self, number: int, frame: Any) -> None:
        again, self.signal = self.signal is not None, self.signal or number
        self.on_signal(number, again)
