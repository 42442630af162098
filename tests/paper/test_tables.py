"""Reading results and making the report's tables from them, against numbers worked out by hand."""

import csv
import io

import numpy as np
import pytest

import fake_results
from paper import formats, page, published, results, tables
from trainer.config import UserError

MNIST = ("mnist", "vgg16", "gravity")
# Two epochs each; validation accuracy 0.9, 0.98 and 0.7, 0.99.
SEED_0 = [(2.0, 0.3, 1.0, 0.9), (0.5, 0.8, 0.4, 0.98)]
SEED_1 = [(3.0, 0.2, 2.0, 0.7), (0.7, 0.7, 0.2, 0.99)]


@pytest.fixture
def two_seeds(tmp_path):
    fake_results.write(tmp_path, MNIST, 0, SEED_0)
    fake_results.write(tmp_path, MNIST, 1, SEED_1)
    return tmp_path


def test_a_run_is_read_with_its_settings(two_seeds):
    zero, one = results.load(two_seeds).runs
    assert (zero.cell, zero.seed, one.seed, zero.epochs) == (MNIST, 0, 1, 2)
    np.testing.assert_array_equal(one.history["val_accuracy"], [0.7, 0.99])
    assert zero.comparable and zero.departures == ()


def test_summary_over_seeds(two_seeds):
    ours, theirs = (
        row
        for row in tables.summary("mnist", results.load(two_seeds).runs)
        if (row.model, row.optimizer) == ("vgg16", "gravity")
    )
    assert (ours.whose, ours.seeds, ours.epoch) == ("ours", 2, 2)
    np.testing.assert_allclose(ours.validation_accuracy, 0.985)
    np.testing.assert_allclose(ours.spread, 0.01 / np.sqrt(2))
    np.testing.assert_allclose(ours.best, 0.985)
    np.testing.assert_allclose(ours.loss, 0.6)
    assert (ours.epochs_to_target, ours.seconds_to_target) == (2.0, 24.0)
    assert (theirs.whose, theirs.epoch, theirs.validation_accuracy, theirs.best) == ("published", 100, 0.9934, 0.9941)
    assert (theirs.epochs_to_target, theirs.seconds_to_target, theirs.spread) == (3.0, None, None)


def test_with_one_seed_there_is_no_spread_even_beside_a_cell_that_has_one(two_seeds):
    fake_results.write(two_seeds, ("mnist", "vgg16", "adam"), 0, SEED_0, learning_rate=2.5e-4)
    runs = results.load(two_seeds).runs
    ours = {row.optimizer: row for row in tables.summary("mnist", runs) if row.whose == "ours"}
    assert ours["adam"].spread is None
    rows = [row for row in tables.distance(runs) if row.optimizer == "adam"]
    assert {(row.spread, row.in_spreads) for row in rows} == {(None, None)}


def test_a_seed_that_is_not_as_far_counts_where_it_is(two_seeds):
    fake_results.write(two_seeds, MNIST, 2, SEED_0[:1])
    runs = results.load(two_seeds).runs
    (ours,) = (row for row in tables.summary("mnist", runs) if row.whose == "ours")
    assert (ours.seeds, ours.epoch) == (2, 2)
    seeds = {row.epoch: row.seeds for row in tables.distance(runs)}
    assert seeds == {1: 3, 2: 2}


def test_distance_is_ours_minus_theirs_in_our_spreads(two_seeds):
    rows = tables.distance(results.load(two_seeds).runs)
    (row,) = (row for row in rows if (row.epoch, row.metric) == (2, "loss"))
    theirs = published.load()[MNIST].history["loss"][1]
    np.testing.assert_allclose(row.difference, 0.6 - theirs)
    np.testing.assert_allclose(row.in_spreads, (0.6 - theirs) / (0.2 / np.sqrt(2)))
    assert [row.metric for row in rows if row.epoch == 1] == list(published.METRICS)


