"""A report: one self-contained page (report.html), the same as Markdown (report.md), its tables and figures as files.

`write_benchmark`, `write_comparison` and `write_study` say what is on the page of each kind.
"""

import base64
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from lab import arms, evidence, figures, frames, published, tables
from lab.figures import OPTIMIZER_NAMES
from lab.frames import DATASET_NAMES, MODEL_NAMES, Results
from lab.runs import Outcomes
from lab.studies import STUDIES
from trainer import pictures


class Table(NamedTuple):
    """A frame, rounded when shown; `name` is of its CSV file, if it has one."""

    name: str
    caption: str
    frame: pd.DataFrame
    blank: str = ""  # what is shown for NaN
    folded: bool = False

    @property
    def rows(self) -> list[list[str]]:
        number = lambda x: self.blank if math.isnan(x) else f"{x:.4g}"
        return self.frame.map(lambda x: number(x) if isinstance(x, float) else str(x)).to_numpy().tolist()

    def markdown(self) -> str:
        shown = pd.DataFrame(self.rows, columns=self.frame.columns.astype(str))
        return shown.to_markdown(index=False, disable_numparse=True)


class Picture(NamedTuple):
    name: str  # of its file
    alt: str
    content: bytes
    curves: list[dict[str, Any]]  # as of `figures.points`

    @property
    def base64(self) -> str:
        return base64.b64encode(self.content).decode()


class Section(NamedTuple):
    title: str
    notes: Sequence[str] = ()
    figures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


class Page(NamedTuple):
    title: str
    introduction: list[str]  # paragraphs
    sections: list[Section]
    warning: str = ""

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """All files, some in report/, which exists; the path of the page, which needs nothing else."""
        for section in self.sections:
            for picture in section.figures:
                (folder / "report" / picture.name).write_bytes(picture.content)
            for table in filter(lambda table: table.name, section.tables):
                table.frame.to_csv(folder / "report" / f"{table.name}.csv", index=False, float_format="%.6g")
        loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
        html_only = jinja2.select_autoescape(["html.j2"])
        templates = jinja2.Environment(loader=loader, autoescape=html_only, trim_blocks=True, lstrip_blocks=True)
        for name in ("report.md", "report.html"):
            (folder / name).write_text(templates.get_template(f"{name}.j2").render(page=self).strip() + "\n")
        return folder / name


def _picture(name: str, alt: str, draw: Callable[[], Any], dpi: int = 100) -> list[Picture]:
    """The figure, if it can be drawn."""
    drawn: list[Any] = []

    def keep() -> Any:
        drawn.append(draw())
        return drawn[0]

    content = pictures.png(name, keep, dpi)
    return [Picture(name, alt, content, figures.points(drawn[0]))] if content else []


# The paper's evaluation


def write_benchmark(found: Results) -> pathlib.Path:
    """The report of `benchmark.py`: our runs beside the published ones, and what has not been run yet."""
    (found.path / "report").mkdir(exist_ok=True)  # a folder that cannot be written is an error before any long work
    missing, study = tables.missing(found.epochs), tables.study(found.epochs)
    caption = "Validation accuracy after 100 epochs, and its standard deviation over the last 50 (swing)"
    sections = [Section("What was published", tables=[_theirs("published", caption, tables.published_ends())])]
    runs = pd.concat([published.epochs(), found.epochs[~found.epochs["study"]]])
    for dataset in DATASET_NAMES:
        if models := sorted(runs["model"][runs["dataset"] == dataset].unique()):
            sections.append(_dataset(found, dataset, models))
    tuned = [_theirs("study", "Ours beside theirs", study)] if len(study) else []
    sections.append(Section("The authors' tuning study", [] if tuned else ["Not run."], tables=tuned))
    lacking = _theirs("missing", "Cells without a complete run of ours", missing)
    sections.append(Section("What is missing", [] if len(missing) else ["Nothing."], tables=[lacking]))
    cells = len(published.ends())
    introduction = [
        "The evaluation of Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning (Bahrami and"
        " Pouriyan Zadeh, arXiv 2101.09192), beside the runs that its authors published.",
        f"{cells - len(missing)} of the paper's {cells} cells are complete; a cell is one dataset, model and optimizer."
        f"{' The last section lists what is missing.' if len(missing) else ''}",
        "Ours: solid lines, the mean over seeds, with a band of one standard deviation (n - 1) on either side where"
        " there are at least two seeds. Published: dashed lines, one run each. Spread: the standard deviation of our"
        " own runs; with one seed it is not available. Loss: of training, a running mean over the epoch.",
    ]
    if len(found.runs):
        machines = "; ".join(sorted(found.runs["machine"].unique()))
        introduction += [agreement(found.epochs), f"Run on: {machines}."]
    introduction += [found.about[key] for key in ("machine", "notes") if key in found.about]
    warning = f"{claim()} That 20-way run is dotted here and compared with nothing."
    return Page("Gravity: the paper's evaluation, run again", introduction, sections, warning).write(found.path)


