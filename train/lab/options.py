"""What to compare: the flags of `python train/compare.py`, as comparisons.

A comparison is one dataset and network, on which several entrants are tuned and then measured. An entrant is an
optimizer of the trainer, with its own settings if need be: `gravity`, or `gravity:beta=0.99,alpha=0.1`. Nothing
heavy is imported here, so that `--list` and an invalid flag are answered at once.
"""

import dataclasses
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import tyro

from lab.rules import RULES
from lab.spaces import SPACES
from trainer import flags
from trainer.config import (
    SAME_RUN,
    Config,
    DatasetName,
    ModelName,
    OptimizerName,
    ResolvedConfig,
    UsageError,
    flag,
    resolve,
)

# What an entrant or --settings may set: what makes a run what it is, without what has a flag here or is searched.
_NOT = ("dataset", "model", "width", "optimizer", "learning_rate", "batch_size", "seed", "limit")
SETTABLE = tuple(name for name in SAME_RUN if name not in _NOT)
MOST_RATES, MOST_TRIALS, TRIALS = 21, 1000, 20


@dataclasses.dataclass(frozen=True)
class SharedOptions:
    """The flags of both `train/compare.py` and `train/benchmark.py`."""

    workdir: str
    """Folder for the results, which are written as each run ends."""
    limit: int | None = None
    """Use only the first N training and the first N test examples."""
    data_dir: str | None = None
    """Folder of the prepared datasets. Default: tensorflow-datasets' own (~/tensorflow_datasets)."""
    storage: str | None = None
    """A database that workers on several machines share: postgresql+psycopg://HOST/NAME or mysql+pymysql://HOST/NAME.
    Default: a file in WORKDIR."""
    list_only: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Only print the runs, with what is done and to do, and the time left."""


@dataclasses.dataclass(frozen=True)
class CompareOptions(SharedOptions):
    """Compares optimizers, each at its best learning rate, found with the same budget. Without more: the digits.

    A search over learning rates half a decade apart, centred on the trainer's, on training pictures that are held out;
    then new runs at the best rate with new seeds, after which the test set is used once. Finished runs
    are not repeated, so the same command starts and resumes a comparison, and one with more datasets, optimizers or
    seeds extends it.
    """

    datasets: tuple[DatasetName, ...] = ("digits",)
    """What to train on, one after another."""
    optimizers: tuple[str, ...] = ("gravity", "adam", "rmsprop", "momentum")
    """What to compare: any optimizer of the trainer, also with its own settings: gravity:beta=0.99,alpha=0.1."""
    model: ModelName | None = None
    """Default: the trainer's for the dataset (vgg11 for the digits, vgg16 elsewhere)."""
    width: float | None = None
    """Multiplier of all layer widths. Default: the rule's for the dataset (train/lab/rules.py)."""
    epochs: int | None = None
    """Passes over the training part, in the search and after it. Default: the rule's."""
    batch_size: int | None = None
    """Pictures per step over all devices together. Default: the rule's."""
    settings: tuple[str, ...] = ()
    """Other flags of the trainer that hold for every optimizer, as NAME=VALUE: precision=bfloat16."""
    rates: int = 5
    """Learning rates that each optimizer is searched over at first, an odd number: the trainer's is in the middle."""
    widen: int = 2
    """Up to this many more, one at a time, while the best rate is the lowest or the highest tried."""
    sampler: Literal["grid", "qmc"] = "grid"
    """grid: learning rates, as above. qmc: quasi-random points of each optimizer's space in train/lab/spaces.py, of
    learning rate, 1 - beta, weight decay and warm-up."""
    trials: int | None = None
    """Points that each optimizer is searched over with --sampler qmc. Default: 20."""
    search_seeds: int | None = None
    """Runs per learning rate or point in the search, with seeds 0, 1, ... Default: the rule's."""
    seeds: int | None = None
    """Runs at the best of them, with seeds 100, 101, ... Default: the rule's."""
    study: Literal["ablation", "width", "baselines", "baselines-gpu", "start"] | None = None
    """Comparisons that belong together (train/lab/studies.py), on --datasets."""
    report_only: Annotated[bool, tyro.conf.arg(name="report")] = False
    """Only write the report of all runs in WORKDIR and --storage: a study's with --study; other flags do not matter."""


