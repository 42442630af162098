"""The tables of recorded runs in the evaluation's README say what the recorded files say."""

import collections
import itertools
import pathlib

import pytest
from scipy import stats

from comparison.rules import chance_level
from paper import page, published, results, tables

ROOT = pathlib.Path(__file__).parents[2]


TEXT = (ROOT / "train" / "paper" / "README.md").read_text()


def table_after(heading: str) -> list[list[str]]:
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), TEXT.split(heading)[1].splitlines())
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


ORDER = ("gravity", "adam", "rmsprop")


def both(dataset: str):
    """Our runs on VGG16 on the GPU, by optimizer, and the published ones."""
    runs = results.load(ROOT / "notebooks" / "results_h100").runs
    ours = {run.optimizer: run for run in runs if run.dataset == dataset}
    assert all(run.comparable and run.model == "vgg16" and run.seed == 0 for run in ours.values())
    return ours, {name: published.load()[dataset, "vgg16", name] for name in ours}


@pytest.mark.parametrize(
    ("dataset", "heading"),
    [("cifar100_fine", "**CIFAR-100 (fine) on VGG16, 100 epochs**"), ("cifar10", "**CIFAR-10 on VGG16**")],
)
def test_the_tables_of_the_runs_on_the_gpu_agree_with_the_recorded_files(dataset, heading):
    pair = both(dataset)
    head, _, *rows = table_after(heading)
    assert head == ["epochs", *(page.OPTIMIZER_NAMES[name] for name in ORDER)]
    curves = [[run[name].history["val_accuracy"] for run in pair] for name in ORDER]
    for label, *cells in rows:
        values = [[max(y) if label == "the best of all" else y[int(label) - 1] for y in pair] for pair in curves]
        assert cells == [" / ".join(f"{value:.3f}" for value in pair) for pair in values], label


def test_the_sentences_about_the_runs_on_the_gpu_agree_with_the_recorded_files():
    pair, text = both("cifar100_fine"), " ".join(TEXT.split())
    assert {run.epochs for run in pair[0].values()} == {100}
    losses = [" / ".join(f"{run[name].history['loss'][9]:.2f}" for run in pair) for name in ORDER]
    ahead = [run["gravity"] - max(run["adam"], run["rmsprop"]) for run in map(last, pair)]
    assert "training loss after 10 epochs is {}, {} and {}.".format(*losses) in text
    assert "by {:.3f}, where the published run does by {:.3f}.".format(*ahead) in text
    ends = [run[name] for run in map(last, pair) for name in ORDER]
    said = "{:.3f} with Gravity, {:.3f} with Adam and {:.3f} with RMSProp; "
    said += "the published runs have {:.3f}, {:.3f} and {:.3f}."
    assert said.format(*ends) in " ".join((ROOT / "README.md").read_text().split())
    pair = both("cifar10")
    losses = [" / ".join(f"{run[name].history['loss'][19]:.3f}" for run in pair) for name in ORDER]
    assert "training loss after 20 epochs is {}, {} and {}.".format(*losses) in text
    reached = [len(pair[0][name].history["epoch"]) for name in ORDER]
    assert "({}, {} and {} epochs)".format(*reached) in text and min(reached) == 29


def last(runs):
    return {name: run.history["val_accuracy"][-1] for name, run in runs.items()}


def test_the_table_of_first_epochs_agrees_with_the_recorded_files():
    rows = table_after("**First epochs**")
    assert rows[0] == ["", "epoch", "seed 0", "seed 1", "seed 2", "published"]
    shown, name = {}, ""
    for label, epoch, *cells in rows[2:]:
        name = label or name
        shown[name, int(epoch)] = cells
    expected = {}
    for run in results.load(ROOT / "notebooks" / "results").runs:
        dataset, optimizer = results.DATASET_NAMES[run.dataset], page.OPTIMIZER_NAMES[run.optimizer]
        label = f"{dataset}, {results.MODEL_NAMES[run.model]}, {optimizer}"
        theirs = published.load()[run.cell]
        for i, ours in enumerate(run.history["val_accuracy"]):
            last_cell = "(20 outputs)" if theirs.mark else f"{theirs.history['val_accuracy'][i]:.3f}"
            cells = expected.setdefault((label, i + 1), ["", "", "", last_cell])
            cells[run.seed] = f"{ours:.3f}"
    assert shown == expected
    assert {cells.count("") for (label, epoch), cells in expected.items() if epoch == 1 and "VGG16" in label} == {0}
    assert sum("VGG19, Gravity" in label for label, _ in expected) == 5


def test_the_sentences_about_first_epochs_agree_with_the_recorded_files():
    runs = results.load(ROOT / "notebooks" / "results").runs
    rows = [row for row in tables.distance(runs) if row.epoch == 1 and row.in_spreads is not None]
    compared, outside = len(rows), tables.beyond(rows, 2)
    within = compared - len(outside)
    text = " ".join(TEXT.split())
    assert f"Of the {compared} means" in text and f"{within} lie within two of our own spreads" in text
    assert compared == 15 * len(published.METRICS)
    front = " ".join((ROOT / "README.md").read_text().split())
    # One more value of the distribution of three lies within so many of their spreads in 95% of cases.
    limit = stats.t.ppf(0.975, 2) * (1 + 1 / 3) ** 0.5
    inside = compared - len(tables.beyond(rows, limit))
    said = f"{inside} of {compared} published values lie in the 95% prediction interval of our three seeds"
    assert f"{said} ({round(0.95 * compared)} expected)" in front
    assert round(limit) == 5 and "reaches five standard deviations" in front
    # One value and the mean of three, of one normal distribution: their distance over the spread of the three is
    # sqrt(1 + 1 / 3) times Student's t with two degrees of freedom, whose distribution has a closed form.
    t = 2 / (4 / 3) ** 0.5
    assert f"would be expected of {int(compared * t / (2 + t * t) ** 0.5)} (Student's t)" in text
    assert all(row.metric.startswith("val_") for row in outside) and len(outside) == 8
    cells = collections.Counter((row.optimizer, row.dataset) for row in outside)
    assert {dataset for optimizer, dataset in cells if optimizer == "rmsprop"} == {"mnist", "fashion_mnist", "cifar10"}
    assert {dataset for optimizer, dataset in cells if optimizer == "gravity"} == {"cifar10", "cifar100_coarse"}
    assert sum(count for (optimizer, _), count in cells.items() if optimizer == "rmsprop") == 5 and len(cells) == 5
    classes = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100_coarse": 20, "cifar100_fine": 100}
    chance = collections.Counter(
        (run.dataset, run.optimizer)
        for run in runs
        if run.history["val_accuracy"][0] < 1.05 * chance_level(classes[run.dataset], 10_000)
    )
    assert chance == {("mnist", "gravity"): 1, ("cifar100_coarse", "adam"): 1, ("cifar100_fine", "adam"): 2}
    assert all(
        run.history["val_accuracy"][0] > 1.4 * chance_level(run.num_outputs, 10_000)
        for run in published.load().values()
    )