def test_seeds_that_agree_to_the_last_digit_have_no_distance_in_spreads(tmp_path):
    fake_results.write(tmp_path, MNIST, 0, SEED_0)
    fake_results.write(tmp_path, MNIST, 1, SEED_0)
    rows = tables.distance(results.load(tmp_path).runs)
    assert {(row.spread, row.in_spreads) for row in rows} == {(0.0, None)}


def test_agreement_counts_what_lies_within_two_spreads_and_names_the_rest(two_seeds):
    found = results.load(two_seeds).runs
    rows = [row for row in tables.distance(found) if row.spread]
    far = [row for row in rows if abs(row.ours - row.published) > 2 * row.spread]
    assert 0 < len(far) < len(rows)
    assert tables.beyond(tables.distance(found), 2) == far
    text = page.agreement(found)
    assert f"{len(rows) - len(far)} of {len(rows)} means" in text
    assert all(f"{row.metric} {row.ours:.4g} for {row.published:.4g}" in text for row in far)
    assert "No cell has two seeds" in page.agreement(found[:1])


def test_the_epochs_compared_at_are_a_few_and_the_last_that_both_have(tmp_path):
    for epochs, expected in ((7, [1, 2, 5, 7]), (120, [1, 2, 5, 10, 20, 50, 100])):
        fake_results.write(tmp_path / str(epochs), MNIST, 0, SEED_0[:1] * epochs)
        rows = tables.distance(results.load(tmp_path / str(epochs)).runs)
        assert sorted({row.epoch for row in rows}) == expected


def test_the_end_is_each_runs_own(tmp_path):
    fake_results.write(tmp_path, MNIST, 0, SEED_0)
    fake_results.write(tmp_path, ("mnist", "vgg19", "gravity"), 0, SEED_0[:1])
    rows = tables.at_the_end(tables.distance(results.load(tmp_path).runs))
    assert {(row.model, row.epoch) for row in rows} == {("vgg16", 2), ("vgg19", 1)}
    assert len(rows) == 2 * len(published.METRICS)


def test_nothing_is_held_against_the_20_way_run(tmp_path):
    cell = ("cifar100_fine", "vgg19", "gravity")
    fake_results.write(tmp_path, cell, 0, SEED_0)
    fake_results.write(tmp_path, ("cifar100_fine", "vgg16", "gravity"), 0, SEED_0)
    runs = results.load(tmp_path).runs
    assert {row.model for row in tables.distance(runs)} == {"vgg16"}
    (theirs,) = (
        row
        for row in tables.summary("cifar100_fine", runs)
        if (row.model, row.optimizer, row.whose) == ("vgg19", "gravity", "published")
    )
    assert theirs.remarks == "20-way run"
    (row,) = (row for row in tables.missing(runs) if (row.dataset, row.model, row.optimizer) == cell)
    assert row.mark == "20-way run"


@pytest.mark.parametrize(
    ("config", "departures", "text", "comparable"),
    [
        ({}, (), "", True),
        ({"precision": "bfloat16"}, (("precision", "bfloat16"),), "precision bfloat16", True),
        ({"limit": 128, "train_examples": 128, "test_examples": 128}, (("limit", 128),), "limit 128", False),
        ({"train_examples": 200}, (("train_examples", 200),), "train examples 200", False),
        ({"first_step": 1}, (("first_step", 1),), "first step 1", False),
        (
            {"learning_rate": 0.2, "width": 0.5},
            (("width", 0.5), ("learning_rate", 0.2)),
            "width 0.5, learning rate 0.2",
            False,
        ),
    ],
)
def test_departures_from_the_published_protocol_are_reported(tmp_path, config, departures, text, comparable):
    fake_results.write(tmp_path, MNIST, 0, SEED_0, **config)
    (run,) = results.load(tmp_path).runs
    assert (run.departures, run.comparable) == (departures, comparable)
    assert bool(tables.distance([run])) == comparable
    (ours,) = (row for row in tables.summary("mnist", [run]) if row.whose == "ours")
    assert ours.remarks == departures
    assert formats.table(formats.SUMMARY, [ours], 0.98).rows[0][-1] == text


