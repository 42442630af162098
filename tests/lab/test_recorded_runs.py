"""The tables of recorded runs in the evaluation's README say what the recorded files say."""

import itertools
import pathlib

import pytest
from scipy import stats

from lab import figures, frames, published, tables
from lab.rules import chance_level

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "train" / "paper" / "README.md").read_text()
TEXT, FRONT = " ".join(PAGE.split()), " ".join((ROOT / "README.md").read_text().split())
ORDER = ["gravity", "adam", "rmsprop"]


def table_after(heading):
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), PAGE.split(heading)[1].splitlines())
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def both(dataset, metric="val_accuracy"):
    """Our runs on VGG16 on the GPU and the published ones: a frame each, with a column for each optimizer."""
    ours = frames.load(ROOT / "notebooks" / "results_h100").epochs
    assert ours["comparable"].all() and set(ours["model"]) == {"vgg16"} and set(ours["seed"]) == {0}
    here = [all[(all["dataset"] == dataset) & (all["model"] == "vgg16")] for all in (ours, published.epochs())]
    return [epochs.pivot(index="epoch", columns="optimizer", values=metric)[ORDER] for epochs in here]


@pytest.mark.parametrize(
    ("dataset", "heading"),
    [("cifar100_fine", "**CIFAR-100 (fine) on VGG16, 100 epochs**"), ("cifar10", "**CIFAR-10 on VGG16**")],
)
def test_the_tables_of_the_runs_on_the_gpu_agree_with_the_recorded_files(dataset, heading):
    ours, theirs = both(dataset)
    head, _, *rows = table_after(heading)
    assert head == ["epochs", *(figures.OPTIMIZER_NAMES[name] for name in ORDER)]
    for label, *cells in rows:
        a, b = (y.max() if label == "the best of all" else y.loc[int(label)] for y in (ours, theirs))
        assert cells == [f"{a[name]:.3f} / {b[name]:.3f}" for name in ORDER], label


def test_the_sentences_about_the_runs_on_the_gpu_agree_with_the_recorded_files():
    for dataset, epoch, digits in (("cifar100_fine", 10, 2), ("cifar10", 20, 3)):
        ours, theirs = (losses.loc[epoch] for losses in both(dataset, "loss"))
        said = [f"{ours[name]:.{digits}f} / {theirs[name]:.{digits}f}" for name in ORDER]
        assert "training loss after {} epochs is {}, {} and {}.".format(epoch, *said) in TEXT
    ours, theirs = (y.loc[100] for y in both("cifar100_fine"))
    ahead = [run["gravity"] - max(run["adam"], run["rmsprop"]) for run in (ours, theirs)]
    assert "by {:.3f}, where the published run does by {:.3f}.".format(*ahead) in TEXT
    said = "{:.3f} with Gravity, {:.3f} with Adam and {:.3f} with RMSProp; the published runs have {:.3f}, {:.3f} and"
    assert f"{said} {{:.3f}}.".format(*ours, *theirs) in FRONT
    reached = [*both("cifar10")[0].count()]
    assert "({}, {} and {} epochs)".format(*reached) in TEXT and min(reached) == 29


def test_the_table_of_first_epochs_agrees_with_the_recorded_files():
    rows = table_after("**First epochs**")
    assert rows[0] == ["", "epoch", "seed 0", "seed 1", "seed 2", "published"]
    shown, name = {}, ""
    for label, epoch, *cells in rows[2:]:
        name = label or name
        shown[name, int(epoch)] = cells
    expected = {}
    theirs = published.epochs().set_index([*published.CELL, "epoch"])
    for run in frames.load(ROOT / "notebooks" / "results").epochs.itertuples():
        dataset, optimizer = frames.DATASET_NAMES[run.dataset], figures.OPTIMIZER_NAMES[run.optimizer]
        label = f"{dataset}, {frames.MODEL_NAMES[run.model]}, {optimizer}"
        row = theirs.loc[run.dataset, run.model, run.optimizer, run.epoch]
        last_cell = "(20 outputs)" if row["mark"] else f"{row['val_accuracy']:.3f}"
        cells = expected.setdefault((label, run.epoch), ["", "", "", last_cell])
        cells[run.seed] = f"{run.val_accuracy:.3f}"
    assert shown == expected
    assert {cells.count("") for (label, epoch), cells in expected.items() if epoch == 1 and "VGG16" in label} == {0}
    assert sum("VGG19, Gravity" in label for label, _ in expected) == 5


def test_the_sentences_about_first_epochs_agree_with_the_recorded_files():
    epochs = frames.load(ROOT / "notebooks" / "results").epochs
    rows = tables.distance(epochs).dropna(subset="in spreads")
    assert set(rows["epoch"]) == {1}
    compared, outside = len(rows), tables.beyond(rows, 2)
    within = compared - len(outside)
    assert f"Of the {compared} means" in TEXT and f"{within} lie within two of our own spreads" in TEXT
    assert compared == 15 * len(published.METRICS)
    # One more value of the distribution of three lies within so many of their spreads in 95% of cases.
    limit = stats.t.ppf(0.975, 2) * (1 + 1 / 3) ** 0.5
    inside = compared - len(tables.beyond(rows, limit))
    said = f"{inside} of {compared} published values lie in the 95% prediction interval of our three seeds"
    assert f"{said} ({round(0.95 * compared)} expected)" in FRONT
    assert round(limit) == 5 and "reaches five standard deviations" in FRONT
    # One value and the mean of three, of one normal distribution: their distance over the spread of the three is
    # sqrt(1 + 1 / 3) times Student's t with two degrees of freedom, whose distribution has a closed form.
    t = 2 / (4 / 3) ** 0.5
    assert f"would be expected of {int(compared * t / (2 + t * t) ** 0.5)} (Student's t)" in TEXT
    assert outside["metric"].str.startswith("val_").all() and len(outside) == 8
    cells = outside.groupby("optimizer")["dataset"]
    assert cells.size().to_dict() == {"gravity": 3, "rmsprop": 5}
    assert cells.unique().map(set).to_dict() == {
        "gravity": {"cifar10", "cifar100_coarse"},
        "rmsprop": {"mnist", "fashion_mnist", "cifar10"},
    }
    chance = {dataset: chance_level(classes, 10_000) for dataset, classes in published.CLASSES.items()}
    first = epochs[epochs["epoch"] == 1]
    lost = first[first["val_accuracy"] < 1.05 * first["dataset"].map(chance)]
    assert lost.groupby(["dataset", "optimizer"]).size().to_dict() == {
        ("mnist", "gravity"): 1,
        ("cifar100_coarse", "adam"): 1,
        ("cifar100_fine", "adam"): 2,
    }
    theirs = published.epochs()
    theirs = theirs[theirs["epoch"] == 1]
    levels = theirs["num_outputs"].map(lambda outputs: chance_level(outputs, 10_000))
    assert (theirs["val_accuracy"] > 1.4 * levels).all()
