"""The report as files: one self-contained page, figures and tables, of whatever has been run."""

import base64
import html
import io
import json
import re
import shutil
from typing import get_args

import matplotlib.image
import pandas as pd
import pytest

import fake_results
import report
from lab import figures, frames, page, palette, published
from trainer import optimizers
from trainer.config import DatasetName, ModelName

ROWS = [(2.0, 0.3, 1.0, 0.9), (0.5, 0.8, 0.4, 0.98)]


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """A results folder with a part of the evaluation, and its page."""
    root = tmp_path_factory.mktemp("results")
    fake_results.write(root, ("mnist", "vgg16", "gravity"), 0, ROWS)
    fake_results.write(root, ("mnist", "vgg16", "gravity"), 1, ROWS)
    fake_results.write(root, ("cifar10", "vgg16", "adam"), 0, ROWS, learning_rate=1e-4)
    fake_results.write(root, ("digits", "vgg11", "gravity"), 0, ROWS, width=0.25)
    fake_results.write(root, ("study", "mnist", "vgg16", "m_inverse_range"), 0, ROWS)
    about = {"machine": "2 cores <AMX>", "dataset_names": {"cifar10": "CIFAR-10 (JPEG)"}}
    (root / "about.json").write_text(json.dumps(about))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report.py", str(root)])
        assert report.main() == 0
    return root, (root / "report.html").read_text()


def test_the_page_needs_nothing_else_and_has_a_figure_for_every_dataset_and_model(partial):
    root, text = partial
    targets = re.findall(r'\b(?:src|href|srcset|data|action)="([^"]*)"', text)
    embedded = [base64.b64decode(target.removeprefix("data:image/png;base64,"), validate=True) for target in targets]
    assert not re.search(r"url\(|@import|https?:|<(link|iframe|object)", text)
    files = sorted((root / "report").glob("*.png"))
    assert len(files) == 11 == len(re.findall(r'alt="[^"]{20}', text))  # the paper's ten, and the digits
    assert sorted(embedded) == sorted(file.read_bytes() for file in files)
    assert {matplotlib.image.imread(io.BytesIO(picture)).shape[:2] for picture in embedded} == {(700, 1000)}


def test_tables_are_files_and_markdown_and_the_page_says_what_is_missing_and_what_the_data_are(partial):
    root, page_text = partial
    names = {"missing", "published", "study", "distance_mnist", "distance_cifar10"}
    names |= {f"summary_{dataset}" for dataset in ("digits", *published.CLASSES)}
    assert {file.stem for file in (root / "report").glob("*.csv")} == names
    assert set(pd.read_csv(root / "report" / "distance_mnist.csv")["optimizer"]) == {"gravity"}
    text = (root / "report.md").read_text()
    assert "| mnist | vgg16 | 0.9934 |" in text and "](report/mnist_vgg16.png)" in text
    for said in ("0 of the paper&#39;s 30 cells are complete", "CIFAR-10 (JPEG)", "2 cores &lt;AMX&gt;"):
        assert said in page_text
    assert "20 outputs and the others 100" in page_text and "published: a 20-way run" in page_text
    assert page_text.count("2 of 100 epochs") == 2 and "not available" in page_text


def test_with_nothing_run_and_no_figure_drawn_the_page_has_the_published_runs(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(figures, "draw_cells", lambda *_: 1 / 0)
    text = page.write_benchmark(frames.load(tmp_path)).read_text()
    assert "<img" not in text and "was not drawn" in caplog.text
    assert "0 of the paper&#39;s 30 cells are complete" in text
    assert text.count("<td>published</td>") == 30 and "<td>ours</td>" not in text


def test_no_folder_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path / "nowhere")])
    assert report.main() == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: RESULTS is .*nowhere, which is not a folder; give the --workdir of .*\n", said)


def lines_of(root, dataset, model):
    axes = figures.draw_cells(frames.load(root), dataset, model).axes[3]
    return {line.get_label(): line for line in axes.lines}, axes


def test_a_figure_has_ours_and_theirs_in_the_optimizers_colour(partial):
    lines, axes = lines_of(partial[0], "mnist", "vgg16")
    ours, theirs = "Gravity, ours (2 seeds)", [f"{name}, published" for name in ("Gravity", "Adam", "RMSProp")]
    assert set(lines) == {ours, *theirs}
    assert [lines[name].get_color() for name in (ours, theirs[1])] == [*map(palette.colour, ("gravity", "adam"))]
    assert axes.get_xscale() == "log" and len(axes.collections) == 1  # 2 epochs beside 100; the spread
    lines, axes = lines_of(partial[0], "digits", "vgg11")
    assert set(lines) == {"Gravity, ours (seed 0, width 0.25)"} and len(axes.collections) == 0
    lines, _ = lines_of(partial[0], "cifar100_fine", "vgg19")
    dashes = [lines[name].get_linestyle() for name in ("Gravity, published (20-way run: not comparable)", theirs[1])]
    assert dashes == [":", "--"]
    assert len({palette.colour(name) for name in optimizers.NAMES}) == len(optimizers.NAMES)


def test_what_tables_say_is_text_and_numbers_are_rounded_when_shown(tmp_path):
    table = page.Table("", "a <b>", pd.DataFrame({"a|b": ["<b>a & b</b>", "y"], "<i>": [0.123456789, float("nan")]}))
    text = page.Page("t", [], [page.Section("s", tables=[table])]).write(tmp_path).read_text()
    for said in ("<i>", "<b>a & b</b>", "0.1235", "a <b>"):
        assert f">{html.escape(said)}<" in text
    shown = "# t\n\n## s\n\n**a <b>**\n\n| a\\|b | <i> |\n| --- | --- |\n| <b>a & b</b> | 0.1235 |\n| y |  |\n"
    assert (tmp_path / "report.md").read_text() == shown


@pytest.mark.parametrize(
    "stray", ["mnist/vgg16/sgd/seed_0 (copy)", "mnist/vgg11_old/sgd/seed_0", "study/mnist/vgg16/paper_old/seed_0"]
)
def test_a_copy_beside_the_results_is_left_out_and_named(tmp_path, caplog, stray):
    run = fake_results.write(tmp_path, ("mnist", "vgg16", "sgd"), 0, ROWS, learning_rate=0.1)
    shutil.copytree(run, tmp_path / stray)
    found = frames.load(tmp_path)
    assert [*found.runs["run"]] == [str(run)]
    (line,) = caplog.messages
    assert line.startswith("left out, ") and stray in line


def test_every_cell_that_the_benchmark_can_run_is_reported(tmp_path, caplog):
    cells = [(dataset, model, "adam") for dataset in get_args(DatasetName) for model in get_args(ModelName)]
    for cell in cells:
        fake_results.write(tmp_path, cell, 0, ROWS, learning_rate=0.1)
    found = frames.load(tmp_path)
    assert {*zip(*(found.runs[name] for name in published.CELL), strict=True)} == {*cells} and not caplog.messages
    assert frames.MODEL_NAMES.keys() == {*get_args(ModelName)}
