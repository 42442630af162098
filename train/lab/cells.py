"""The cells of the paper's evaluation: how far each is, and a worker that trains them one after another.

A cell is a run of the trainer in a process of its own: what breaks one cell (divergence, no memory left, a crash inside
XLA) leaves the others alone, its memory is freed when it ends, and stopping and resuming are the trainer's. The price
is starting Python and JAX for each cell: seconds, where a cell takes minutes to hours.

A cell is done when its folder or the store has all its epochs; a cell from another machine is written to its folder
from the store.
"""

import dataclasses
import json
import logging
import math
import pathlib
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from lab.store import Claim, Store, prepare
from lab.worker import Alike, Worker, aligned, time_left
from trainer import command, csv_files
from trainer.config import ResolvedConfig, RunAgain, as_recorded, flag, same_run
from trainer.ownership import is_owned

log = logging.getLogger("train")

KIND = "benchmark"  # in the store
_MAIN = pathlib.Path(__file__).parents[1] / "main.py"
_SECONDS_BETWEEN_LOOKS = 0.5
_NUMBERS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "val_seconds")
_FILES = ("config.json", "history.csv")  # what the store keeps of a cell's folder


@dataclasses.dataclass(frozen=True)
class State:
    """How far a cell is."""

    kind: Literal["done", "running", "under way", "to do", "failed", "other run"]
    epochs: int  # finished
    text: str  # for people


def labels(cell: ResolvedConfig) -> tuple[str, ...]:
    """Dataset, model, optimizer (or variant of the tuning study) and seed_<n>: the last parts of its folder."""
    return cell.folder.parts[-4:]


def cell_name(cell: ResolvedConfig) -> str:
    """The cell's in the store."""
    settings = {field: getattr(cell, field) for field in (*same_run(cell), "epochs")}
    return f"{'/'.join(labels(cell))} {json.dumps(settings, sort_keys=True)}"


def history(folder: pathlib.Path) -> list[dict[str, str]]:
    """The complete rows of history.csv, all of numbers; UserError for a file that is not one of ours."""
    try:
        return [row for _, row in csv_files.read(folder / "history.csv", _NUMBERS, _NUMBERS)]
    except FileNotFoundError:
        return []


def state(
    cell: ResolvedConfig, done: Collection[str] = (), running: Collection[str] = (), failed: Mapping[str, str] = {}
) -> State:
    """How far a cell is, by its folder and by what the store has of the cells' names."""
    folder, name = cell.folder, cell_name(cell)
    epochs = len(history(folder))
    progress = f"{epochs} of {cell.epochs} epochs"
    if differences := _differences(cell, folder):
        return State(
            "other run", 0, f"another run is in this folder: {'; '.join(differences)}; choose another --workdir"
        )
    if epochs >= cell.epochs or name in done:
        return State("done", max(epochs, cell.epochs), f"done: {max(epochs, cell.epochs)} epochs")
    if name in running or is_owned(folder):
        return State("running", epochs, f"under way: {progress}, running now")
    if name in failed:
        return State("failed", epochs, f"failed after {progress}: {failed[name]}")
    if epochs or (folder / "config.json").exists():
        return State("under way", epochs, f"under way: {progress}, stopped")
    return State("to do", 0, f"to do: {cell.epochs} epochs")


def states(cells: Sequence[ResolvedConfig], store: Store | None) -> list[State]:
    """Of all of them, with one look at the store."""
    known = (store.outcomes(), store.running(), store.failures()) if store else ()
    return [state(cell, *known) for cell in cells]


def listing(cells: Sequence[ResolvedConfig], store: Store | None = None) -> str:
    """A line per cell, and the totals."""
    found = states(cells, store)
    rows = [["dataset", "model", "optimizer", "seed", "state"]]
    for cell, s in zip(cells, found, strict=True):
        *names, seed = labels(cell)
        rows.append([*names, seed.removeprefix("seed_"), s.text])
    kinds = [s.kind for s in found]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    done, total = epochs_done(cells, found), sum(cell.epochs for cell in cells)
    left = cells_left(cells, found)
    return f"{aligned(rows)}\n{len(cells)} cells: {counts}; {done:,} of {total:,} epochs; time left: {left}\n"


def epochs_done(cells: Sequence[ResolvedConfig], found: Sequence[State]) -> int:
    """Of the epochs asked for; a cell may have more."""
    return sum(min(s.epochs, cell.epochs) for cell, s in zip(cells, found, strict=True))


def cells_left(cells: Sequence[ResolvedConfig], found: Sequence[State]) -> str:
    """The time left, at the pace of the recorded histories, whatever machine they come from."""
    left, took = [], []
    for cell, s in zip(cells, found, strict=True):
        alike: Alike = (labels(cell)[:3], (cell.model,))
        seconds = [float(row["seconds"]) + float(row["val_seconds"]) for row in history(cell.folder)]
        if seconds and math.isfinite(sum(seconds)):
            took.append((alike, sum(seconds), len(seconds)))
        if s.kind not in ("done", "other run"):
            left.append((alike, cell.epochs - s.epochs))
    return time_left(left, took)


def command_line(cell: ResolvedConfig) -> list[str]:
    """The command line that trains a cell."""
    words = [sys.executable, str(_MAIN)]
    for field in dataclasses.fields(cell):
        value = getattr(cell, field.name)
        if value is True:
            words.append(flag(field.name))
        elif value is not None and value is not False:
            words += [flag(field.name), str(value)]
    return words


