"""Works through comparisons, run after run, and says how far they are."""

import fcntl
import logging
import pathlib
import signal
import statistics
from collections.abc import Sequence
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from comparison import ledger, search
from comparison.ledger import Outcomes, Trial
from comparison.options import Comparison
from paper.work_queue import duration
from trainer import command
from trainer.config import RunAgain, UserError

log = logging.getLogger("train")


def listing(comparisons: Sequence[Comparison], outcomes: Outcomes) -> str:
    """A line per run, and a sum."""
    rows = [["dataset", "model", "optimizer", "learning rate", "seed", "part", "state"]]
    for comparison in comparisons:
        for trial in search.known(comparison, outcomes):
            text = "to do"
            if outcome := outcomes.get(trial):
                text = f"done: validation accuracy {outcome.validation_accuracy:.4f}"
            shown = (
                trial.dataset,
                trial.model,
                trial.optimizer,
                f"{trial.learning_rate:g}",
                trial.seed,
                trial.part,
                text,
            )
            rows.append([str(value) for value in shown])
        finals, _ = search.unknown(comparison, outcomes)
        if finals:
            count = f"{finals} to do, {len(comparison.seeds)} each, when the search has ended"
            who = "all" if finals == len(comparison.entrants) * len(comparison.seeds) else "the others"
            rows.append([comparison.config.dataset, comparison.config.model, who, "the best", "", "final", count])
    widths = [max(len(row[i]) for row in rows) for i in range(6)] + [0]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, summary(comparisons, outcomes)]) + "\n"


def summary(comparisons: Sequence[Comparison], outcomes: Outcomes) -> str:
    """How many runs are done and to do, and the time that those will take, in a line."""
    trials = [trial for comparison in comparisons for trial in search.known(comparison, outcomes)]
    later = [search.unknown(comparison, outcomes) for comparison in comparisons]
    done, total = sum(trial in outcomes for trial in trials), len(trials) + sum(finals for finals, _ in later)
    line = f"{total} runs: {done} done, {total - done} to do"
    if spare := sum(spare for _, spare in later):
        line += f" (and up to {spare} more, where the best learning rate is at the edge of those tried)"
    return f"{line}; time left: {time_left(comparisons, outcomes)}"


def time_left(comparisons: Sequence[Comparison], outcomes: Outcomes) -> str:
    """At the pace of the same comparison's epochs, else of all; without what widening may add."""
    pace: dict[ledger.Setup, list[float]] = {}
    for trial, outcome in outcomes.items():
        if outcome.seconds is not None:
            pace.setdefault(trial.setup, []).append(outcome.seconds / trial.epochs)
    if not pace:
        return "not measured yet"
    every = [seconds for of_setup in pace.values() for seconds in of_setup]
    seconds = 0.0
    for comparison in comparisons:
        trials = search.known(comparison, outcomes)
        count = sum(trial not in outcomes for trial in trials) + search.unknown(comparison, outcomes)[0]
        seconds += count * comparison.config.epochs * statistics.fmean(pace.get(trials[0].setup, every))
    return f"about {duration(seconds)}"


class Driver:
    """Makes the runs that the file lacks, until it is told to stop. One process at a time works in a folder."""

    def __init__(self, folder: pathlib.Path, comparisons: Sequence[Comparison]):
        self.file = folder / "runs.csv"
        self.comparisons = comparisons
        self.outcomes: Outcomes = {}
        self.signal: int | None = None

    def run(self) -> int:
        """The exit code: 0, 1 if a dataset is not available, 75 after SIGTERM or SIGHUP, 130 after Ctrl-C."""
        with open(self.file.with_name("lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                where = f"--workdir is {self.file.parent}, where another process is at work"
                raise UserError(f"{where}; wait, or choose another.") from None
            self.outcomes = ledger.read(self.file)
            return self._run()

    def _run(self) -> int:
        command.on_stop(self._on_signal, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        log.info(summary(self.comparisons, self.outcomes))
        failed = False
        for comparison in self.comparisons:
            try:
                self._compare(comparison)
            except UserError as error:
                log.error("error: %s", error)
                failed = True
            if self.signal:
                log.error("stopped; the same command goes on from here")
                return 128 + signal.SIGINT if self.signal == signal.SIGINT else RunAgain.exit_code
        return int(failed)

    def _compare(self, comparison: Comparison) -> None:
        """Makes the runs of one comparison that are to do."""
        from comparison.trials import Laboratory, Stopped

        laboratory = None
        while not self.signal:
            todo = [trial for trial in search.known(comparison, self.outcomes) if trial not in self.outcomes]
            if not todo:
                return
            laboratory = laboratory or Laboratory(comparison)
            trial = todo[0]
            try:
                with self._bar(trial) as bar, logging_redirect_tqdm([log]):
                    outcome = laboratory.run(trial, lambda: self.signal is not None, bar.update)
            except Stopped:
                return
            try:
                ledger.append(self.file, trial, outcome)
            except OSError as error:
                raise UserError(f"{self.file} could not be written ({error.strerror}); mend that.") from error
            self.outcomes[trial] = outcome
            self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        outcome = self.outcomes[trial]
        text = f"{trial.dataset}, {trial.optimizer}, learning rate {trial.learning_rate:g}, seed {trial.seed}: "
        text += f"validation accuracy {outcome.validation_accuracy:.4f}"
        if outcome.test_accuracy is not None:
            text += f", test accuracy {outcome.test_accuracy:.4f}"
        log.info(f"{text}; time left: {time_left(self.comparisons, self.outcomes)}")

    def _bar(self, trial: Trial) -> Any:
        options: dict[str, Any] = {
            "total": trial.epochs,
            "desc": f"{trial.dataset}, {trial.optimizer}, {trial.learning_rate:g}",
            "unit": "epoch",
            "leave": False,
        }
        return command.progress_bar(**options)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal:  # for the second time
            if command.interactive():
                raise KeyboardInterrupt
            command.end_now(128 + number)
        self.signal = number
