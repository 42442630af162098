"""The runs of comparisons: the state of each, and a worker that does them one after another, in this process."""

import logging
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lab import runs, search
from lab.options import Comparison
from lab.runs import UNKNOWN, Outcome, Outcomes, Trial
from lab.worker import Run, Worker
from trainer import command
from trainer.config import UserError

if TYPE_CHECKING:
    from lab.store import Claim

log = logging.getLogger("train")


class TrialWorker(Worker):
    """Lists the runs of comparisons, or does those that the store lacks."""

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
        self._laboratory: Any = None  # of the comparison that was worked on last
        there = self.store.outcomes() if write else self._read
        for name, (trial, outcome) in self._read.items():
            if name not in there:
                self.store.add(name, outcome.validation_accuracy, runs.texts(trial, outcome))
        self._written: Outcomes | None = None

    def outcomes(self) -> Outcomes:
        """Of all runs in the store, in its order, and in the folder's file, which then has them too."""
        there = self.store.outcomes() if self.store else {}
        self._read |= {name: runs.parsed(row) for name, row in there.items() if name not in self._read}
        outcomes = dict(self._read[name] for name in dict.fromkeys((*there, *self._read)))
        if self.write and outcomes != self._written:
            runs.write(self._file, outcomes)
            self._written = outcomes
        return outcomes

    def runs(self) -> list[Run]:
        outcomes, running = self.outcomes(), self.store.running() if self.store else set()
        found = []
        for comparison in self.comparisons:
            for trial in search.plan(comparison, outcomes):
                name, known = runs.name(trial), trial.point != UNKNOWN
                at = f"{trial.learning_rate:g} {trial.point}".rstrip() if known else UNKNOWN
                title = f"{trial.dataset}, {trial.optimizer}, learning rate {at}, seed {trial.seed}"
                columns = trial.dataset, trial.model, trial.optimizer, at, str(trial.seed), trial.part
                state: tuple[Any, ...] = "to do", "to do"
                if not known:
                    state = "not known yet", "to do, when the search has ended"
                elif outcome := outcomes.get(trial):
                    text = f"done: validation accuracy {outcome.validation_accuracy:.4f}"
                    state = "done", text, trial.epochs, outcome.seconds or math.nan
                elif name in running:
                    state = "running", "under way, running now"
                what = comparison, trial
                found.append(Run(what, trial.epochs, name, title, columns, (trial.setup,), *state))
        return found

    def execute(self, run: Run, claim: "Claim") -> None:
        from lab.laboratory import Laboratory, Stopped

        comparison, trial = run.what
        try:
            if self._laboratory is None or self._laboratory.comparison is not comparison:
                self._laboratory = Laboratory(comparison)
            outcome = self._laboratory.run(trial, lambda: self.signal is not None, self.bar.update)
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
        if claim.finish(outcome.validation_accuracy, runs.texts(trial, outcome)):
            self.tell(run, text)

    def on_signal(self, number: int, again: bool) -> None:
        if again and command.interactive():
            raise KeyboardInterrupt
        if again:
            command.end_now(128 + number)