def test_seconds_that_were_not_recorded_leave_the_epochs(tmp_path):
    folder = fake_results.write(tmp_path, MNIST, 0, SEED_0)
    (folder / "history.csv").write_text(
        (folder / "history.csv").read_text().replace(",10.0,6000.0,2.0", ",nan,nan,nan")
    )
    (ours,) = (row for row in tables.summary("mnist", results.load(tmp_path).runs) if row.whose == "ours")
    assert (ours.epochs_to_target, ours.seconds_to_target) == (2.0, None)


def test_runs_of_different_settings_are_not_averaged(tmp_path):
    fake_results.write(tmp_path, MNIST, 0, SEED_0)
    fake_results.write(tmp_path, MNIST, 1, SEED_1, limit=128)
    ours = [row for row in tables.summary("mnist", results.load(tmp_path).runs) if row.whose == "ours"]
    assert [row.seeds for row in ours] == [1, 1]


def test_epochs_to_a_target_that_not_every_seed_reaches(tmp_path):
    fake_results.write(tmp_path, MNIST, 0, SEED_0)
    fake_results.write(tmp_path, MNIST, 1, [(1.0, 0.5, 1.0, 0.5)] * 2)
    (ours,) = (row for row in tables.summary("mnist", results.load(tmp_path).runs) if row.whose == "ours")
    assert ours.epochs_to_target == ours.seconds_to_target == tables.Missed(1, 2)


def test_targets_are_reached_by_every_published_run_but_the_marked_one():
    for run in published.load().values():
        assert run.mark or run.history["val_accuracy"].max() >= tables.TARGETS[run.dataset]


def test_what_is_missing_is_every_cell_without_a_complete_run(tmp_path):
    fake_results.write(tmp_path, MNIST, 0, SEED_0[:1] * 100)
    fake_results.write(tmp_path, ("mnist", "vgg19", "gravity"), 0, SEED_0)
    fake_results.write(tmp_path, ("cifar10", "vgg16", "gravity"), 0, SEED_0, limit=64)
    missing = formats.table(formats.MISSING, tables.missing(results.load(tmp_path).runs))
    rows = {row[:3]: row[3] for row in missing.rows}
    assert len(rows) == 29 and MNIST not in rows
    assert rows["mnist", "vgg19", "gravity"] == "2 of 100 epochs"
    assert rows["cifar10", "vgg16", "gravity"] == "no run; 1 of another kind (limit 64)"
    assert rows["cifar10", "vgg16", "adam"] == "no run"


def test_the_study_stands_beside_each_of_the_authors_runs(tmp_path):
    cell = ("study", "cifar10", "vgg16", "m_inverse_range")
    fake_results.write(tmp_path, cell, 0, SEED_0, max_step_grad="inverse_range")
    fake_results.write(tmp_path, cell, 1, SEED_1, max_step_grad="inverse_range")
    found = results.load(tmp_path)
    assert found.runs == []
    ours, *theirs = tables.study(found.study)
    assert (ours.seeds, ours.first_loss, ours.loss) == (2, 2.5, 0.6)
    assert [row.validation_accuracy for row in theirs] == [0.7963, 0.8032]
    assert {row.spread for row in theirs} == {None}


def test_the_20_way_run_has_no_lead():
    rows = {(row.dataset, row.model): row for row in tables.published_ends()}
    assert len(rows) == 10
    row = rows["cifar10", "vgg16"]
    assert (row.gravity, row.adam, row.rmsprop) == (0.7957, 0.787, 0.723)
    np.testing.assert_allclose(row.lead, 0.0087)
    last = published.load()["cifar10", "vgg16", "adam"].history["val_accuracy"][50:]
    np.testing.assert_allclose(row.swing_adam, np.sqrt(np.mean((last - last.mean()) ** 2)), atol=1e-6)
    marked = rows["cifar100_fine", "vgg19"]
    assert (marked.lead, marked.mark) == (None, "20-way run")


