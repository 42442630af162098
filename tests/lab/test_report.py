"""The published runs, our results beside them, and `report.py`: its tables, against numbers by hand, and its page."""

import base64
import html
import io
import itertools
import json
import math
import re
import shutil
from typing import get_args

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

import fake_results
import report
from lab import figures, frames, page, palette, published, tables
from trainer import optimizers
from trainer.config import TABLE_5, DatasetName, ModelName, default_learning_rate

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


def summary(folder, whose="ours"):
    table = tables.summary("mnist", epochs(folder))
    return table[table["whose"] == whose].to_dict("records")


# The published runs


def test_the_published_grid_is_complete_with_table_5s_rates_and_the_papers_numbers_and_one_run_is_marked():
    runs, ends = published.epochs(), published.ends()
    assert {*ends.index} == {*itertools.product(TABLE_5, ("vgg16", "vgg19"), ("gravity", "adam", "rmsprop"))}
    for cell, run in runs.groupby(published.CELL):
        assert [*run["epoch"]] == [*range(1, 101)] and set(run["learning_rate"]) == {default_learning_rate(*cell)}
    values = runs[published.METRICS].to_numpy()
    assert np.all(np.isfinite(values) & (values >= 0)) and runs["val_accuracy"].max() <= 1
    final = ends["val_accuracy"]["cifar100_fine"]
    assert [final["vgg16"]["gravity"], final["vgg19"]["gravity"], final["vgg19"]["adam"]] == [0.4012, 0.491, 0.3164]
    marks = ends["mark"]
    assert marks[marks != ""].to_dict() == {("cifar100_fine", "vgg19", "gravity"): "20-way run"}
    best = runs.groupby([*published.CELL, "mark"])["val_accuracy"].max()
    assert all(mark or value >= tables.TARGETS[dataset] for (dataset, _, _, mark), value in best.items())


def test_the_published_ends_have_leads_and_swings_but_not_of_the_20_way_run_and_the_claim_has_their_numbers():
    rows = tables.published_ends().set_index(["dataset", "model"])
    row, marked = rows.loc["cifar10", "vgg16"], rows.loc["cifar100_fine", "vgg19"]
    assert len(rows) == 10 and [*row[["gravity", "adam", "rmsprop"]]] == [0.7957, 0.787, 0.723]
    assert row["Gravity's lead"] == pytest.approx(0.0087)
    last = published.epochs().query("dataset == 'cifar10' and model == 'vgg16' and optimizer == 'adam'")
    assert row["swing, adam"] == pytest.approx(np.std(last["val_accuracy"].to_numpy()[50:]), abs=1e-6)
    assert math.isnan(marked["Gravity's lead"]) and marked["remarks"] == "gravity: 20-way run"
    for number in ("0.491", "0.316", "20 outputs", "0.401", "0.377", "0.385", "0.017"):
        assert number in page.claim()


# The tables


def test_a_summary_is_over_the_seeds_that_got_furthest(two_seeds):
    fake_results.write(two_seeds, MNIST, 2, SEED_0[:1])
    fake_results.write(two_seeds, MNIST, 3, [])  # no epoch yet
    assert [*frames.load(two_seeds).runs["seed"]] == [0, 1, 2]
    (row,) = summary(two_seeds)
    assert (row["seeds"], row["epoch"], row["remarks"]) == (2, 2, "")
    values = [row[name] for name in ("validation accuracy", "spread", "best", "loss")]
    assert values == pytest.approx([0.985, 0.01 / np.sqrt(2), 0.985, 0.6])
    assert (row["epochs to 0.98"], row["seconds to 0.98"]) == (2.0, 24.0)
    (row,) = [row for row in summary(two_seeds, "published") if (row["model"], row["optimizer"]) == MNIST[1:]]
    assert (row["epoch"], row["validation accuracy"], row["best"], row["epochs to 0.98"]) == (100, 0.9934, 0.9941, 3.0)
    assert row["seconds to 0.98"] == "not recorded" and math.isnan(row["spread"])
    assert tables.distance(epochs(two_seeds)).groupby("epoch")["seeds"].unique().map(list).to_dict() == {1: [3], 2: [2]}


