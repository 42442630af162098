"""What to run: the cells of the paper's evaluation, or of the authors' tuning study, as configurations of the trainer.

A cell is one dataset, model, optimizer (or variant of the tuning study) and seed. Nothing heavy is imported here, so
that `--list` answers at once.
"""

import dataclasses
import itertools
import pathlib
from typing import Annotated, Any, Literal

import tyro

from lab.tuning_study import VARIANTS
from trainer.config import Config, DatasetName, ModelName, OptimizerName, ResolvedConfig, UsageError, resolve

PAPER_DATASETS: tuple[DatasetName, ...] = ("mnist", "fashion_mnist", "cifar10", "cifar100_coarse", "cifar100_fine")
PAPER_MODELS: tuple[ModelName, ...] = ("vgg16", "vgg19")
PAPER_OPTIMIZERS: tuple[OptimizerName, ...] = ("gravity", "adam", "rmsprop")


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Runs the paper's evaluation: 5 datasets x 2 models x 3 optimizers, 100 epochs each, as the published runs were.

    A cell is one run: a dataset, a model, an optimizer and a seed. Finished cells are skipped and unfinished ones
    resume, so the same command starts and resumes the evaluation.
    """

    workdir: str
    """Folder for the results."""
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
    limit: int | None = None
    """Use only the first N training and the first N test examples."""
    data_dir: str | None = None
    """Folder of the prepared datasets. Default: tensorflow-datasets' own (~/tensorflow_datasets)."""
    precision: Literal["float32", "default", "bfloat16"] = "float32"
    """As in the trainer; each precision needs a folder of its own."""
    study: bool = False
    """Run the authors' tuning study instead: variants of Gravity on VGG16 (MNIST and CIFAR-10)."""
    storage: str | None = None
    """A database that workers on several machines share: postgresql+psycopg://HOST/NAME. Default: a file in WORKDIR."""
    list_only: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Only print the cells and their states (done, running, under way, failed, to do)."""


def plan(options: BenchmarkOptions) -> list[ResolvedConfig]:
    """The cells, as resolved configurations of the trainer, in the order in which they are run."""
    cells = []
    for seed in dict.fromkeys(options.seeds):
        for folder, settings in _study(options) if options.study else _grid(options):
            shared: dict[str, Any] = {
                "limit": options.limit,
                "data_dir": options.data_dir,
                "precision": options.precision,
                "resume": True,
                "keep": 1,
            }
            workdir = pathlib.Path(options.workdir, *folder, f"seed_{seed}")
            cells.append(resolve(Config(**settings, **shared, seed=seed, workdir=str(workdir))))
    if not cells:
        raise UsageError("the flags select no cells.")
    return cells


def _grid(options: BenchmarkOptions) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Folder and settings of each cell of the paper's evaluation."""
    cells = itertools.product(*(dict.fromkeys(x) for x in (options.datasets, options.models, options.optimizers)))
    return [
        (
            cell,
            {
                **dict(zip(("dataset", "model", "optimizer"), cell, strict=True)),
                "epochs": options.epochs,
                "first_step": 0 if cell[2] == "gravity" else None,
            },
        )
        for cell in cells
    ]


def _study(options: BenchmarkOptions) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Folder and settings of each variant of the authors' tuning study."""
    if options.models != PAPER_MODELS or options.optimizers != PAPER_OPTIMIZERS:
        raise UsageError("--study is Gravity on VGG16: omit --models and --optimizers.")
    return [
        (
            ("study", v.dataset, "vgg16", v.name),
            {"dataset": v.dataset, "model": "vgg16", "epochs": options.epochs or v.epochs, **v.settings},
        )
        for v in VARIANTS
        if v.dataset in options.datasets
    ]
