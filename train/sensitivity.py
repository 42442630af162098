"""How much the settings of Gravity, Adam, RMSProp and momentum SGD matter on the digits: `python train/sensitivity.py`.

The trainer's default data and model with half its width and 8 of its 25 epochs: each optimizer with learning rates from
a tenth of the trainer's to ten times it, Gravity also over alpha and beta, 5 seeds each. An optimizer is one compiled
program, to which its settings are arguments. Results go to a CSV file, a row per run as it ends; a run that the file
holds already is not made again. `figure` draws the heat maps.
"""

import csv
import functools
import itertools
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gravity_optax import gravity
from trainer import data, devices, steps, vgg
from trainer.config import OTHER_LEARNING_RATES

log = logging.getLogger("train")

EPOCHS, WIDTH, BATCH = 8, 0.125, 32
SEEDS = range(5)
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the learning rate below
LEARNING_RATES = OTHER_LEARNING_RATES | {"momentum": 0.01}
ALPHAS = {"gravity": (0.0, 0.01, 0.1)}  # the others have none: 0
BETAS = {"gravity": (0.5, 0.9, 0.99)}  # the others: 0.9, which is Adam's b1, RMSProp's decay, SGD's momentum

# In the settings of the published runs, but for what is varied.
BUILD: dict[str, Callable[..., optax.GradientTransformation]] = {
    "gravity": lambda rate, alpha, beta, key: gravity(rate, alpha, beta, key=key),
    "adam": lambda rate, alpha, beta, key: optax.adam(rate, b1=beta, b2=0.999, eps=1e-7),
    "rmsprop": lambda rate, alpha, beta, key: optax.rmsprop(rate, decay=beta, eps=1e-7, eps_in_sqrt=False),
    "momentum": lambda rate, alpha, beta, key: optax.sgd(rate, momentum=beta),
}


class Setting(NamedTuple):
    """What is chosen for a run."""

    optimizer: str
    learning_rate: float
    alpha: float  # 0 for those that have none
    beta: float
    seed: int


class Result(NamedTuple):
    """How a run ended."""

    loss: float  # mean over the last epoch's training pictures, not finite after divergence
    val_accuracy: float  # on the whole test set after the last epoch


def settings() -> list[Setting]:
    """All runs of the study, a seed at a time, so that the first part of it is the study with fewer seeds."""
    return [
        Setting(name, _rate(name, factor), alpha, beta, seed)
        for seed in SEEDS
        for name in BUILD
        for factor, alpha, beta in itertools.product(FACTORS, ALPHAS.get(name, (0.0,)), BETAS.get(name, (0.9,)))
    ]


def _rate(name: str, factor: float) -> float:
    """The learning rate as the results file has it, without 0.30000000000000004."""
    return float(f"{LEARNING_RATES[name] * factor:.6g}")


