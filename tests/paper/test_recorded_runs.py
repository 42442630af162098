"""The tables of recorded runs in the evaluation's README say what the recorded files say."""

import itertools
import pathlib

from paper import page, published, results

ROOT = pathlib.Path(__file__).parents[2]


TEXT = (ROOT / "train" / "paper" / "README.md").read_text()


def table_after(heading: str) -> list[list[str]]:
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), TEXT.split(heading)[1].splitlines())
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_whole_runs_and_the_sentences_about_them_agree_with_the_recorded_files():
    ours = {run.optimizer: run for run in results.load(ROOT / "notebooks" / "results_h100").runs}
    theirs = {name: published.load()["cifar100_fine", "vgg16", name] for name in ours}
    assert all(run.comparable and run.epochs == 100 for run in ours.values())
    head, _, *rows = table_after("**CIFAR-100 (fine) on VGG16, 100 epochs**")
    order = ["gravity", "adam", "rmsprop"]
    assert head == ["epochs", *(page.OPTIMIZER_NAMES[name] for name in order)]
    curves = [[run[name].history["val_accuracy"] for run in (ours, theirs)] for name in order]
    for label, *cells in rows:
        values = [[max(y) if label == "the best of all" else y[int(label) - 1] for y in pair] for pair in curves]
        assert cells == [" / ".join(f"{value:.3f}" for value in pair) for pair in values], label
    losses = [" / ".join(f"{run[name].history['loss'][9]:.2f}" for run in (ours, theirs)) for name in order]
    ahead = [run["gravity"] - max(run["adam"], run["rmsprop"]) for run in (last(ours), last(theirs))]
    text = " ".join(TEXT.split())
    assert "training loss after 10 epochs is {}, {} and {}.".format(*losses) in text
    assert "by {:.3f}, where the published run does by {:.3f}.".format(*ahead) in text
    ends = [run[name] for run in (last(ours), last(theirs)) for name in order]
    said = "{:.3f} with Gravity, {:.3f} with Adam and {:.3f} with RMSProp; "
    said += "the published runs have {:.3f}, {:.3f} and {:.3f}."
    assert said.format(*ends) in " ".join((ROOT / "README.md").read_text().split())


def last(runs):
    return {name: run.history["val_accuracy"][-1] for name, run in runs.items()}


def test_the_table_of_first_epochs_agrees_with_the_recorded_files():
    rows = table_after("**First epochs**")
    assert rows[0] == ["", "epoch", "seed 0", "seed 1", "published"]
    shown, name = {}, ""
    for label, epoch, *cells in rows[2:]:
        name = label or name
        shown[name, int(epoch)] = cells
    expected = {}
    for run in results.load(ROOT / "notebooks" / "results").runs:
        dataset, optimizer = results.DATASET_NAMES[run.dataset], page.OPTIMIZER_NAMES[run.optimizer]
        label = f"{dataset}, {results.MODEL_NAMES[run.model]}, {optimizer}"
        history = published.load()[run.cell].history["val_accuracy"]
        for i, ours in enumerate(run.history["val_accuracy"]):
            cells = expected.setdefault((label, i + 1), ["", "", f"{history[i]:.3f}"])
            cells[run.seed] = f"{ours:.3f}"
    assert shown == expected
    zero, one, theirs = map(float, expected["CIFAR-10, VGG16, Gravity", 1])
    assert "On CIFAR-10 both of Gravity's seeds are further from the published first epoch than from each other" in TEXT
    assert min(abs(zero - theirs), abs(one - theirs)) > abs(zero - one)
