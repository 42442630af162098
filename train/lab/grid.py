"""What to run: the cells of the paper's evaluation, or of the authors' tuning study, as configurations of the trainer.

A cell is one dataset, model, optimizer (or variant of the tuning study) and seed. Nothing heavy is imported here, so
that `--list` answers at once.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

from lab.options import SharedOptions
from lab.tuning_study import VARIANTS
from trainer.config import Config, DatasetName, ModelName, OptimizerName, ResolvedConfig, UsageError, resolve

PAPER_DATASETS: tuple[DatasetName, ...] = ("mnist", "fashion_mnist", "cifar10", "cifar100_coarse", "cifar100_fine")
PAPER_MODELS: tuple[ModelName, ...] = ("vgg16", "vgg19")
PAPER_OPTIMIZERS: tuple[OptimizerName, ...] = ("gravity", "adam", "rmsprop")


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions(SharedOptions):
    """Runs the paper's evaluation: 5 datasets x 2 models x 3 optimizers, 100 epochs each, as the published runs were.

    A cell is one run: a dataset, a model, an optimizer and a seed. Finished cells are skipped and unfinished ones
    resume, so the same command starts and resumes the evaluation.
    """

    datasets: tuple[DatasetName, ...] = PAPER_DATASETS
    """What to train on."""
    models: tuple[ModelName, ...] = PAPER_MODELS
    """What to train."""
    optimizers: tuple[OptimizerName, ...] = PAPER_OPTIMIZERS
    """What to train with: Gravity or any of the paper's Table 1."""
    seeds: tuple[int, ...] = (0,)
    """One run per seed; all cells of one seed come before those of the next."""
    epochs: int | None = None
    """Passes over the training set. Default: 100 (25 for the digits; the authors' own number with --study)."""
    precision: Literal["float32", "default", "bfloat16"] = "float32"
    """As in the trainer; each precision needs a separate folder."""
    study: bool = False
    """Run the authors' tuning study instead: variants of Gravity on VGG16 (MNIST and CIFAR-10)."""


Cell = tuple[tuple[str, ...], dict[str, Any]]  # its folder and settings


def plan(options: BenchmarkOptions) -> list[ResolvedConfig]:
    """The cells, as resolved configurations of the trainer, in the order in which they are run."""
    shared: dict[str, Any] = {name: getattr(options, name) for name in ("limit", "data_dir", "precision")}
    cells = []
    for seed in options.seeds:
        for folder, settings in _study(options) if options.study else _grid(options):
            workdir = str(pathlib.Path(options.workdir, *folder, f"seed_{seed}"))
            config = Config(**settings, **shared, seed=seed, workdir=workdir, resume=True, keep=1)
            cells.append(resolve(config))
    if not cells:
        raise UsageError("the flags select no cells.")
    return [*dict.fromkeys(cells)]


def _grid(options: BenchmarkOptions) -> Iterator[Cell]:
    """The cells of the paper's evaluation."""
    for cell in itertools.product(options.datasets, options.models, options.optimizers):
        settings: dict[str, Any] = dict(zip(("dataset", "model", "optimizer"), cell, strict=True))
        yield cell, settings | {"epochs": options.epochs, "first_step": 0 if cell[2] == "gravity" else None}


def _study(options: BenchmarkOptions) -> Iterator[Cell]:
    """The variants of the authors' tuning study."""
    if options.models != PAPER_MODELS or options.optimizers != PAPER_OPTIMIZERS:
        raise UsageError("--study is Gravity on VGG16: omit --models and --optimizers.")
    for variant in VARIANTS:
        if variant.dataset in options.datasets:
            settings = {"dataset": variant.dataset, "model": "vgg16", "epochs": options.epochs or variant.epochs}
            yield ("study", variant.dataset, "vgg16", variant.name), settings | variant.settings
