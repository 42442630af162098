"""Reading results and making the report's tables from them, against numbers worked out by hand."""

import math

import numpy as np
import pytest

import fake_results
from lab import frames, page, published, tables

MNIST = ("mnist", "vgg16", "gravity")
# Two epochs each; validation accuracy 0.9, 0.98 and 0.7, 0.99.
SEED_0 = [(2.0, 0.3, 1.0, 0.9), (0.5, 0.8, 0.4, 0.98)]
SEED_1 = [(3.0, 0.2, 2.0, 0.7), (0.7, 0.7, 0.2, 0.99)]


@pytest.fixture
def two_seeds(tmp_path):
    fake_results.write(tmp_path, MNIST, 0, SEED_0)
    fake_results.write(tmp_path, MNIST, 1, SEED_1)
    return tmp_path


def epochs(folder):
    return frames.load(folder).epochs


def ours(folder, dataset="mnist"):
    """The rows of ours in the summary."""
    table = tables.summary(dataset, epochs(folder))
    return table[table["whose"] == "ours"].to_dict("records")


def theirs(dataset, *cell):
    table = tables.summary(dataset, epochs(published.FOLDER)).set_index(["whose", "model", "optimizer"])
    return table.loc[("published", *cell)]


def test_summary_over_seeds(two_seeds):
    found = frames.load(two_seeds)
    assert [*found.runs["seed"]] == [0, 1] and found.runs["comparable"].all()
    assert [*found.epochs["val_accuracy"]] == [0.9, 0.98, 0.7, 0.99]
    (row,) = ours(two_seeds)
    assert (row["seeds"], row["epoch"], row["remarks"]) == (2, 2, "")
    values = [row[name] for name in ("validation accuracy", "spread", "best", "loss")]
    np.testing.assert_allclose(values, [0.985, 0.01 / np.sqrt(2), 0.985, 0.6])
    assert (row["epochs to 0.98"], row["seconds to 0.98"]) == (2.0, 24.0)
    row = theirs("mnist", "vgg16", "gravity")
    assert (row["epoch"], row["validation accuracy"], row["best"], row["epochs to 0.98"]) == (100, 0.9934, 0.9941, 3.0)
    assert row["seconds to 0.98"] == "not recorded" and math.isnan(row["spread"])


def test_a_seed_that_is_not_as_far_counts_where_it_is(two_seeds):
    fake_results.write(two_seeds, MNIST, 2, SEED_0[:1])
    fake_results.write(two_seeds, MNIST, 3, [])  # no epoch yet
    (row,) = ours(two_seeds)
    assert (row["seeds"], row["epoch"]) == (2, 2)
    assert tables.distance(epochs(two_seeds)).groupby("epoch")["seeds"].unique().map(list).to_dict() == {1: [3], 2: [2]}


def test_distance_is_ours_minus_theirs_in_our_spreads(two_seeds):
    rows = tables.distance(epochs(two_seeds))
    assert [*rows["metric"]] == published.METRICS * 2
    (row,) = rows[(rows["epoch"] == 2) & (rows["metric"] == "loss")].to_dict("records")
    gap = 0.6 - published.epochs().query("run == 'published mnist vgg16 gravity'")["loss"].iloc[1]
    np.testing.assert_allclose([row["ours - published"], row["in spreads"]], [gap, gap / (0.2 / np.sqrt(2))])
    assert len(tables.beyond(rows, abs(row["in spreads"]) * 1.001)) < len(tables.beyond(rows, 0))


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (7, [1, 2, 5, 7]), (120, [1, 2, 5, 10, 20, 50, 100])])
def test_distance_is_at_matched_epochs_and_the_last(tmp_path, count, expected):
    fake_results.write(tmp_path, MNIST, 0, SEED_0[:1] * count)
    rows = tables.distance(epochs(tmp_path))
    assert sorted(set(rows["epoch"])) == expected
    assert set(tables.at_the_end(rows)["epoch"]) == {expected[-1]}


def test_nothing_is_held_against_the_20_way_run(tmp_path):
    for model in ("vgg16", "vgg19"):
        fake_results.write(tmp_path, ("cifar100_fine", model, "gravity"), 0, SEED_0)
    assert set(tables.distance(epochs(tmp_path))["model"]) == {"vgg16"}
    assert theirs("cifar100_fine", "vgg19", "gravity")["remarks"] == "20-way run"
    missing = tables.missing(epochs(tmp_path)).set_index(published.CELL)["remarks"]
    assert missing[missing != ""].to_dict() == {("cifar100_fine", "vgg19", "gravity"): "published: a 20-way run"}