def test_the_claim_is_stated_with_the_published_numbers():
    text = page.claim()
    for number in ("0.491", "0.316", "20 outputs", "0.401", "0.377", "0.385", "0.017"):
        assert number in text


def test_columns_and_texts_are_for_people():
    distance = (*MNIST, 1, "loss", 1, 0.5, None, 0.25, 0.25, None, (results.Departure("first_step", 1),))
    table = formats.table(formats.DISTANCE, [tables.DistanceRow(*distance)])
    names = "dataset,model,optimizer,epoch,metric,seeds,ours,spread,published,ours - published,in spreads,remarks"
    assert ",".join(table.columns) == names
    assert table.rows == [(*distance[:7], "not available", 0.25, 0.25, "not available", "first step 1")]
    missed = (tables.Missed(0, 2), tables.Missed(1, 2))
    summary = tables.RunsRow("mnist", "vgg16", "adam", "ours", 2, 3, 2.0, 1.5, 0.5, 0.1, 0.6, *missed, ())
    table = formats.table(formats.SUMMARY, [summary], 0.98)
    names = "validation accuracy,spread,best,loss,epochs to 0.98,seconds to 0.98,remarks"
    assert ",".join(table.columns[5:]) == names
    assert table.rows[0][-3:] == ("not reached", "1 of 2 seeds", "")
    (row,) = formats.table(formats.PUBLISHED, tables.published_ends()[-1:]).rows
    assert (row[0], row[5], row[-1]) == ("mnist", pytest.approx(row[2] - max(row[3:5])), "")


def test_a_marked_run_is_remarked_on():
    ends = formats.table(formats.PUBLISHED, tables.published_ends())
    marked = {row[:2]: (row[5], row[-1]) for row in ends.rows if row[-1]}
    assert marked == {("cifar100_fine", "vgg19"): ("not available", "gravity: 20-way run")}
    assert ends.columns[5:7] == ["Gravity's lead", "swing, gravity"]
    missing = formats.table(formats.MISSING, tables.missing([]))
    assert [row[-1] for row in missing.rows if row[-1]] == ["published: a 20-way run"]
    theirs = [row for row in tables.summary("cifar100_fine", []) if row.model == "vgg19"]
    table = formats.table(formats.SUMMARY, theirs, 0.3)
    assert [row[-2:] for row in table.rows] == [(*["not recorded"], mark) for mark in ("", "20-way run", "")]


def test_markdown_and_csv_say_the_same():
    table = formats.Table(["a|b", "c"], [("x", 0.123456789), ("y", 2)])
    assert table.markdown() == "| a\\|b | c |\n| --- | --- |\n| x | 0.1235 |\n| y | 2 |\n"
    assert list(csv.reader(io.StringIO(table.csv()))) == [["a|b", "c"], ["x", "0.123456789"], ["y", "2"]]


def test_an_incomplete_row_and_a_run_without_rows_are_left_out(tmp_path):
    folder = fake_results.write(tmp_path, MNIST, 0, SEED_0)
    with open(folder / "history.csv", "a") as file:
        file.write("3,0.1,0.")
    fake_results.write(tmp_path, MNIST, 1, [])
    (run,) = results.load(tmp_path).runs
    assert run.epochs == 2


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^RESULTS is .*nowhere, which is not a folder; give the --workdir of"):
        results.load(tmp_path / "nowhere")
    folder = fake_results.write(tmp_path, MNIST, 0, SEED_0)
    (folder / "history.csv").write_text("epoch,loss\n1,many\n")
    with pytest.raises(UserError, match=rf"^{folder}/history.csv, line 1 cannot be read"):
        results.load(tmp_path)
