"""The cells of the paper's evaluation: the state of each, and a worker that trains them one after another.

A cell is a run of the trainer in a separate process: what breaks one cell (divergence, no memory left, a crash inside
XLA) leaves the others alone, its memory is freed when it ends, and stopping and resuming are the trainer's. The price
is starting Python and JAX for each cell: seconds, where a cell takes minutes to hours.

A cell is done when its folder or the store has all its epochs; a cell from another machine is written to its folder
from the store.
"""

import contextlib
import json
import logging
import math
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lab.worker import Run, Worker
from trainer import csv_files
from trainer.config import ResolvedConfig, RunAgain, as_recorded, flag, same_run
from trainer.ownership import is_owned

if TYPE_CHECKING:
    from lab.store import Claim

log = logging.getLogger("train")

_MAIN = pathlib.Path(__file__).parents[1] / "main.py"
_SECONDS_BETWEEN_LOOKS = 0.5
_NUMBERS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "val_seconds")
_FILES = ("config.json", "history.csv")  # what the store keeps of a cell's folder


def cell_name(cell: ResolvedConfig) -> str:
    """The cell's in the store: dataset, model, optimizer (or variant of the study), seed_<n>; then the settings."""
    settings = {field: getattr(cell, field) for field in (*same_run(cell), "epochs")}
    return f"{'/'.join(cell.folder.parts[-4:])} {json.dumps(settings, sort_keys=True)}"


def history(folder: pathlib.Path) -> list[dict[str, str]]:
    """The complete rows of history.csv, all of numbers; UserError for a file that is not one of ours."""
    try:
        return [row for _, row in csv_files.read(folder / "history.csv", _NUMBERS, _NUMBERS)]
    except FileNotFoundError:
        return []


def command_line(cell: ResolvedConfig) -> list[str]:
    """The command line that trains a cell."""
    words = [sys.executable, str(_MAIN)]
    for name, value in vars(cell).items():
        if value is True:
            words.append(flag(name))
        elif value is not None and value is not False:
            words += [flag(name), str(value)]
    return words


class CellWorker(Worker):
    """Lists the cells, or trains them."""

    kind = "benchmark"
    head = ("dataset", "model", "optimizer", "seed")

    def __init__(self, folder: pathlib.Path, storage: str | None, cells: Sequence[ResolvedConfig], write: bool = True):
        super().__init__(folder, storage, write)
        self.cells = cells
        self.process: subprocess.Popen | None = None

    def runs(self) -> list[Run]:
        done, running, failed = {}, set(), {}
        if self.store:
            done, running = self.store.outcomes(), self.store.running()
            failed = self.store.failures(since_start=self.write)
        found = []
        for cell in self.cells:
            name, folder, (*parts, seed) = cell_name(cell), cell.folder, cell.folder.parts[-4:]
            rows = history(folder)
            if self.write and name in done and len(rows) < cell.epochs:
                folder.mkdir(parents=True, exist_ok=True)
                for file, text in done[name].items():
                    (folder / file).write_text(text)
                rows = history(folder)
            epochs = max(len(rows), cell.epochs if name in done else 0)
            seconds = sum(float(row["seconds"]) + float(row["val_seconds"]) for row in rows)
            progress = f"{epochs} of {cell.epochs} epochs"
            state: tuple[Any, str] = "to do", f"to do: {cell.epochs} epochs"
            if differences := _differences(cell):
                text = f"another run is in this folder: {'; '.join(differences)}; choose another --workdir"
                state, epochs = ("other run", text), 0
            elif epochs >= cell.epochs:
                state = "done", f"done: {epochs} epochs"
            elif name in running or is_owned(folder):  # by a trainer whose worker is gone, or that was started by hand
                state = "running", f"under way: {progress}, running now"
            elif name in failed:
                state = "failed", f"failed after {progress}: {failed[name]}"
            elif rows or (folder / "config.json").exists():
                state = "under way", f"under way: {progress}, stopped"
            columns, alike = (*parts, seed.removeprefix("seed_")), ((*parts,), cell.model)
            seconds = seconds if len(rows) == epochs else math.nan
            found.append(
                Run(cell, cell.epochs, name, "/".join([*parts, seed]), columns, alike, *state, epochs, seconds)
            )
        return found

    def execute(self, run: Run, claim: "Claim") -> int | None:
        cell, folder = run.what, run.what.folder
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "output.txt", "a") as output:
            # A separate session: Ctrl-C on the terminal comes here alone and is passed on.
            to: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen(command_line(cell), start_new_session=True, **to)
            if self.signal:  # it arrived before the process existed
                self.process.send_signal(self.signal)
            code = self._watch(run, claim, self.process)
        rows = history(folder)
        if code == 0 and len(rows) >= cell.epochs:
            outcome = {file: (folder / file).read_text() for file in _FILES if (folder / file).exists()}
            claim.finish(float(rows[cell.epochs - 1]["val_accuracy"]), outcome)
        elif code != RunAgain.exit_code and not self.signal:
            why = _last_words(folder / "output.txt", code)
            claim.fail(why)
            log.error(f"{run.title} failed: {why}")
        return code if code == RunAgain.exit_code else None

    def _watch(self, run: Run, claim: "Claim", process: subprocess.Popen) -> int:
        """Reports each epoch until the process ends; returns its exit code."""
        code: int | None = None
        seen = len(history(run.what.folder))
        while code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_SECONDS_BETWEEN_LOOKS)
            for row in history(run.what.folder)[seen:]:
                seen, accuracy = seen + 1, float(row["val_accuracy"])
                claim.report(seen, accuracy)
                self.bar.update()
                self.tell(run, f"epoch {seen} of {run.what.epochs}, validation accuracy {accuracy:.4f}")
            self.bar.refresh()
        return code

    def on_signal(self, number: int, again: bool) -> None:
        if self.process and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL if again else number)


def _differences(cell: ResolvedConfig) -> list[str]:
    """Settings in which the run in the cell's folder differs from it."""
    try:
        stored = as_recorded(json.loads((cell.folder / "config.json").read_text()))
    except (FileNotFoundError, TypeError, ValueError):  # none yet, or damaged, which the trainer reports
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