@pytest.mark.parametrize(
    ("config", "text", "comparable"),
    [
        ({"precision": "bfloat16"}, "precision bfloat16", True),
        ({"limit": 128, "train_examples": 128, "test_examples": 128}, "limit 128", False),
        ({"train_examples": 200}, "train examples 200", False),
        ({"first_step": 1}, "first step 1", False),
        ({"learning_rate": 0.2, "width": 0.5}, "width 0.5, learning rate 0.2", False),
    ],
)
def test_departures_from_the_published_protocol_are_reported_and_not_averaged(two_seeds, config, text, comparable):
    fake_results.write(two_seeds, MNIST, 2, SEED_0, **config)
    plain, other = ours(two_seeds)
    assert (plain["seeds"], plain["remarks"], other["seeds"], other["remarks"]) == (2, "", 1, text)
    assert (text in set(tables.distance(epochs(two_seeds))["remarks"])) == comparable


def test_seconds_that_were_not_recorded_leave_the_epochs_and_every_seed_must_reach_a_target(tmp_path):
    file = fake_results.write(tmp_path, MNIST, 0, SEED_0) / "history.csv"
    file.write_text(file.read_text().replace(",10.0,6000.0,2.0", ",nan,nan,nan"))
    (row,) = ours(tmp_path)
    assert (row["epochs to 0.98"], row["seconds to 0.98"]) == (2.0, "not recorded")
    fake_results.write(tmp_path, MNIST, 1, [(1.0, 0.5, 1.0, 0.5)] * 2)
    (row,) = ours(tmp_path)
    assert row["epochs to 0.98"] == row["seconds to 0.98"] == "1 of 2 seeds"


def test_targets_are_reached_by_every_published_run_but_the_marked_one():
    best = published.epochs().groupby([*published.CELL, "mark"])["val_accuracy"].max()
    assert all(mark or value >= tables.TARGETS[dataset] for (dataset, _, _, mark), value in best.items())


def test_what_is_missing_is_every_cell_without_a_complete_run(tmp_path):
    fake_results.write(tmp_path, MNIST, 0, SEED_0[:1] * 100)
    fake_results.write(tmp_path, ("mnist", "vgg19", "gravity"), 0, SEED_0)
    fake_results.write(tmp_path, ("cifar10", "vgg16", "gravity"), 0, SEED_0, limit=64)
    rows = tables.missing(epochs(tmp_path)).set_index(published.CELL)["ours"]
    assert len(rows) == 29 and MNIST not in rows
    assert rows["mnist", "vgg19", "gravity"] == "2 of 100 epochs"
    assert rows["cifar10", "vgg16", "gravity"] == "no run; 1 of another kind (limit 64)"
    assert rows["cifar10", "vgg16", "adam"] == "no run"


def test_the_study_stands_beside_each_of_the_authors_runs(tmp_path):
    cell = ("study", "cifar10", "vgg16", "m_inverse_range")
    fake_results.write(tmp_path, cell, 0, SEED_0, max_step_grad="inverse_range")
    fake_results.write(tmp_path, cell, 1, SEED_1, max_step_grad="inverse_range")
    found = epochs(tmp_path)
    assert found["study"].all() and tables.distance(found).empty
    first, *others = tables.study(found).to_dict("records")
    assert (first["seeds"], first["loss after epoch 1"], first["final loss"], first["remarks"]) == (2, 2.5, 0.6, "")
    assert [row["validation accuracy"] for row in others] == [0.7963, 0.8032]
    assert all(math.isnan(row["spread"]) for row in others)


def test_the_20_way_run_has_no_lead():
    rows = tables.published_ends().set_index(["dataset", "model"])
    assert len(rows) == 10
    row = rows.loc["cifar10", "vgg16"]
    assert [*row[["gravity", "adam", "rmsprop"]]] == [0.7957, 0.787, 0.723]
    assert row["Gravity's lead"] == pytest.approx(0.0087)
    last = published.epochs().query("dataset == 'cifar10' and model == 'vgg16' and optimizer == 'adam'")
    np.testing.assert_allclose(row["swing, adam"], np.std(last["val_accuracy"].to_numpy()[50:]), atol=1e-6)
    marked = rows.loc["cifar100_fine", "vgg19"]
    assert math.isnan(marked["Gravity's lead"]) and marked["remarks"] == "gravity: 20-way run"


def test_the_claim_is_stated_with_the_published_numbers():
    text = page.claim()
    for number in ("0.491", "0.316", "20 outputs", "0.401", "0.377", "0.385", "0.017"):
        assert number in text