_theirs = functools.partial(Table, blank="not available")


def _dataset(found: Results, dataset: str, models: list[str]) -> Section:
    drawn = []
    for model in models:
        what = f"{found.dataset_name(dataset)} on {MODEL_NAMES[model]}"
        alt = f"{what}: training and validation loss and accuracy over the epochs, ours and published"
        draw = functools.partial(figures.draw_cells, found, dataset, model)
        drawn += _picture(f"{dataset}_{model}.png", alt, draw)
    caption = "Our runs so far, and the published ones at their end"
    shown = [_theirs(f"summary_{dataset}", caption, tables.summary(dataset, found.epochs))]
    distance = tables.distance(found.epochs[found.epochs["dataset"] == dataset])
    if len(distance):
        caption = "Distance from the published runs, at the last epoch that both have"
        shown.append(_theirs("", caption, tables.at_the_end(distance)))
        shown.append(_theirs(f"distance_{dataset}", "At all matched epochs", distance, folded=True))
    notes = [] if len(distance) else ["None of our runs can be compared with a published one."]
    return Section(found.dataset_name(dataset), notes, drawn, shown)


def claim() -> str:
    """What the 20-way run means for the paper's claim, in two sentences."""
    final = published.ends()["val_accuracy"]["cifar100_fine"]
    gravity, adam, rmsprop = (final["vgg16"][name] for name in OPTIMIZER_NAMES)
    old, new = final["vgg19"], gravity - max(adam, rmsprop)
    return (
        "The abstract's strongest claim, greater validation accuracy on datasets with more classes such as CIFAR-100"
        f" (fine), rests on Figure 19 ({old['gravity']:.3f} for Gravity, {old['adam']:.3f} for Adam, with VGG19). There"
        " Gravity's run had 20 outputs and the others 100, so the figure compares different tasks. What remains of the"
        f" claim is VGG16 ({gravity:.3f} for Gravity, {adam:.3f} for Adam, {rmsprop:.3f} for RMSProp): one run each,"
        f" which cannot say whether a lead of {new:.3f} is more than two seeds differ by."
    )


def agreement(epochs: pd.DataFrame) -> str:
    """How many of our means lie within two of our own spreads of the published values, and which do not."""
    compared = tables.distance(epochs).dropna(subset="in spreads")
    outside = tables.beyond(compared, 2)
    if compared.empty:
        return "No cell that can be compared with a published run has two seeds: there is no spread to measure it by."
    text = (
        f"At the matched epochs, {len(compared) - len(outside)} of {len(compared)} means over our seeds lie within two"
        " of our own spreads of the published value (a cell with one seed has no spread)."
    )
    cells = []
    for (dataset, model, name, epoch), rows in outside.groupby([*published.CELL, "epoch"], sort=False):
        values = [f"{row.metric} {row.ours:.4g} for {row.published:.4g}" for row in rows.itertuples()]
        cell = f"{OPTIMIZER_NAMES.get(name, name)}, {MODEL_NAMES[model]}, {DATASET_NAMES[dataset]}, epoch {epoch}"
        cells.append(f"{cell}: {', '.join(values)}")
    return f"{text} The others, ours for theirs: {'; '.join(cells)}." if cells else text