FIRST_FINAL_SEED = 100


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One dataset and network, and who is compared on it."""

    entrants: dict[str, ResolvedConfig]  # by name, each with the learning rate in the middle of its search
    settings: str  # of all entrants, "NAME=VALUE NAME=VALUE"; with "sampler=qmc" where points are searched
    sampler: Literal["grid", "qmc"]
    candidates: int  # learning rates at first, or points
    widen: int
    search_seeds: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def config(self) -> ResolvedConfig:
        """Of any entrant: what they share is the same in all."""
        return next(iter(self.entrants.values()))


def comparisons(options: CompareOptions) -> list[Comparison]:
    """One for each dataset, in their order. UsageError for invalid flags."""
    _check(options)
    return [_comparison(options, dataset) for dataset in dict.fromkeys(options.datasets)]


def _comparison(options: CompareOptions, dataset: DatasetName) -> Comparison:
    given = lambda name: getattr(RULES[dataset] if getattr(options, name) is None else options, name)
    shared = {name: given(name) for name in ("width", "epochs", "batch_size")} | {"model": options.model}
    shared |= {"dataset": dataset, "limit": options.limit, "data_dir": options.data_dir}
    settings, qmc = _settings("--settings", options.settings), options.sampler == "qmc"
    entrants: dict[str, ResolvedConfig] = {}
    for text in options.optimizers:
        name, chosen = _entrant(text)
        if twice := [key for key in chosen if key in settings]:
            raise UsageError(f"{twice[0]} is both in --settings and in --optimizers {text}: leave one out.")
        own = settings | chosen
        if qmc and name not in SPACES:
            raise UsageError(f"--optimizers has {text!r}, and --sampler qmc has spaces for {', '.join(SPACES)} only.")
        for key in (SPACES[name].beta, "weight_decay", "warmup_epochs") if qmc else ():
            if key in own:
                raise UsageError(f"{key} is {own[key]}, but --sampler qmc searches it: leave {key} out.")
        fields: dict[str, Any] = {"optimizer": name, **shared, **own}
        entrants[label(text)] = resolve(Config(**fields))
    described = settings | ({"sampler": "qmc"} if qmc else {})
    return Comparison(
        entrants,
        settings=" ".join(f"{key}={value}" for key, value in sorted(described.items())),
        sampler=options.sampler,
        candidates=(options.trials or TRIALS) if qmc else options.rates,
        widen=0 if qmc else options.widen,
        search_seeds=tuple(range(given("search_seeds"))),
        seeds=tuple(range(FIRST_FINAL_SEED, FIRST_FINAL_SEED + given("seeds"))),
    )


def label(text: str) -> str:
    """The name of an entrant `gravity:beta=0.99,alpha=0.1`, its settings in order: `gravity, alpha 0.1, beta 0.99`."""
    optimizer, settings = _entrant(text)
    return ", ".join([optimizer, *(f"{key} {value}" for key, value in sorted(settings.items()))])


def _entrant(text: str) -> tuple[str, dict[str, Any]]:
    """The optimizer and its own settings."""
    name, _, own = text.partition(":")
    if name not in (known := typing.get_args(OptimizerName)):
        raise UsageError(f"--optimizers has {text!r}, and {name!r} is none of {', '.join(known)}.")
    return name, _settings(f"--optimizers {text}", own.split(",") if own else ())


def _settings(where: str, texts: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE texts as fields of the trainer's Config."""
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.strip().partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if name not in SETTABLE or not equals:
            raise UsageError(f"{where}: {text!r} is not NAME=VALUE with a name of {', '.join(SETTABLE)}.")
        if name in settings:
            raise UsageError(f"{where}: {name} is given twice.")
        try:
            settings[name] = flags.value(name, value)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
    return settings


def _check(options: CompareOptions) -> None:
    if not options.datasets or not options.optimizers:
        raise UsageError("--datasets and --optimizers need at least one name each.")
    if options.rates % 2 == 0 or not 3 <= options.rates <= MOST_RATES:
        raise UsageError(f"--rates is {options.rates}; it must be odd, between 3 and {MOST_RATES}.")
    unused = {"rates": 5, "widen": 2} if options.sampler == "qmc" else {"trials": None}
    for name, default in unused.items():
        if (value := getattr(options, name)) != default:
            raise UsageError(f"{flag(name)} is {value}, which --sampler {options.sampler} does not use: leave it out.")
    ranges = {"widen": (0, MOST_RATES), "search_seeds": (1, FIRST_FINAL_SEED), "seeds": (1, 10_000)}
    ranges |= {"trials": (1, MOST_TRIALS), "limit": (2, 1_000_000)}  # of two pictures one is held out
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"{flag(name)} is {value}; it must be between {least} and {most}.")