class Study:
    """The data on one device, and one compiled program per optimizer."""

    def __init__(self, *, epochs: int = EPOCHS, width: float = WIDTH, limit: int | None = None):
        digits = data.load("digits", limit=limit)
        self.model = vgg.build("vgg11", width, digits.num_classes, "float32")
        self.image_shape = digits.train_images.shape[1:]
        self.replicas = devices.Replicas(jax.devices()[:1])
        splits = ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels))
        self.pictures = self.replicas.replicate(tuple(steps.Split(*split) for split in splits))
        self.train_size, self.test_size = (len(split[1]) for split in splits)
        self.epochs = epochs
        self._programs: dict[str, Callable] = {}

    def run(self, setting: Setting) -> Result:
        """One run, with the trainer's initial weights and orders of the pictures for that seed."""
        params_key, velocity_key = jax.random.split(jax.random.key(setting.seed))
        hyperparameters = np.array([setting.learning_rate, setting.alpha, setting.beta], np.float32)
        start = (vgg.init(self.model, params_key, self.image_shape), hyperparameters, velocity_key)
        arguments = (self.replicas.replicate(start), self.pictures, self._batches(setting.seed))
        if setting.optimizer not in self._programs:
            trace = self.replicas.run_everywhere(functools.partial(self._train, setting.optimizer))
            self._programs[setting.optimizer] = trace(*arguments)()
        last_epoch, test = self._programs[setting.optimizer](*arguments)
        return Result(float(last_epoch.loss / last_epoch.count), float(test.correct / test.count))

    def _train(self, optimizer: str, start: Any, pictures: Any, batches: Any) -> tuple[steps.Sums, steps.Sums]:
        """On the device: sums over the last epoch's training pictures, and over the test set after it."""
        params, (learning_rate, alpha, beta), key = start
        tx = BUILD[optimizer](learning_rate, alpha, beta, key)
        state = steps.TrainState(params, tx.init(params))
        state, sums = steps.train_chunk(self.model.apply, tx, state, pictures[0], batches[0])
        per_epoch = -(-self.train_size // BATCH)
        last_epoch = jax.tree.map(lambda x: x[-per_epoch:].sum(), sums)
        return last_epoch, steps.evaluate(self.model.apply, state.params, pictures[1], batches[1])

    def _batches(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Picture numbers of all epochs' batches, and of the test set's."""
        epochs = range(1, self.epochs + 1)
        orders = [np.random.default_rng([seed, epoch]).permutation(self.train_size) for epoch in epochs]
        train = np.concatenate([_in_batches(order) for order in orders])
        return self.replicas.split(train), self.replicas.split(_in_batches(np.arange(self.test_size)))


def _in_batches(order: np.ndarray) -> np.ndarray:
    """Rows of BATCH picture numbers, the last filled up with -1."""
    filled = np.full(-(-len(order) // BATCH) * BATCH, -1, np.int32)
    filled[: len(order)] = order
    return filled.reshape(-1, BATCH)


def read(path: pathlib.Path) -> dict[Setting, Result]:
    """The rows of a results file; none where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [(row.pop("optimizer"), int(row.pop("seed")), row) for row in csv.DictReader(file)]
    numbers = [(name, seed, {key: float(value) for key, value in row.items()}) for name, seed, row in rows]
    return {
        Setting(name, row["learning_rate"], row["alpha"], row["beta"], seed): Result(row["loss"], row["val_accuracy"])
        for name, seed, row in numbers
    }


def append(path: pathlib.Path, setting: Setting, result: Result) -> None:
    """Adds a row to a results file, which is made if need be."""
    row = setting._asdict() | {key: f"{value:.6g}" for key, value in result._asdict().items()}
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def cell(results: dict[Setting, Result], name: str, factor: float, alpha: float, beta: float) -> Sequence[float]:
    """The accuracies of one cell, by seed; NaN for a run that is missing."""
    missing = Result(np.nan, np.nan)
    cells = [Setting(name, _rate(name, factor), alpha, beta, seed) for seed in SEEDS]
    return [results.get(setting, missing).val_accuracy for setting in cells]


def figure(results: dict[Setting, Result]) -> Figure:
    """Heat maps of the mean accuracy over the seeds: Gravity's alpha and learning rate for each beta; the others."""
    drawn = Figure(figsize=(10.0, 5.2), layout="constrained")
    FigureCanvasAgg(drawn)
    panels = drawn.subplots(2, 2).flat
    for beta in BETAS["gravity"]:
        rows = [[cell(results, "gravity", factor, alpha, beta) for factor in FACTORS] for alpha in ALPHAS["gravity"]]
        labels = [f"$\\alpha$ = {alpha:g}" for alpha in ALPHAS["gravity"]]
        _heat_map(next(panels), rows, labels, f"Gravity, $\\beta$ = {beta}")
    others = [name for name in BUILD if name != "gravity"]
    rows = [[cell(results, name, factor, 0.0, 0.9) for factor in FACTORS] for name in others]
    labels = [f"{name}, $l$ = {LEARNING_RATES[name]:g}" for name in others]
    image = _heat_map(next(panels), rows, labels, "the others, $\\beta$ = 0.9")
    drawn.colorbar(image, ax=drawn.axes, label="validation accuracy, mean of 5 seeds")
    return drawn


def _heat_map(axes: Any, rows: Sequence[Sequence[Sequence[float]]], labels: Sequence[str], title: str) -> Any:
    """Means and standard deviations over the last axis: a row for each of `labels`, a column for each factor."""
    means, deviations = np.mean(rows, axis=-1), np.std(rows, axis=-1, ddof=1)
    image = axes.imshow(means, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), mean in np.ndenumerate(means):
        text = f"{mean:.3f}\n±{deviations[row, column]:.3f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="black" if mean > 0.5 else "white")
    axes.set_xticks(range(len(FACTORS)), [f"{factor:g}" for factor in FACTORS])
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="learning rate, times the trainer's", title=title)
    return image


def main(csv: pathlib.Path, figure_file: pathlib.Path | None = None, seconds: float = float("inf")) -> None:
    """Makes the runs that `csv` does not hold yet, for about `seconds`, then draws `figure_file` of all it holds."""
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.setLevel(logging.INFO)
    devices.check_arithmetic()
    done = read(csv)
    left = [setting for setting in settings() if setting not in done]
    log.info(f"{len(done)} runs are there, {len(left)} are left")
    study, start = Study(), time.monotonic()
    for setting in left:
        if time.monotonic() - start > seconds:
            break
        result = study.run(setting)
        append(csv, setting, result)
        log.info(f"{time.monotonic() - start:7.1f} s  {setting}  {result}")
    if figure_file:
        figure(read(csv)).savefig(figure_file, dpi=80)


if __name__ == "__main__":
    tyro.cli(main)