# Comparisons


def write_comparison(folder: pathlib.Path, outcomes: Outcomes) -> pathlib.Path:
    """The report of `compare.py`, from its runs."""
    (folder / "report").mkdir(parents=True, exist_ok=True)
    runs = frames.of_comparison(outcomes)
    lines = []
    for _, found in runs.groupby("setup"):
        first, parts = found.iloc[0], found["part"].value_counts()
        lines.append(
            f"{DATASET_NAMES[first['dataset']]}: {first['network']}; {first['training_pictures']:,} pictures to train"
            f" on, {first['validation_pictures']:,} to choose by, {first['test_pictures']:,} to test on;"
            f" {parts.get('search', 0)} search runs, {parts.get('final', 0)} final runs."
        )
    rates = "learning rates half a decade apart, around the trainer's"
    points = "quasi-random points of the space in train/lab/spaces.py (sampler=qmc)"
    searched = [text for text, there in ((rates, runs["point"] == ""), (points, runs["point"] != "")) if there.any()]
    introduction = (
        f"Each optimizer was searched over {', or over '.join(searched)}, and the best was chosen by its accuracy on a"
        " held-out tenth of the training set. Runs with new seeds followed with that choice. train/lab/rules.py has"
        " what was fixed before any run."
    )
    sections = [Section("What was compared", lines, _compared("comparison.png", runs))]
    for table in evidence.TABLES:
        title, _, note = (table.__doc__ or "").partition("\n\n")
        if len(frame := table(runs)):
            sections.append(Section(title, [" ".join(note.split())], tables=[Table(table.__name__, title, frame)]))
    return Page("Optimizers, each at its best learning rate", [introduction], sections).write(folder)


def write_study(folder: pathlib.Path, outcomes: Outcomes, name: str) -> pathlib.Path:
    """The report of `compare.py --study NAME`, from its runs."""
    (folder / "report").mkdir(parents=True, exist_ok=True)
    runs = frames.of_comparison(outcomes)
    study = STUDIES[name]
    table, rates = arms.cells(runs, study.arms), arms.rates(runs, study.arms)
    if name == "ablation":
        alt = "Training loss over the learning rate, and test accuracy by initial weights"
        drawn = _picture("ablation.png", alt, lambda: figures.draw_ablation(arms.final_runs(runs, study.arms), rates))
    else:
        drawn = _compared(f"{name}.png", runs)
    sections = [Section("In pictures", figures=drawn)]
    for key, found in table.groupby(arms.CELL, sort=False):
        note = "" if found["counts"].all() else " (momentum fails with some seed: this cell does not count)"
        frame = found.drop(columns=arms.CELL)
        sections.append(Section(_cell(key) + note, tables=[Table("", "Each arm beside momentum", frame)]))
    pooled = Table("pooled", "Each arm over all cells", arms.pooled(runs, study.arms))
    losses = "Training loss after the last epoch, by momentum's rate or its counterpart (the search's seeds)"
    by_rate = rates.groupby(arms.CELL, sort=False)
    curves = [Table("", _cell(key), arms.by_momentums_rate(found)) for key, found in by_rate]
    files = {"arms": table, "rates": rates}
    whole = [Table(name, f"All of {name}.csv", frame, folded=True) for name, frame in files.items()]
    sections.append(Section("All cells that count", tables=[pooled]))
    sections.append(Section(losses, tables=curves))
    sections.append(Section("The same as files", tables=whole))
    introduction = [" ".join(text.split()) for text in (arms.__doc__ or "").split("\n\n")[1:]]
    return Page(study.title, introduction, sections).write(folder)


def _compared(name: str, runs: pd.DataFrame) -> list[Picture]:
    alt = "Accuracy over learning rate, over epochs, and on the test set"
    return _picture(name, alt, lambda: figures.draw_comparison(runs), dpi=80)


def _cell(key: tuple[Any, ...]) -> str:
    dataset, model, width, settings = key
    return f"{dataset}, {model} x {width:g}, {settings or 'as in the paper'}"
