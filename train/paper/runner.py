"""Runs the cells of a plan, one after another.

A cell is a run of the trainer in a process of its own: what breaks one cell (divergence, no memory left, a crash inside
XLA) leaves the others alone, its memory is freed when it ends, and stopping and resuming are the trainer's. The price
is starting Python and JAX for each cell: seconds, where a cell takes minutes to hours.
"""

import dataclasses
import logging
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from paper import work_queue
from paper.work_queue import State, epochs_done, history, labels, state, time_left
from trainer import command
from trainer.config import ResolvedConfig, flag

log = logging.getLogger("train")

PREEMPTED = 75  # the exit code, the trainer's and ours, that means "run me again"
_MAIN = pathlib.Path(__file__).parents[1] / "main.py"
_SECONDS_BETWEEN_LOOKS = 0.5


class Runner:
    """Runs the cells one after another until it is stopped."""

    def __init__(self, workdir: str, cells: list[ResolvedConfig]):
        self.workdir = workdir
        self.cells = cells
        self.states = [state(cell) for cell in cells]
        self.pace: work_queue.Pace = {}  # measured by this process, as are the start-up times
        self.start_ups: list[float] = []
        self.failed: dict[int, str] = {}  # number of the cell -> why
        self.process: subprocess.Popen | None = None
        self.signal: int | None = None

    def run(self) -> int:
        """The exit code, as `main` has it."""
        command.on_stop(self._on_signal, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        todo = [i for i, s in enumerate(self.states) if s.kind in ("to do", "under way", "failed")]
        skipped = len(self.cells) - len(todo)
        log.info(f"cells: {len(self.cells)}, {skipped} of them skipped; --list shows them all")
        options = {
            "total": sum(cell.epochs for cell in self.cells),
            "initial": epochs_done(self.cells, self.states),
            "unit": "epoch",
            "bar_format": "{n_fmt}/{total_fmt} epochs |{bar}| {elapsed}{postfix}",
        }
        with command.progress_bar(**options) as bar, logging_redirect_tqdm([log]):
            for i in todo:
                preempted = not self.signal and self._run_cell(i, bar) == PREEMPTED
                if self.signal == signal.SIGINT:
                    log.error("interrupted; the same command resumes from here")
                    return 128 + signal.SIGINT
                if preempted or self.signal:
                    log.error("stopped; the same command resumes from here")
                    return PREEMPTED
        return self._report()

    def _report(self) -> int:
        for cell, s in zip(self.cells, self.states, strict=True):
            if s.kind in ("running", "other run"):
                log.warning(f"{'/'.join(labels(cell))} was left alone: {s.text}")
        for i, why in self.failed.items():
            log.error(f"{'/'.join(labels(self.cells[i]))} failed: {why}")
        done = sum(s.kind == "done" for s in self.states)
        log.info(f"{done} of {len(self.cells)} cells are done; python train/report.py {self.workdir} shows them")
        return 1 if self.failed else 0

    def _run_cell(self, i: int, bar: Any) -> int | None:
        """Runs cell i to its end and returns its exit code; None where another process runs or ran it."""
        cell = self.cells[i]
        folder = cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        if (now := state(cell)).kind in ("done", "running"):  # another process's work, meanwhile
            bar.update(min(now.epochs, cell.epochs) - self.states[i].epochs)
            self.states[i] = now
            return None
        with open(folder / "output.txt", "a") as output:
            (folder / "failed.txt").unlink(missing_ok=True)
            # A session of its own: Ctrl-C on the terminal comes here alone and is passed on.
            self.process = subprocess.Popen(
                command_line(cell),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            if self.signal:  # it came before there was a process to pass it on to
                self.process.send_signal(self.signal)
            code = self._watch(i, bar)
        self.states[i] = state(cell)
        if code not in (0, PREEMPTED) and not self.signal and self.states[i].kind != "running":
            why = _last_words(folder / "output.txt", code)
            (folder / "failed.txt").write_text(why + "\n")
            self.failed[i] = why
            log.error(f"{'/'.join(labels(cell))} failed: {why}")
            self.states[i] = state(cell)
        return code

    def _watch(self, i: int, bar: Any) -> int:
        """Reports each epoch as it ends, until the process does; its exit code."""
        assert self.process is not None
        cell, before, started = self.cells[i], self.states[i].epochs, time.monotonic()
        ended, seen = False, False
        while not ended:
            try:
                self.process.wait(_SECONDS_BETWEEN_LOOKS)
                ended = True
            except subprocess.TimeoutExpired:
                pass
            rows = history(cell.folder)
            if new := rows[before:]:
                if not seen:
                    self.start_ups.append(max(0.0, time.monotonic() - started - work_queue.seconds_of(new)))
                seen, before = True, len(rows)
                self.states[i] = State("running", before, "")
                work_queue.add(self.pace, cell, new)
                bar.update(len(new))
                self._tell(cell, new[-1], bar)
            bar.refresh()
        return self.process.returncode

    def _tell(self, cell: ResolvedConfig, row: dict[str, str], bar: Any) -> None:
        ahead = [i for i in range(len(self.cells)) if i not in self.failed]
        cells, states = [self.cells[i] for i in ahead], [self.states[i] for i in ahead]
        left, name = time_left(cells, states, self.pace, self.start_ups), "/".join(labels(cell))
        bar.set_postfix_str(f"time left: {left}; {name}", refresh=False)
        accuracy = float(row["val_accuracy"])
        log.info(
            f"{name}: epoch {row['epoch']} of {cell.epochs}, validation accuracy {accuracy:.4f}; time left: {left}"
        )

    def _on_signal(self, number: int, frame: Any) -> None:
        again, self.signal = self.signal is not None, self.signal or number
        if self.process and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL if again else number)


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


def _last_words(output: pathlib.Path, code: int) -> str:
    """Why a process ended, in a line."""
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    words = lines[-1].removeprefix("error: ") if lines else "no output"
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{words} ({ended}; full output in {output})"