def test_seconds_that_were_not_recorded_leave_the_epochs_and_every_seed_must_reach_a_target(tmp_path):
    file = fake_results.write(tmp_path, MNIST, 0, SEED_0) / "history.csv"
    file.write_text(file.read_text().replace(",10.0,6000.0,2.0", ",nan,nan,nan"))
    (row,) = summary(tmp_path)
    assert (row["epochs to 0.98"], row["seconds to 0.98"]) == (2.0, "not recorded")
    fake_results.write(tmp_path, MNIST, 1, [(1.0, 0.5, 1.0, 0.5)] * 2)
    (row,) = summary(tmp_path)
    assert row["epochs to 0.98"] == row["seconds to 0.98"] == "1 of 2 seeds"


@pytest.mark.parametrize(("count", "at"), [(1, [1]), (7, [1, 2, 5, 7]), (120, [1, 2, 5, 10, 20, 50, 100])])
def test_distance_is_ours_minus_theirs_in_our_spreads_at_matched_epochs_and_the_last(tmp_path, count, at):
    for seed, rows in enumerate((SEED_0, SEED_1)):
        fake_results.write(tmp_path, MNIST, seed, rows[:1] + rows[1:] * (count - 1))
    rows = tables.distance(epochs(tmp_path))
    assert [*rows["metric"]] == published.METRICS * len(at)
    assert [*rows["epoch"].unique()] == at and {*tables.at_the_end(rows)["epoch"]} == {at[-1]}
    (row,) = rows[(rows["epoch"] == at[-1]) & (rows["metric"] == "loss")].to_dict("records")
    theirs = published.epochs().query(f"run == 'published mnist vgg16 gravity' and epoch == {at[-1]}")["loss"].item()
    mean, spread = (2.5, 1 / np.sqrt(2)) if count == 1 else (0.6, 0.2 / np.sqrt(2))
    assert [row["ours - published"], row["in spreads"]] == pytest.approx([mean - theirs, (mean - theirs) / spread])
    assert len(tables.beyond(rows, abs(row["in spreads"]) * 1.001)) < len(tables.beyond(rows, 0))


@pytest.mark.parametrize(
    ("config", "text", "comparable"),
    [
        ({"precision": "bfloat16"}, "precision bfloat16", True),
        ({"limit": 128, "train_examples": 128, "test_examples": 128}, "limit 128", False),
        ({"train_examples": 200}, "train examples 200", False),
        ({"learning_rate": 0.2, "width": 0.5}, "width 0.5, learning rate 0.2", False),
    ],
)
def test_departures_from_the_published_protocol_are_reported_and_not_averaged(two_seeds, config, text, comparable):
    fake_results.write(two_seeds, MNIST, 2, SEED_0, **config)
    plain, other = summary(two_seeds)
    assert (plain["seeds"], plain["remarks"], other["seeds"], other["remarks"]) == (2, "", 1, text)
    assert (text in set(tables.distance(epochs(two_seeds))["remarks"])) == comparable


def test_what_is_missing_is_every_cell_without_a_complete_run_and_nothing_is_held_against_the_20_way_run(tmp_path):
    fake_results.write(tmp_path, MNIST, 0, SEED_0[:1] * 100)
    fake_results.write(tmp_path, ("mnist", "vgg19", "gravity"), 0, SEED_0)
    fake_results.write(tmp_path, ("cifar10", "vgg16", "gravity"), 0, SEED_0, limit=64)
    fake_results.write(tmp_path, ("cifar100_fine", "vgg19", "gravity"), 0, SEED_0)
    rows = tables.missing(epochs(tmp_path)).set_index(published.CELL)
    assert len(rows) == 29 and MNIST not in rows.index
    assert rows["ours"]["mnist", "vgg19", "gravity"] == "2 of 100 epochs"
    assert rows["ours"]["cifar10", "vgg16", "gravity"] == "no run; 1 of another kind (limit 64)"
    assert rows["ours"]["cifar10", "vgg16", "adam"] == "no run"
    remarks = rows["remarks"][rows["remarks"] != ""].to_dict()
    assert remarks == {("cifar100_fine", "vgg19", "gravity"): "published: a 20-way run"}
    assert set(tables.distance(epochs(tmp_path))["dataset"]) == {"mnist"}