class CellWorker(Worker[ResolvedConfig]):
    """Trains the cells one after another until it is stopped."""

    def __init__(self, folder: pathlib.Path, store: Store, cells: Sequence[ResolvedConfig]):
        super().__init__(folder, store)
        self.cells = cells
        self.process: subprocess.Popen | None = None

    def name(self, run: ResolvedConfig) -> str:
        return cell_name(run)

    def run(self) -> int:
        from tqdm.contrib.logging import logging_redirect_tqdm

        skipped = sum(s.kind in ("done", "other run") for s in self._states())
        log.info(f"cells: {len(self.cells)}, {skipped} of them skipped; --list shows them all")
        options = {
            "total": sum(cell.epochs for cell in self.cells),
            "unit": "epoch",
            "bar_format": "{n_fmt}/{total_fmt} epochs |{bar}| {elapsed}{postfix}",
        }
        with command.progress_bar(**options) as self.bar, logging_redirect_tqdm([log]):
            return super().run()

    def _states(self) -> list[State]:
        outcomes = self.store.outcomes()
        for cell in self.cells:
            if len(history(cell.folder)) < cell.epochs and (outcome := outcomes.get(cell_name(cell))):
                cell.folder.mkdir(parents=True, exist_ok=True)
                for file in _FILES:
                    (cell.folder / file).write_text(outcome[file])
        self.failed = self.store.failures(since_start=True)
        return [state(cell, outcomes, self.store.running(), self.failed) for cell in self.cells]

    def todo(self) -> list[ResolvedConfig]:
        found = self._states()
        self.bar.n = epochs_done(self.cells, found)
        kinds = ("to do", "under way", "running")
        return [cell for cell, s in zip(self.cells, found, strict=True) if s.kind in kinds]

    def free(self, run: ResolvedConfig) -> bool:
        return not is_owned(run.folder)  # by a trainer whose worker is gone, or that was started by hand

    def make(self, run: ResolvedConfig, claim: Claim) -> int | None:
        run.folder.mkdir(parents=True, exist_ok=True)
        with open(run.folder / "output.txt", "a") as output:
            # A session of its own: Ctrl-C on the terminal comes here alone and is passed on.
            self.process = subprocess.Popen(
                command_line(run),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            if self.signal:  # it arrived before the process existed
                self.process.send_signal(self.signal)
            code = self._watch(run, claim)
        rows = history(run.folder)
        if code == 0 and len(rows) >= run.epochs:
            outcome = {file: (run.folder / file).read_text() for file in _FILES if (run.folder / file).exists()}
            claim.finish(float(rows[run.epochs - 1]["val_accuracy"]), outcome)
        elif code == RunAgain.exit_code or self.signal or is_owned(run.folder):
            claim.release()
        else:
            why = _last_words(run.folder / "output.txt", code)
            claim.fail(why)
            log.error(f"{'/'.join(labels(run))} failed: {why}")
        return code if code == RunAgain.exit_code else None

    def _watch(self, run: ResolvedConfig, claim: Claim) -> int:
        """Reports each epoch until the process ends; returns its exit code."""
        assert self.process is not None
        seen, ended = len(history(run.folder)), False
        while not ended:
            try:
                self.process.wait(_SECONDS_BETWEEN_LOOKS)
                ended = True
            except subprocess.TimeoutExpired:
                pass
            rows = history(run.folder)
            for row in rows[seen:]:
                claim.report(int(row["epoch"]), float(row["val_accuracy"]))
            if rows[seen:]:
                self.bar.update(len(rows) - seen)
                self._tell(run, rows[-1])
                seen = len(rows)
            self.bar.refresh()
        return self.process.returncode

    def _tell(self, run: ResolvedConfig, row: dict[str, str]) -> None:
        ahead = [cell for cell in self.cells if cell_name(cell) not in self.failed]
        left, name = cells_left(ahead, [state(cell) for cell in ahead]), "/".join(labels(run))
        self.bar.set_postfix_str(f"time left: {left}; {name}", refresh=False)
        accuracy = float(row["val_accuracy"])
        log.info(f"{name}: epoch {row['epoch']} of {run.epochs}, validation accuracy {accuracy:.4f}; time left: {left}")

    def end(self) -> int:
        found = self._states()
        for cell, s in zip(self.cells, found, strict=True):
            if s.kind == "other run":
                log.warning(f"{'/'.join(labels(cell))} is skipped: {s.text}")
            elif s.kind == "failed":
                log.error(f"{'/'.join(labels(cell))} failed: {self.failed[cell_name(cell)]}")
        done = sum(s.kind == "done" for s in found)
        log.info(f"{done} of {len(self.cells)} cells are done; python train/report.py {self.folder} shows them")
        return int(any(s.kind == "failed" for s in found))

    def stop(self, number: int, again: bool) -> None:
        if self.process and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL if again else number)


def work(workdir: str, storage: str | None, cells: Sequence[ResolvedConfig]) -> int:
    """Trains the cells; the exit code. UserError if the folder or the storage cannot be used."""
    folder = pathlib.Path(workdir)
    return CellWorker(folder, prepare(folder, storage, KIND), cells).run()


def _differences(cell: ResolvedConfig, folder: pathlib.Path) -> list[str]:
    """Settings in which the run in this folder differs from this cell."""
    try:
        stored = as_recorded(json.loads((folder / "config.json").read_text()))
    except (FileNotFoundError, json.JSONDecodeError):  # none yet, or half written when the machine went down
        return []
    return [
        f"{flag(name)} was {stored[name]}, now {getattr(cell, name)}"
        for name in same_run(cell)
        if name in stored and stored[name] != getattr(cell, name)
    ]


def _last_words(output: pathlib.Path, code: int) -> str:
    """Why a process ended, in a line."""
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    words = lines[-1].removeprefix("error: ") if lines else "no output"
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{words} ({ended}; full output in {output})"
