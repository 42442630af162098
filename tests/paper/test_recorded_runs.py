"""The table of recorded runs in the evaluation's README says what the recorded files say."""

import pathlib

from paper import page, published, results

ROOT = pathlib.Path(__file__).parents[2]


def test_the_table_of_recorded_runs_agrees_with_the_recorded_files():
    text = (ROOT / "train" / "paper" / "README.md").read_text()
    lines = [line for line in text.split("## The recorded runs")[1].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
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
    assert "On CIFAR-10 both of Gravity's seeds are further from the published first epoch than from each other" in text
    assert min(abs(zero - theirs), abs(one - theirs)) > abs(zero - one)
