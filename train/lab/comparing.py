"""How far comparisons are, and a worker that makes their runs, one after another."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from lab import runs, search
from lab.options import Comparison
from lab.runs import Outcome, Outcomes, Trial
from lab.store import Claim, Store
from lab.worker import Worker, aligned, time_left
from trainer import command
from trainer.config import UserError

log = logging.getLogger("train")

KIND = "compare"  # in the store


def known_outcomes(folder: pathlib.Path, store: Store | None) -> Outcomes:
    """All runs in the folder's file, and in the store."""
    outcomes = runs.read(folder / "runs.csv")
    made = [runs.parsed(row) for row in store.outcomes().values()] if store else []
    return outcomes | dict(made)


def listing(comparisons: Sequence[Comparison], outcomes: Outcomes, store: Store | None = None) -> str:
    """A line per run, and a sum."""
    running = store.running() if store else set()
    rows = [["dataset", "model", "optimizer", "learning rate", "seed", "part", "state"]]
    for comparison in comparisons:
        for trial in search.known(comparison, outcomes):
            text = "under way" if runs.name(trial) in running else "to do"
            if outcome := outcomes.get(trial):
                text = f"done: validation accuracy {outcome.validation_accuracy:.4f}"
            start = [trial.dataset, trial.model, trial.optimizer, runs.at(trial)]
            rows.append([*start, str(trial.seed), trial.part, text])
        finals, _ = search.unknown(comparison, outcomes)
        if finals:
            count = f"{finals} to do, {len(comparison.seeds)} each, when the search has ended"
            who = "all" if finals == len(comparison.entrants) * len(comparison.seeds) else "the others"
            rows.append([comparison.config.dataset, comparison.config.model, who, "the best", "", "final", count])
    return f"{aligned(rows)}\n{summary(comparisons, outcomes)}\n"


def summary(comparisons: Sequence[Comparison], outcomes: Outcomes) -> str:
    """How many runs are done and to do, and the time that those will take, in a line."""
    trials = [trial for comparison in comparisons for trial in search.known(comparison, outcomes)]
    later = [search.unknown(comparison, outcomes) for comparison in comparisons]
    done, total = sum(trial in outcomes for trial in trials), len(trials) + sum(finals for finals, _ in later)
    line = f"{total} runs: {done} done, {total - done} to do"
    if spare := sum(spare for _, spare in later):
        line += f" (and up to {spare} more, where the best learning rate is at the edge of those tried)"
    return f"{line}; time left: {runs_left(comparisons, outcomes)}"


def runs_left(comparisons: Sequence[Comparison], outcomes: Outcomes) -> str:
    """The time, at the pace of the same comparison's epochs, else of all; without what widening may add."""
    left = []
    for comparison in comparisons:
        trials = search.known(comparison, outcomes)
        count = sum(trial not in outcomes for trial in trials) + search.unknown(comparison, outcomes)[0]
        left.append(((trials[0].setup,), count * comparison.config.epochs))
    timed = [(trial, outcome.seconds) for trial, outcome in outcomes.items() if outcome.seconds is not None]
    return time_left(left, [((trial.setup,), seconds, trial.epochs) for trial, seconds in timed])


class TrialWorker(Worker[Trial]):
    """Makes the runs that the store lacks, until it is told to stop."""

    def __init__(self, folder: pathlib.Path, store: Store, comparisons: Sequence[Comparison]):
        """Adds the runs of the folder's file to the store."""
        super().__init__(folder, store)
        self.comparisons = [*comparisons]
        self.failed = False
        self._laboratory: Any = None  # of the comparison that was worked on last
        self.file = folder / "runs.csv"
        there = store.outcomes()
        for trial, outcome in runs.read(self.file).items():
            if (name := runs.name(trial)) not in there:
                store.add(name, outcome.validation_accuracy, runs.texts(trial, outcome))
        self._names: dict[str, tuple[Trial, Outcome]] = {}  # the runs in the store, read once
        self.outcomes: Outcomes = {}
        self.outcomes = self._look()

    def run(self) -> int:
        log.info(summary(self.comparisons, self.outcomes))
        return super().run()

    def name(self, run: Trial) -> str:
        return runs.name(run)

    def todo(self) -> list[Trial]:
        self.outcomes = self._look()
        self._of = {}  # the comparison of each run
        for comparison in self.comparisons:
            for trial in search.known(comparison, self.outcomes):
                if trial not in self.outcomes:
                    self._of[trial] = comparison
        return [*self._of]

    def make(self, run: Trial, claim: Claim) -> int | None:
        from tqdm.contrib.logging import logging_redirect_tqdm

        from lab.laboratory import Laboratory, Stopped

        comparison = self._of[run]
        try:
            if self._laboratory is None or self._laboratory.comparison is not comparison:
                self._laboratory = Laboratory(comparison)
            options = {"total": run.epochs, "desc": f"{run.dataset}, {run.optimizer}, {runs.at(run)}"}
            with command.progress_bar(**options, unit="epoch", leave=False) as bar, logging_redirect_tqdm([log]):
                outcome = self._laboratory.run(run, lambda: self.signal is not None, bar.update)
        except BaseException as error:
            claim.release()
            if isinstance(error, UserError):
                log.error("error: %s", error)
                self.comparisons.remove(comparison)
                self.failed = True
            elif not isinstance(error, Stopped):
                raise
            return None
        row = runs.texts(run, outcome)
        claim.finish(outcome.validation_accuracy, row)
        self.outcomes = self._look()
        self._tell(run)
        return None

    def _look(self) -> Outcomes:
        """The runs that the store has; the folder's file is of the same."""
        for name, row in self.store.outcomes().items():
            if name not in self._names:
                self._names[name] = runs.parsed(row)
        outcomes: Outcomes = dict(self._names.values())
        if outcomes != self.outcomes or not self.file.exists():
            runs.write(self.file, outcomes)
        return outcomes

    def _tell(self, run: Trial) -> None:
        if outcome := self.outcomes.get(run):
            text = f"{run.dataset}, {run.optimizer}, learning rate {runs.at(run)}, seed {run.seed}: "
            text += f"validation accuracy {outcome.validation_accuracy:.4f}"
            if outcome.test_accuracy is not None:
                text += f", test accuracy {outcome.test_accuracy:.4f}"
            log.info(f"{text}; time left: {runs_left(self.comparisons, self.outcomes)}")

    def end(self) -> int:
        return int(self.failed)

    def stop(self, number: int, again: bool) -> None:
        if again and command.interactive():
            raise KeyboardInterrupt
        if again:
            command.end_now(128 + number)