def test_the_study_stands_beside_each_of_the_authors_runs(tmp_path):
    for seed, rows in enumerate((SEED_0, SEED_1)):
        cell = ("study", "cifar10", "vgg16", "m_inverse_range")
        fake_results.write(tmp_path, cell, seed, rows, max_step_grad="inverse_range")
    found = epochs(tmp_path)
    assert found["study"].all() and tables.distance(found).empty
    first, *others = tables.study(found).to_dict("records")
    assert (first["seeds"], first["loss after epoch 1"], first["final loss"], first["remarks"]) == (2, 2.5, 0.6, "")
    assert [row["validation accuracy"] for row in others] == [0.7963, 0.8032]
    assert all(math.isnan(row["spread"]) for row in others)


# The page


def test_the_page_needs_nothing_else_and_has_figures_tables_and_what_is_missing(two_seeds, run):
    fake_results.write(two_seeds, ("cifar10", "vgg16", "adam"), 0, SEED_0, learning_rate=1e-4)
    fake_results.write(two_seeds, ("digits", "vgg11", "gravity"), 0, SEED_0, width=0.25)
    fake_results.write(two_seeds, ("study", "mnist", "vgg16", "m_inverse_range"), 0, SEED_0)
    about = {"machine": "2 cores <AMX>", "dataset_names": {"cifar10": "CIFAR-10 (JPEG)"}}
    (two_seeds / "about.json").write_text(json.dumps(about))
    code, out, _ = run(report, two_seeds)
    assert (code, out) == (0, f"the report is {two_seeds / 'report.html'}\n")
    text = (two_seeds / "report.html").read_text()
    targets = re.findall(r'\b(?:src|href|srcset|data|action)="([^"]*)"', text)
    embedded = [base64.b64decode(target.removeprefix("data:image/png;base64,"), validate=True) for target in targets]
    assert not re.search(r"url\(|@import|https?:|<(link|iframe|object)", text)
    files = sorted((two_seeds / "report").glob("*.png"))
    assert len(files) == 11 == len(re.findall(r'alt="[^"]{20}', text))  # the paper's ten, and the digits
    assert sorted(embedded) == sorted(file.read_bytes() for file in files)
    assert {matplotlib.image.imread(io.BytesIO(picture)).shape[:2] for picture in embedded} == {(700, 1000)}
    names = {"missing", "published", "study", "distance_mnist", "distance_cifar10"}
    names |= {f"summary_{dataset}" for dataset in ("digits", *published.CLASSES)}
    assert {file.stem for file in (two_seeds / "report").glob("*.csv")} == names
    assert set(pd.read_csv(two_seeds / "report" / "distance_mnist.csv")["optimizer"]) == {"gravity"}
    assert "0 of the paper&#39;s 30 cells are complete" in text and "not available" in text
    assert "CIFAR-10 (JPEG)" in text and "2 cores &lt;AMX&gt;" in text
    assert text.count("2 of 100 epochs") == 2 and "published: a 20-way run" in text
    markdown = " ".join((two_seeds / "report.md").read_text().split())
    assert "| mnist | vgg16 | 0.9934 |" in markdown and "](report/mnist_vgg16.png)" in markdown


