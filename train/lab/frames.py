"""Runs as pandas frames, from which everything in the reports is made.

**Of the evaluation**, `Results.epochs` and `published.epochs()` have a row per epoch: its number, loss and accuracy in
training and validation, as in history.csv; and

    run            its folder
    dataset, model, optimizer, seed: the cell
    whose, study   "ours" or "published"; whether it is of the tuning study, where `optimizer` is the variant
    departures     from the published runs' protocol, as "width 0.5, limit 128"; "" if there are none
    sizes          those of them that are no setting of the optimizer
    comparable     whether it can be compared with the published run: another precision is no obstacle
    seconds, val_seconds, machine: of ours alone; NaN where times were not recorded; devices, jax version and precision
    learning_rate, num_outputs, mark: of the published alone; mark is "20-way run" for one of them, else ""

**Of a comparison**, the frame of `of_comparison` has a row per run: the columns of runs.csv, where `loss_by_epoch` and
`accuracy_by_epoch` are tuples with a number per epoch, and

    setup, entrant             numbers, in the report's order: what a comparison holds fixed; who is compared in it
    network                    the setup in words; limit is 0 where it is not set, seconds NaN where it was not kept
    validation_accuracy, loss  after the last epoch
    at_chance, diverged        whether no epoch ended above the chance level; whether a loss was not finite
    reached                    the first epoch at whose end the target was reached; NaN if none
    chosen                     of the final runs at the best rate or point, the last one if that ever changed

`by_epoch` makes a row per epoch of it: the same columns, but that `loss` and `validation_accuracy` are those after the
row's `epoch`.
"""

import json
import logging
import math
import pathlib
import re
from typing import Any, NamedTuple, get_args

import pandas as pd

from lab import published
from lab.cells import history
from lab.grid import VARIANTS
from lab.rules import RULES, chance_level
from lab.runs import COLUMNS, Outcomes, Trial
from trainer.config import SAME_RUN, Config, OptimizerName, UserError, brief, resolve

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
MODEL_NAMES = {"vgg11": "VGG11", "vgg16": "VGG16", "vgg19": "VGG19", "mlp": "MLP", "softmax": "softmax regression"}
_OPTIMIZERS = {*get_args(OptimizerName), *(variant.name for variant in VARIANTS)}
_TRAIN_EXAMPLES = {"mnist": 60_000, "fashion_mnist": 60_000}  # else 50,000
_SIZES = ("limit", "train_examples", "test_examples", "precision")  # what a variant of the tuning study does not set
_ADDED = ("setup", "entrant", "network", "validation_accuracy", "loss", "at_chance", "diverged", "reached", "chosen")
_NUMBERS = ["epoch", *published.METRICS, "seconds", "val_seconds"]


class Results(NamedTuple):
    """Everything in a results folder."""

    path: pathlib.Path
    epochs: pd.DataFrame
    about: dict[str, Any]

    @property
    def runs(self) -> pd.DataFrame:
        """The last epoch of each run."""
        return self.epochs.drop_duplicates("run", keep="last")

    def dataset_name(self, dataset: str) -> str:
        return self.about.get("dataset_names", {}).get(dataset, DATASET_NAMES[dataset])


def load(path: str | pathlib.Path) -> Results:
    """All runs of a benchmark's folder with at least one epoch. UserError if it or a file in it cannot be read."""
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"RESULTS is {path}, which is not a folder; give the --workdir of train/benchmark.py.")
    about = _json(path / "about.json") if (path / "about.json").exists() else {}
    if not isinstance(about.get("dataset_names", {}), dict):
        raise UserError(f"{path / 'about.json'} has dataset_names that are no object; correct or remove them.")
    found, strays, cells = [], [], "*/*/*/seed_*/history.csv"
    for file in (*sorted(path.glob(cells)), *sorted(path.glob(f"study/{cells}"))):
        dataset, model, optimizer, seed = file.parts[-5:-1]
        known = dataset in DATASET_NAMES and model in MODEL_NAMES and optimizer in _OPTIMIZERS
        if not known or not re.fullmatch("seed_(0|[1-9][0-9]*)", seed):  # a copy that is kept beside the original
            strays.append(str(file.parent.relative_to(path)))
        elif rows := history(file.parent):
            config = _json(file.with_name("config.json"), "dataset", "model", "optimizer")
            departures = _departures((dataset, model, optimizer), config)
            about_run = {
                "run": str(file.parent),
                "whose": "ours",
                "study": len(file.relative_to(path).parts) == 6,
                "dataset": dataset,
                "model": model,
                "optimizer": optimizer,
                "seed": int(seed.removeprefix("seed_")),
                "departures": _text(departures),
                "sizes": _text({name: value for name, value in departures.items() if name in _SIZES}),
                "comparable": departures.keys() <= {"precision"},
                "machine": _machine(config),
            }
            found.append(pd.DataFrame(rows)[_NUMBERS].astype(float).astype({"epoch": int}).assign(**about_run))
    if not found and (path / "runs.csv").exists():
        raise UserError(f"RESULTS is {path}, which is a comparison's; its report is made by train/compare.py --report.")
    if strays:
        log.warning(f"left out, as no folders of train/benchmark.py: {', '.join(strays)} in {path}")
    nothing = published.epochs().iloc[:0].assign(machine="", seconds=0.0, val_seconds=0.0)
    order = lambda column: column.map([*DATASET_NAMES].index) if column.name == "dataset" else column
    epochs = pd.concat(found or [nothing]).sort_values(["study", "dataset", "model", "seed"], key=order, kind="stable")
    return Results(path, epochs.reset_index(drop=True), about)


