"""The published runs as they ship: complete, as the paper reports them, and the one that is not what it says marked."""

import itertools

import numpy as np

from lab import published
from trainer.config import TABLE_5, default_learning_rate

RUNS = published.epochs()
ENDS = published.ends()


def test_the_grid_is_complete_and_each_run_is_100_epochs_with_table_5s_learning_rate():
    assert {*ENDS.index} == {*itertools.product(TABLE_5, ("vgg16", "vgg19"), ("gravity", "adam", "rmsprop"))}
    for cell, run in RUNS.groupby(published.CELL):
        np.testing.assert_array_equal(run["epoch"], np.arange(1, 101))
        assert set(run["learning_rate"]) == {default_learning_rate(*cell)}
    values = RUNS[published.METRICS].to_numpy()
    assert np.all(np.isfinite(values) & (values >= 0)) and RUNS["val_accuracy"].max() <= 1


def test_the_papers_own_figures_are_found():
    final = ENDS["val_accuracy"]["cifar100_fine"]
    assert final["vgg16"]["gravity"] == 0.4012
    assert (final["vgg19"]["gravity"], final["vgg19"]["adam"]) == (0.491, 0.3164)


def test_the_20_way_run_is_the_only_one_marked_and_its_first_epoch_shows_it():
    marks = ENDS["mark"]
    assert marks[marks != ""].to_dict() == {("cifar100_fine", "vgg19", "gravity"): "20-way run"}
    first = RUNS[(RUNS["dataset"] == "cifar100_fine") & (RUNS["epoch"] == 1)]
    assert ((first["loss"] > np.log(20)) == (first["mark"] == "")).all()


def test_the_tuning_study_is_typed():
    runs = published.tuning()
    assert len(runs) == 28 and runs["epochs"].dtype == int
    (z_score,) = runs[runs["authors_comment"] == "Z_score"].itertuples()
    assert (z_score.beta, z_score.final_val_accuracy, z_score.best_val_accuracy) == (0.9, 0.8197, 0.8201)