def test_a_figure_has_ours_and_theirs_in_the_optimizers_colour(two_seeds):
    fake_results.write(two_seeds, ("digits", "vgg11", "gravity"), 0, SEED_0, width=0.25)

    def drawn(dataset, model):
        axes = figures.draw_cells(frames.load(two_seeds), dataset, model).axes[3]
        return {line.get_label(): line for line in axes.lines}, axes

    lines, axes = drawn("mnist", "vgg16")
    ours, theirs = "Gravity, ours (2 seeds)", [f"{name}, published" for name in ("Gravity", "Adam", "RMSProp")]
    assert set(lines) == {ours, *theirs}
    assert [lines[name].get_color() for name in (ours, theirs[1])] == [*map(palette.colour, ("gravity", "adam"))]
    assert axes.get_xscale() == "log" and len(axes.collections) == 1  # 2 epochs beside 100; the spread
    lines, axes = drawn("digits", "vgg11")
    assert set(lines) == {"Gravity, ours (seed 0, width 0.25)"} and len(axes.collections) == 0
    lines, _ = drawn("cifar100_fine", "vgg19")
    dashes = [lines[name].get_linestyle() for name in ("Gravity, published (20-way run: not comparable)", theirs[1])]
    assert dashes == [":", "--"]
    assert len({palette.colour(name) for name in optimizers.NAMES}) == len(optimizers.NAMES)


def test_with_nothing_run_and_no_figure_drawn_the_page_has_the_published_runs(run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "draw_cells", lambda *_: 1 / 0)
    assert "was not drawn" in run(report, tmp_path)[1]
    text = (tmp_path / "report.html").read_text()
    assert "<img" not in text and text.count("<td>published</td>") == 30 and "<td>ours</td>" not in text


def test_what_is_no_benchmarks_folder_or_cell_is_one_line_and_exit_code_2(run, two_seeds, tmp_path_factory):
    other = tmp_path_factory.mktemp("comparison")
    (other / "runs.csv").touch()
    (two_seeds / "mnist" / "vgg16" / "gravity" / "seed_1" / "config.json").write_text('{"dataset": "mnist"}')
    said = {
        other / "no": "is not a folder; give the",
        other: "train/compare.py --report",
        two_seeds: "KeyError: 'model'",
    }
    for folder, words in said.items():
        code, _, error = run(report, folder)
        assert code == 2 and error.startswith("error: ") and words in error and error.count("\n") == 1
        assert not (folder / "report.html").exists()


def test_what_tables_say_is_text_and_numbers_are_rounded_when_shown(tmp_path):
    table = page.Table("", "a <b>", pd.DataFrame({"a": ["<b>a & b</b>", "y"], "<i>": [0.123456789, float("nan")]}))
    text = page.Page("t", [], [page.Section("s", tables=[table])]).write(tmp_path).read_text()
    for said in ("<i>", "<b>a & b</b>", "0.1235", "a <b>"):
        assert f">{html.escape(said)}<" in text
    shown = "# t ## s **a <b>** | a | <i> | |:-------------|:-------| | <b>a & b</b> | 0.1235 | | y | |"
    assert " ".join((tmp_path / "report.md").read_text().split()) == shown


def test_every_cell_of_the_benchmark_is_reported_and_a_copy_beside_them_is_left_out_and_named(tmp_path, caplog):
    cells = {(dataset, model, "adam") for dataset in get_args(DatasetName) for model in get_args(ModelName)}
    for cell in cells:
        folder = fake_results.write(tmp_path, cell, 0, SEED_0, learning_rate=0.1)
    strays = "mnist/vgg16/sgd/seed_0 (copy)", "mnist/vgg11_old/sgd/seed_0", "study/mnist/vgg16/paper_old/seed_0"
    for stray in strays:
        shutil.copytree(folder, tmp_path / stray)
    found = frames.load(tmp_path)
    assert {*zip(*(found.runs[name] for name in published.CELL), strict=True)} == cells
    assert len(found.runs) == len(cells) and frames.MODEL_NAMES.keys() == {*get_args(ModelName)}
    (line,) = caplog.messages
    assert line.startswith("left out, ") and all(stray in line for stray in strays)