def _departures(cell: tuple[str, str, str], config: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not the published runs'."""
    settings: Any = {name: config[name] for name in ("dataset", "model", "optimizer")}
    first_step = 0 if config["optimizer"] == "gravity" else None
    published_run = resolve(Config(**settings, width=1.0, batch_size=128, first_step=first_step))
    free = ("seed",) if cell in published.ends().index else ("seed", "learning_rate")
    expected: dict[str, Any] = {name: getattr(published_run, name) for name in SAME_RUN if name not in free}
    if cell[0] in published.CLASSES:
        expected |= {"train_examples": _TRAIN_EXAMPLES.get(cell[0], 50_000), "test_examples": 10_000}
    found = {name: config[name] for name, value in expected.items() if config.get(name, value) != value}
    if "limit" in found:  # it says the sizes too
        found = {name: value for name, value in found.items() if not name.endswith("_examples")}
    return found


def _text(departures: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in departures.items())


def _machine(config: dict[str, Any]) -> str:
    """The devices and the versions that count, as config.json has them."""
    devices = config.get("devices", [])
    kinds = ", ".join(f"{devices.count(kind)} x {kind}" for kind in sorted(set(devices))) or "unknown devices"
    jax = config.get("versions", {}).get("jax", "unknown")
    return f"{kinds} with jax {jax}, {config.get('precision', 'unknown precision')}"


def _json(file: pathlib.Path, *needed: str) -> dict[str, Any]:
    """The object in the file, which must have these names."""
    try:
        found = dict(json.loads(file.read_text()))
        return {name: found[name] for name in needed} | found
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{file} cannot be read ({brief(error)}); repair it or move the run away.") from error


def network(setup: Trial) -> str:
    """What is trained and for how long: `vgg16 x 0.125, 3 epochs`, and more where it departs from the rule."""
    text = f"{setup.model} x {setup.width:g}, {setup.epochs} epoch{'s' * (setup.epochs > 1)}"
    if setup.batch_size != RULES[setup.dataset].batch_size:
        text += f", batch {setup.batch_size}"
    text += f", first {setup.limit} pictures" if setup.limit else ""
    return f"{text}, {setup.settings}" if setup.settings else text


def of_comparison(outcomes: Outcomes) -> pd.DataFrame:
    """A row per run: by the number of classes, then in file order."""
    classes = {trial.setup: outcome.classes for trial, outcome in outcomes.items()}
    setups = sorted(classes, key=lambda setup: (classes[setup], [*RULES].index(setup.dataset)))
    entrants = {setup: [*dict.fromkeys(t.optimizer for t in outcomes if t.setup == setup)] for setup in setups}
    best = {(t.setup, t.optimizer): (t.learning_rate, t.point) for t in outcomes if t.part == "final"}
    rows = []
    for trial, outcome in outcomes.items():
        target, accuracies, losses = RULES[trial.dataset].target, outcome.accuracy_by_epoch, outcome.loss_by_epoch
        at = best.get((trial.setup, trial.optimizer))
        made = {
            "setup": setups.index(trial.setup),
            "entrant": entrants[trial.setup].index(trial.optimizer),
            "chosen": trial.part == "final" and at == (trial.learning_rate, trial.point),
            "limit": trial.limit or 0,
            "network": network(trial.setup),
            "validation_accuracy": outcome.validation_accuracy,
            "loss": losses[-1],
            "at_chance": max(accuracies) <= chance_level(outcome.classes, outcome.validation_pictures),
            "diverged": not all(map(math.isfinite, losses)),
            "reached": next((i for i, accuracy in enumerate(accuracies, 1) if accuracy >= target), math.nan),
        }
        rows.append(trial._asdict() | vars(outcome) | made)
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *_ADDED]).astype({"seconds": float})
    return frame.sort_values(["setup", "entrant"], kind="stable", ignore_index=True)


def by_epoch(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per epoch of each run of such a frame."""
    names = {"loss_by_epoch": "loss", "accuracy_by_epoch": "validation_accuracy"}
    epochs = runs.drop(columns=[*names.values()]).rename(columns=names).explode([*names.values()])
    epochs.insert(0, "epoch", epochs.groupby(level=0).cumcount() + 1)
    return epochs.astype(dict.fromkeys(names.values(), float)).reset_index(drop=True)
