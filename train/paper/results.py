"""Reads the results that `benchmark.py` wrote.

Layout: RESULTS/<dataset>/<model>/<optimizer>/seed_<n>/ holds a run of the trainer (config.json, history.csv), and
RESULTS/study/<dataset>/<model>/<variant>/seed_<n>/ one of the tuning study. RESULTS/about.json is optional and written
by hand: {"machine": TEXT, "notes": TEXT, "dataset_names": {"cifar10": "CIFAR-10 (JPEG)"}}.
"""

import dataclasses
import json
import logging
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from paper import published, work_queue
from paper.tuning_study import VARIANTS
from trainer.config import RECIPE, Config, OptimizerName, UserError

log = logging.getLogger("train")

EPOCHS = 100  # of a published run
DATASET_NAMES = {
    "digits": "scikit-learn digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100_coarse": "CIFAR-100 (coarse)",
    "cifar100_fine": "CIFAR-100 (fine)",
}
MODEL_NAMES = {"vgg11": "VGG11", "vgg16": "VGG16", "vgg19": "VGG19"}
# The settings of the published runs, as config.json has them; the learning rate and the sizes come on top.
_PLAIN = {field.name: field.default for field in dataclasses.fields(Config) if field.name in RECIPE}
_PROTOCOL = {"width": 1.0, "batch_size": 128, "limit": None, "precision": "float32", **_PLAIN}
_GRAVITY = {"alpha": 0.01, "beta": 0.9, "first_step": 0, "max_step_grad": "inverse_max_abs", "velocity": "normal"}
_TRAIN_EXAMPLES = {"mnist": 60_000, "fashion_mnist": 60_000}  # else 50,000


class Departure(NamedTuple):
    """A setting that is not the published runs'."""

    name: str  # as config.json has it
    value: Any


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """One of our runs, complete or not."""

    dataset: str
    model: str
    optimizer: str  # or the variant of the tuning study
    seed: int
    config: dict[str, Any]  # config.json
    history: dict[str, np.ndarray]  # its columns, each (epochs,), at least one epoch

    @property
    def epochs(self) -> int:
        return len(self.history["epoch"])

    @property
    def cell(self) -> tuple[str, str, str]:
        return self.dataset, self.model, self.optimizer

    @property
    def departures(self) -> tuple[Departure, ...]:
        """Where the run does not follow the published runs' protocol."""
        expected: dict[str, Any] = dict(_PROTOCOL)
        if self.dataset in published.CLASSES:
            expected |= {"train_examples": _TRAIN_EXAMPLES.get(self.dataset, 50_000), "test_examples": 10_000}
        if self.config["optimizer"] == "gravity":
            expected |= _GRAVITY
        if self.cell in _PUBLISHED:
            expected["learning_rate"] = _PUBLISHED[self.cell].learning_rate
        found = {name: self.config[name] for name, value in expected.items() if self.config.get(name, value) != value}
        if "limit" in found:  # it says the sizes too
            found = {name: value for name, value in found.items() if not name.endswith("_examples")}
        return tuple(Departure(*item) for item in found.items())

    @property
    def comparable(self) -> bool:
        """Whether it can be compared with the published run: another precision is reported, but no obstacle."""
        return {departure.name for departure in self.departures} <= {"precision"}


_PUBLISHED = published.load()


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything in a results folder."""

    path: pathlib.Path
    runs: list[RecordedRun]  # of the evaluation, by cell and seed
    study: list[RecordedRun]
    about: dict[str, Any]

    def dataset_name(self, dataset: str) -> str:
        return self.about.get("dataset_names", {}).get(dataset, DATASET_NAMES.get(dataset, dataset))


def load(path: str | pathlib.Path) -> Results:
    """All runs with at least one epoch. UserError if there is no folder, or a file cannot be read."""
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"RESULTS is {path}, which is not a folder; give the --workdir of train/benchmark.py.")
    about = _json(path / "about.json") if (path / "about.json").exists() else {}
    return Results(path, _runs(path), _runs(path / "study"), about)


def grouped(runs: Sequence[RecordedRun]) -> list[list[RecordedRun]]:
    """Groups of runs that differ only in the seed."""
    groups: dict[tuple, list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault((*run.cell, run.departures), []).append(run)
    return list(groups.values())


def _runs(path: pathlib.Path) -> list[RecordedRun]:
    runs, strays = [], []
    for file in sorted(path.glob("*/*/*/seed_*/history.csv")):
        dataset, model, optimizer, seed = file.parts[-5:-1]
        if not _is_cell(dataset, model, optimizer, seed):
            strays.append("/".join(file.parts[-5:-1]))
        elif history := _history(file.parent):
            config = _json(file.with_name("config.json"))
            runs.append(RecordedRun(dataset, model, optimizer, int(seed.removeprefix("seed_")), config, history))
    if strays:
        log.warning(f"left out, as no folders of train/benchmark.py: {', '.join(strays)} in {path}")
    order = [*DATASET_NAMES]
    return sorted(runs, key=lambda run: (order.index(run.dataset) if run.dataset in order else 99, run.model, run.seed))


def _is_cell(dataset: str, model: str, optimizer: str, seed: str) -> bool:
    """Whether the benchmark gives a folder these names; it gives none to a copy that somebody keeps beside it."""
    known = {*get_args(OptimizerName), *(variant.name for variant in VARIANTS)}
    return (
        dataset in DATASET_NAMES
        and model in MODEL_NAMES
        and optimizer in known
        and bool(re.fullmatch("seed_(0|[1-9][0-9]*)", seed))
    )


def _history(folder: pathlib.Path) -> dict[str, np.ndarray]:
    rows = work_queue.history(folder)
    try:
        return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]} if rows else {}
    except ValueError as error:
        raise UserError(
            f"{folder / 'history.csv'} cannot be read ({error}); repair it or move the run away."
        ) from error


def _json(file: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); repair it or move the run away.") from error
