"""The report as files: one self-contained page, figures and tables, of whatever has been run."""

import base64
import csv
import html.parser
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import matplotlib.image
import pytest

import fake_results
import report
from paper import formats, page, palette, published, results

VOID = {"meta", "img"}
ROWS = [(2.0, 0.3, 1.0, 0.9), (0.5, 0.8, 0.4, 0.98)]
SCRIPT = pathlib.Path(report.__file__)


class Page(html.parser.HTMLParser):
    """Checks that elements are closed in order, and collects the text and what the page points to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.targets, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


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
    done = subprocess.run([sys.executable, str(SCRIPT), str(root)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"the report is {root / 'report.html'}\n"
    return root, Page((root / "report.html").read_text())


def test_the_page_needs_nothing_else(partial):
    root, page = partial
    assert {target.split(",")[0] for target in page.targets} == {"data:image/png;base64"}
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import", (root / "report.html").read_text())


def test_there_is_a_figure_for_every_dataset_and_model_in_the_page_and_as_a_file(partial):
    root, page = partial
    embedded = [base64.b64decode(target.split(",")[1]) for target in page.targets]
    files = sorted((root / "report").glob("*.png"))
    assert len(files) == 11  # the paper's ten, and the digits
    assert sorted(embedded) == sorted(file.read_bytes() for file in files)
    for picture in embedded:
        height, width, _ = matplotlib.image.imread(io.BytesIO(picture)).shape
        assert (height, width) == (700, 1000)


def test_tables_are_there_as_markdown_and_csv(partial):
    root, _ = partial
    names = {"distance", "missing", "published", "study", *(f"summary_{d}" for d in ("digits", *published.CLASSES))}
    for ending in ("md", "csv"):
        assert {file.stem for file in (root / "report").glob(f"*.{ending}")} == names
    rows = list(csv.DictReader(io.StringIO((root / "report" / "distance.csv").read_text())))
    assert {(row["dataset"], row["optimizer"]) for row in rows} == {("mnist", "gravity"), ("cifar10", "adam")}


def test_the_page_says_what_is_missing_what_the_data_are_and_what_the_20_way_run_does(partial):
    _, page = partial
    text = " ".join(page.text)
    assert "0 of the paper's 30 cells are complete" in text
    assert "CIFAR-10 (JPEG)" in text
    assert "2 cores <AMX>" in text  # escaped in the source
    assert "20 outputs and the others 100" in text
    assert "published: a 20-way run" in text
    assert text.count("2 of 100 epochs") == 2


def test_with_nothing_run_yet_the_page_has_the_published_runs(tmp_path):
    found = results.load(tmp_path)
    text = Page(page.render(found, page.all_tables(found), {})).text
    assert "0 of the paper's 30 cells are complete" in " ".join(text)
    assert text.count("published") == 30
    assert text.count("ours") == 1  # a column of what is missing


def test_no_folder_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: RESULTS is ") and done.stderr.count("\n") == 1


def lines_of(found, dataset, model, panel=3):
    axes = page.draw(found, dataset, model).axes[panel]
    return {line.get_label(): line for line in axes.lines}, axes


def test_a_figure_has_ours_and_theirs_in_the_optimizers_colour(partial):
    root, _ = partial
    lines, axes = lines_of(results.load(root), "mnist", "vgg16")
    assert set(lines) == {
        "Gravity, ours (2 seeds)",
        *(f"{name}, published" for name in ("Gravity", "Adam", "RMSProp")),
    }
    assert lines["Gravity, ours (2 seeds)"].get_color() == palette.colour("gravity")
    assert lines["Adam, published"].get_color() == palette.colour("adam")
    assert axes.get_xscale() == "log"  # 2 epochs beside 100
    assert len(axes.collections) == 1  # the spread


def test_one_seed_has_no_band_and_departures_are_in_the_legend(partial):
    root, _ = partial
    lines, axes = lines_of(results.load(root), "digits", "vgg11")
    assert set(lines) == {"Gravity, ours (seed 0, width 0.25)"}
    assert len(axes.collections) == 0


def test_the_20_way_run_is_marked_in_its_figure(partial):
    root, _ = partial
    lines, _ = lines_of(results.load(root), "cifar100_fine", "vgg19")
    marked = lines["Gravity, published (20-way run: not comparable)"]
    assert marked.get_linestyle() == ":"
    assert lines["Adam, published"].get_linestyle() == "--"


def test_every_optimizer_has_a_colour_of_its_own():
    from trainer import optimizers

    assert set(optimizers.NAMES) <= set(palette.COLOURS)
    assert len({palette.colour(name) for name in optimizers.NAMES}) == len(optimizers.NAMES)


def test_what_tables_say_is_text(tmp_path):
    found = results.load(tmp_path)
    named = page.all_tables(found) | {"published": formats.Table(["<i>"], [("<b>a & b</b>", 1.0)])}
    shown = Page(page.render(found, named, {}))
    assert {"<i>", "<b>a & b</b>"} <= set(shown.text)
    assert "b" not in shown.tags


@pytest.mark.parametrize(
    "stray",
    [
        "mnist/vgg16/sgd/seed_0_old",
        "mnist/vgg16/sgd/seed_0 (copy)",
        "mnist/vgg16/sgd_old/seed_0",
        "mnist/vgg11_old/sgd/seed_0",
        "mnist_old/vgg16/sgd/seed_0",
        "mnist/vgg16/sgd/seed_00",
        "study/mnist/vgg16/paper_old/seed_0",
    ],
)
def test_a_copy_beside_the_results_is_left_out_and_named(tmp_path, caplog, stray):
    run = fake_results.write(tmp_path, ("mnist", "vgg16", "sgd"), 0, ROWS, learning_rate=0.1)
    shutil.copytree(run, tmp_path / stray)
    found = results.load(tmp_path)
    assert [run.cell for run in found.runs] == [("mnist", "vgg16", "sgd")] and not found.study
    (line,) = caplog.messages
    assert line.startswith("left out, ") and stray.removeprefix("study/") in line
    assert page.write(found).exists()


def test_a_report_without_its_figures(tmp_path, monkeypatch, caplog):
    fake_results.write(tmp_path, ("mnist", "vgg16", "sgd"), 0, ROWS, learning_rate=0.1)
    monkeypatch.setattr(page, "draw", lambda *_: 1 / 0)
    text = page.write(results.load(tmp_path)).read_text()
    assert "<img" not in text and "0.98" in text and "could not be drawn" in caplog.text
