"""The runs of comparisons: the state of each, and a worker that makes them one after another, in this process."""

import logging
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lab import runs, search
from lab.options import Comparison
from lab.runs import Outcome, Outcomes, Trial
from lab.worker import State, Worker
from trainer import command
from trainer.config import UserError

if TYPE_CHECKING:
    from lab.store import Claim

log = logging.getLogger("train")


class TrialWorker(Worker[Trial]):
    """Lists the runs of comparisons, or makes those that the store lacks."""

    kind = "compare"
    head = ("dataset", "model", "optimizer", "learning rate", "seed", "part")

    def __init__(
        self, folder: pathlib.Path, storage: str | None, comparisons: Sequence[Comparison], write: bool = True
    ):
        """Adds the runs of the folder's file to the store."""
        super().__init__(folder, storage, write)
        self._file = folder / "runs.csv"
        self._read: dict[str, tuple[Trial, Outcome]] = {runs.name(t): (t, o) for t, o in runs.read(self._file).items()}
        self.comparisons = [*comparisons]
        self._of: dict[Trial, Comparison] = {}
        self._laboratory: Any = None  # of the comparison that was worked on last
        if self.store and write:
            there = self.store.outcomes()
            for name, (trial, outcome) in self._read.items():
                if name not in there:
                    self.store.add(name, outcome.validation_accuracy, runs.texts(trial, outcome))
        self._written: Outcomes | None = None

    def outcomes(self) -> Outcomes:
        """Of all runs in the folder's file and in the store; the file then has them too."""
        for name, row in self.store.outcomes().items() if self.store else ():
            if name not in self._read:
                self._read[name] = runs.parsed(row)
        outcomes = dict(self._read.values())
        if self.write and outcomes != self._written:
            runs.write(self._file, outcomes)
            self._written = outcomes
        return outcomes

    def states(self) -> dict[Trial, State]:
        outcomes, running = self.outcomes(), self.store.running() if self.store else set()
        found = {}
        for comparison in self.comparisons:
            for trial in search.known(comparison, outcomes):
                self._of[trial] = comparison
                if outcome := outcomes.get(trial):
                    text = f"done: validation accuracy {outcome.validation_accuracy:.4f}"
                    found[trial] = State("done", trial.epochs, text, outcome.seconds or math.nan)
                elif runs.name(trial) in running:
                    found[trial] = State("running", 0, "under way, running now")
                else:
                    found[trial] = State("to do", 0, "to do")
            for trial in search.undecided(comparison, outcomes):
                found[trial] = State("not known yet", 0, "to do, when the search has ended")
        return found

    def name(self, run: Trial) -> str:
        return runs.name(run)

    def title(self, run: Trial) -> str:
        return f"{run.dataset}, {run.optimizer}, learning rate {runs.at(run)}, seed {run.seed}"

    def columns(self, run: Trial) -> tuple[str, ...]:
        return run.dataset, run.model, run.optimizer, runs.at(run), str(run.seed), run.part

    def alike(self, run: Trial) -> tuple[object, ...]:
        return (run.setup,)

    def make(self, run: Trial, claim: "Claim") -> None:
        from lab.laboratory import Laboratory, Stopped

        comparison = self._of[run]
        try:
            if self._laboratory is None or self._laboratory.comparison is not comparison:
                self._laboratory = Laboratory(comparison)
            outcome = self._laboratory.run(run, lambda: self.signal is not None, self.bar.update)
        except Stopped:
            return
        except UserError as error:
            log.error("error: %s", error)
            self.comparisons.remove(comparison)
            self.failed = True
            return
        text = f"validation accuracy {outcome.validation_accuracy:.4f}"
        if outcome.test_accuracy is not None:
            text += f", test accuracy {outcome.test_accuracy:.4f}"
        if claim.finish(outcome.validation_accuracy, runs.texts(run, outcome)):
            self.tell(run, text)

    def on_signal(self, number: int, again: bool) -> None:
        if again and command.interactive():
            raise KeyboardInterrupt
        if again:
            command.end_now(128 + number)
