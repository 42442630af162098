"""The runs of a comparison: what makes each what it is, and how it went. `runs.csv` has a line for each.

Nothing heavy is imported here.
"""

import csv
import dataclasses
import json
import os
import pathlib
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from lab.rules import RULES
from trainer import csv_files
from trainer.config import UserError

Part = Literal["search", "final"]
UNKNOWN = "the best"  # the point of a final run, while the search goes on


class Trial(NamedTuple):
    """What makes a run what it is; the first columns of the file."""

    dataset: str
    model: str
    optimizer: str  # the entrant's name
    learning_rate: float
    seed: int
    part: Part
    epochs: int
    width: float
    batch_size: int
    limit: int | None  # None: all
    settings: str  # of all entrants, "" if none
    point: str = ""  # "NAME=VALUE NAME=VALUE", what was searched beside the learning rate

    @property
    def setup(self) -> "Trial":
        """What is the same for all runs that are compared: a dataset and network, and how long it is trained."""
        return self._replace(optimizer="", learning_rate=0.0, seed=0, part="search", point="")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run went; the other columns."""

    classes: int
    training_pictures: int
    validation_pictures: int  # held out of the training set
    test_pictures: int
    loss_by_epoch: tuple[float, ...]  # means over the epoch's training pictures; not finite from divergence on
    accuracy_by_epoch: tuple[float, ...]  # on the validation part, after each epoch
    test_accuracy: float | None  # after the last epoch, of a final run; None for one of the search
    seconds: float | None = None  # that the run took, for the time left; None where that was not kept

    @property
    def validation_accuracy(self) -> float:
        """On the validation part, after the last epoch."""
        return self.accuracy_by_epoch[-1]


Outcomes = dict[Trial, Outcome]
COLUMNS = (*Trial._fields, *(field.name for field in dataclasses.fields(Outcome)))
_or_none = lambda kind: lambda text: kind(text) if text else None
_READ: dict[Any, Callable[[str], Any]] = {int: int, float: float, int | None: _or_none(int)}
_READ |= {float | None: _or_none(float), tuple[float, ...]: lambda text: tuple(map(float, text.split()))}
_TYPES = typing.get_type_hints(Trial) | typing.get_type_hints(Outcome)


def read(path: pathlib.Path) -> Outcomes:
    """All runs in the file, none if there is none. A last line that was not written to its end does not count.

    UserError for a file that is not one of ours.
    """
    try:
        rows = csv_files.read(path, [name for name in COLUMNS if name not in ("point", "seconds")])
    except FileNotFoundError:
        return {}
    outcomes: Outcomes = {}
    for number, row in rows:
        try:
            outcomes.update([parsed(row)])
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number} is not a run ({error!r}); correct or remove it.") from error
    return outcomes


def write(path: pathlib.Path, outcomes: Outcomes) -> None:
    """Replaces the file atomically. UserError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="") as file:
            rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            rows.writeheader()
            rows.writerows(texts(trial, outcome) for trial, outcome in outcomes.items())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror}); fix that, then start again.") from error


def texts(trial: Trial, outcome: Outcome) -> dict[str, str]:
    """A line of the file, by column."""
    return dict(zip(COLUMNS, (*map(_exact, trial), *map(_text, vars(outcome).values())), strict=True))


def name(trial: Trial) -> str:
    """The run's in the store."""
    fields = dict(zip(trial._fields, map(_exact, trial), strict=True))
    return json.dumps({field: text for field, text in fields.items() if text or field != "point"})


def parsed(row: dict[str, str]) -> tuple[Trial, Outcome]:
    """The run of a line. ValueError if it is none."""
    values = {name: _READ.get(_TYPES[name], str)(row.get(name, "")) for name in COLUMNS}
    trial, outcome = Trial(*(values.pop(name) for name in Trial._fields)), Outcome(**values)
    if trial.part not in ("search", "final") or trial.dataset not in RULES:
        raise ValueError(f"part is {trial.part}, dataset {trial.dataset}")
    if min(outcome.classes, outcome.training_pictures, outcome.validation_pictures) < 1:
        raise ValueError("there are no classes or no pictures")
    by_epoch = outcome.loss_by_epoch, outcome.accuracy_by_epoch
    if {*map(len, by_epoch)} != {trial.epochs} or (outcome.test_accuracy is None) != (trial.part == "search"):
        raise ValueError("losses or accuracies are missing")
    return trial, outcome


def _exact(value: Any) -> str:
    """Unrounded, since it identifies a run."""
    text = _text(value)
    return repr(value) if isinstance(value, float) and float(text) != value else text


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
