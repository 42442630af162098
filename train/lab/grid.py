"""What `benchmark.py` runs: the cells of the paper's evaluation, or of the authors' tuning study, as configurations of
the trainer. Nothing heavy is imported here, so that `--list` answers at once.

A cell is one dataset, model, optimizer (or variant of the tuning study) and seed.

The authors' notes on their tuning study are incomplete. Assumed here: where no initialiser is named, the velocity
starts at 0 (their first epochs end at chance, the delay described in Section 2.4); where beta-hat is not named, the
average is Eq. 22's, with a constant beta; "RandomNormal" is Eq. 27's, of standard deviation alpha / l, and a lower-case
name is the Keras initialiser of that name; "alpha added" is Eqs. 26 and 27. Everything else is as in the benchmark
runs, including t = 0 at the first update. Two of their rules for m ("1-total_effect", "Z_score") are names only, and
not run.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from lab.options import SharedOptions
from trainer.config import Config, DatasetName, ModelName, OptimizerName, ResolvedConfig, UsageError, resolve

PAPER_DATASETS: tuple[DatasetName, ...] = ("mnist", "fashion_mnist", "cifar10", "cifar100_coarse", "cifar100_fine")
PAPER_MODELS: tuple[ModelName, ...] = ("vgg16", "vgg19")
PAPER_OPTIMIZERS: tuple[OptimizerName, ...] = ("gravity", "adam", "rmsprop")
# t at the first update. From here on beta-hat (Eq. 26) is beta to 1e-9: the plain average of Eq. 22.
CONSTANT_BETA = 1_000_000_000


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


class Variant(NamedTuple):
    """Gravity on VGG16 as the authors tried it."""

    name: str
    dataset: str
    rows: tuple[int, ...]  # its runs in published_tuning.csv, counted from 0; more than one where they repeated it
    epochs: int
    settings: dict[str, Any]  # of the trainer's Config


def _variants() -> list[Variant]:
    paper = {"learning_rate": 0.1, "beta": 0.9, "first_step": 0, "max_step_grad": "inverse_max_abs"}
    ranged = paper | {"max_step_grad": "inverse_range"}
    late = {"first_step": CONSTANT_BETA}
    from_rest = late | {"alpha": 0.0}
    drawn = "lecun_uniform he_normal lecun_normal glorot_uniform he_uniform random_normal truncated_normal"
    drawn += " random_uniform glorot_normal"
    slow = ranged | late | {"learning_rate": 0.01}
    return [
        Variant("paper", "cifar10", (7,), 100, paper),
        Variant("m_max", "cifar10", (5,), 100, paper | {"max_step_grad": "max"}),
        Variant("m_max_abs", "cifar10", (6,), 100, paper | {"max_step_grad": "max_abs"}),
        Variant("m_inverse_range", "cifar10", (2, 3), 100, ranged),
        Variant("m_inverse_range_rate_0.01", "cifar10", (0, 1), 100, ranged | {"learning_rate": 0.01}),
        Variant("from_rest_beta_0", "cifar10", (13,), 100, paper | from_rest | {"beta": 0.0}),
        Variant("from_rest_beta_0.9", "cifar10", (15,), 100, paper | from_rest),
        Variant("from_rest_beta_0.99", "cifar10", (14,), 100, paper | from_rest | {"beta": 0.99}),
        Variant("from_rest_beta_0.999", "cifar10", (12,), 100, paper | from_rest | {"beta": 0.999}),
        Variant("from_rest_m_inverse_std", "cifar10", (16,), 100, paper | from_rest | {"max_step_grad": "inverse_std"}),
        Variant("from_rest_m_inverse_range", "cifar10", (18,), 100, ranged | from_rest),
        *(
            Variant(f"velocity_{name}", "cifar10", (row,), 50, slow | {"velocity": name})
            for row, name in enumerate(drawn.split(), start=19)
        ),
        Variant("m_inverse_range", "mnist", (10, 11), 100, ranged),
        Variant("from_rest_m_inverse_range", "mnist", (8,), 100, ranged | from_rest),
        Variant("velocity_random_normal", "mnist", (9,), 100, ranged | late | {"velocity": "random_normal"}),
    ]


VARIANTS = _variants()


def plan(options: BenchmarkOptions) -> list[ResolvedConfig]:
    """The cells, as resolved configurations of the trainer, in the order in which they are run."""
    shared: dict[str, Any] = {name: getattr(options, name) for name in ("limit", "data_dir", "precision")}
    cells = []
    for seed in options.seeds:
        for folder, settings in _study(options) if options.study else _evaluation(options):
            workdir = str(pathlib.Path(options.workdir, *folder, f"seed_{seed}"))
            cells.append(resolve(Config(**settings, **shared, seed=seed, workdir=workdir, resume=True, keep=1)))
    if not cells:
        empty = [name for name in ("datasets", "models", "optimizers", "seeds") if not getattr(options, name)]
        if empty:
            raise UsageError(f"--{empty[0]} needs at least one value.")
        given = " ".join(options.datasets)
        raise UsageError(f"--datasets is {given}, on which --study has nothing; it has mnist and cifar10.")
    return [*dict.fromkeys(cells)]


def _evaluation(options: BenchmarkOptions) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The folders and settings of the paper's evaluation."""
    for cell in itertools.product(options.datasets, options.models, options.optimizers):
        settings: dict[str, Any] = dict(zip(("dataset", "model", "optimizer"), cell, strict=True))
        yield cell, settings | {"epochs": options.epochs, "first_step": 0 if cell[2] == "gravity" else None}


def _study(options: BenchmarkOptions) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The folders and settings of the authors' tuning study."""
    if options.models != PAPER_MODELS or options.optimizers != PAPER_OPTIMIZERS:
        raise UsageError("--study is Gravity on VGG16: omit --models and --optimizers.")
    for variant in VARIANTS:
        if variant.dataset in options.datasets:
            settings = {"dataset": variant.dataset, "model": "vgg16", "epochs": options.epochs or variant.epochs}
            yield ("study", variant.dataset, "vgg16", variant.name), settings | variant.settings
