"""The published runs as they ship: complete, as the paper reports them, and the one that is not what it says marked."""

import itertools
import pathlib

import numpy as np
import pytest

from paper import published
from trainer.config import TABLE_5, default_learning_rate

RUNS = published.load()
FILES = sorted(pathlib.Path(published.__file__).parent.glob("published_*.csv"))


def test_the_grid_is_complete():
    expected = itertools.product(TABLE_5, ("vgg16", "vgg19"), ("gravity", "adam", "rmsprop"))
    assert set(RUNS) == set(expected)


@pytest.mark.parametrize("cell", RUNS)
def test_a_run_is_100_epochs_with_table_5s_learning_rate(cell):
    run = RUNS[cell]
    assert (run.dataset, run.model, run.optimizer) == cell
    np.testing.assert_array_equal(run.history["epoch"], np.arange(1, 101))
    for metric in published.METRICS:
        assert run.history[metric].shape == (100,)
        assert np.all(np.isfinite(run.history[metric]) & (run.history[metric] >= 0))
    assert np.all(run.history["val_accuracy"] <= 1)
    assert run.learning_rate == default_learning_rate(*cell)


def test_the_papers_own_figures_are_found():
    final = {cell: run.history["val_accuracy"][-1] for cell, run in RUNS.items() if cell[0] == "cifar100_fine"}
    assert final["cifar100_fine", "vgg16", "gravity"] == 0.4012
    assert final["cifar100_fine", "vgg19", "gravity"] == 0.491
    assert final["cifar100_fine", "vgg19", "adam"] == 0.3164


def test_the_20_way_run_is_the_only_one_marked():
    assert {cell: run.mark for cell, run in RUNS.items() if run.mark} == {
        ("cifar100_fine", "vgg19", "gravity"): "20-way run"
    }


def test_first_epochs_on_fine_labels_end_below_chance_of_100_classes_but_for_the_20_way_run():
    for (dataset, *_), run in RUNS.items():
        if dataset == "cifar100_fine":
            assert (run.history["loss"][0] > np.log(20)) == (run.mark == "")


def test_the_tuning_study_is_typed():
    runs = published.load_tuning()
    assert len(runs) == 28
    assert {type(run.epochs) for run in runs} == {int}
    (z_score,) = (run for run in runs if run.authors_comment == "Z_score")
    assert (z_score.beta, z_score.final_val_accuracy, z_score.best_val_accuracy) == (0.9, 0.8197, 0.8201)


def test_the_files_are_small():
    assert [path.name for path in FILES] == ["published_histories.csv", "published_tuning.csv"]
    assert sum(path.stat().st_size for path in FILES) < 300_000
