"""A report: one self-contained page (report.html), the same as Markdown (report.md), its tables and figures as files.

`write_benchmark`, `write_comparison` and `write_ablation` say what is on the page of each kind.
"""

import base64
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import pandas as pd

from lab import ablation, evidence, figures, frames, published, tables
from lab.figures import OPTIMIZER_NAMES
from lab.frames import DATASET_NAMES, MODEL_NAMES, Results
from lab.rules import PLATEAU
from lab.runs import Outcomes
from trainer import pictures

_SOURCES = {
    "digits": "The digits are scikit-learn's (UCI, Alpaydin and Kaynak 1998).",
    "mnist": "MNIST is by LeCun, Cortes and Burges.",
    "fashion_mnist": "Fashion-MNIST is by Zalando SE (Xiao, Rasul and Vollgraf 2017), MIT license.",
    "cifar10": "CIFAR-10 and CIFAR-100 are by Krizhevsky (2009).",
    "cifar100_coarse": "CIFAR-10 and CIFAR-100 are by Krizhevsky (2009).",
    "cifar100_fine": "CIFAR-10 and CIFAR-100 are by Krizhevsky (2009).",
}
# The tables of a comparison: the function of `evidence`, its title, and what it means.
_COMPARISON: dict[str, tuple[str, str]] = {
    "standings": (
        "Test accuracy at the best learning rate",
        "Mean over the seeds, standard deviation, difference from Adam's mean, and the 95% interval of that difference"
        " by Welch. The test set was looked at once, after the last epoch.",
    ),
    "leads": (
        "Gravity's lead, by the number of classes",
        "Test accuracy of Gravity minus the other's, and its 95% interval by Welch.",
    ),
    "growths": (
        "Does Gravity's lead over Adam grow with the number of classes?",
        "The lead on the second dataset minus the lead on the first, and its 95% interval by Welch.",
    ),
    "plateaus": (
        "How wide is the range of good learning rates?",
        f"The learning rates around the best with at least {PLATEAU:.0%} of its validation accuracy. Open end: the"
        " search did not find the edge of the plateau on that side.",
    ),
    "rate_scores": (
        "What the search found",
        "Accuracy on the validation part after the last epoch, mean over the search's seeds.",
    ),
    "to_target": (
        "Epochs to a target",
        "The epoch after which the final runs first reach the target on the validation part, mean over the seeds; the"
        " targets were fixed before the runs.",
    ),
    "failures": (
        "Runs that never left the chance level, or diverged",
        "At chance: not more than three standard errors above an equal share after any epoch. Diverged: the loss was"
        " not finite.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A frame, rounded when shown; `name` is of its CSV file, if it has one."""

    name: str
    caption: str
    frame: pd.DataFrame
    blank: str = ""  # what is shown for NaN
    folded: bool = False

    def rows(self) -> Iterator[list[tuple[bool, str]]]:
        """The cells: whether it is a number, and its text."""
        for row in self.frame.itertuples(index=False):
            yield [(isinstance(x, int | float) and x == x, shown(x, self.blank)) for x in map(_plain, row)]

    def markdown(self) -> str:
        columns = [*map(str, self.frame.columns)]
        lines = [columns, ["---"] * len(columns), *([text for _, text in row] for row in self.rows())]
        return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as a PNG file of that name, and what its curves show, of `figures.points`."""

    name: str
    alt: str
    content: bytes
    curves: list[dict[str, Any]]

    @property
    def base64(self) -> str:
        return base64.b64encode(self.content).decode()


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    notes: list[str] = dataclasses.field(default_factory=list)
    figures: list[Picture] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Page:
    title: str
    introduction: list[tuple[str, str]]  # paragraphs: "", "note" or "warning", and the text
    sections: list[Section]

    def html(self) -> str:
        """The page, which needs nothing else."""
        loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
        environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return environment.get_template("report.html.j2").render(page=self)

    def markdown(self) -> str:
        """The page, with its figures in report/."""
        parts = [f"# {self.title}", *(text for _, text in self.introduction)]
        for section in self.sections:
            parts += [f"## {section.title}", *section.notes]
            parts += [f"![{picture.alt}](report/{picture.name})" for picture in section.figures]
            for table in section.tables:
                parts += [f"**{table.caption}**", table.markdown()]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """All files; the path of the page."""
        (folder / "report").mkdir(exist_ok=True)
        for section in self.sections:
            for picture in section.figures:
                (folder / "report" / picture.name).write_bytes(picture.content)
            for table in section.tables:
                if table.name:
                    text = table.frame.map(lambda x: f"{x:.6g}" if isinstance(x, float) else x)
                    text.replace("nan", "").to_csv(folder / "report" / f"{table.name}.csv", index=False)
        (folder / "report.md").write_text(self.markdown())
        (folder / "report.html").write_text(self.html())
        return folder / "report.html"


def shown(value: Any, blank: str = "") -> str:
    """A table value as text."""
    if isinstance(value, float):
        return blank if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _plain(value: Any) -> Any:
    """A number of NumPy as Python's."""
    return value.item() if hasattr(value, "item") else value


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
    return benchmark_page(found).write(found.path)


def benchmark_page(found: Results) -> Page:
    """The page of a results folder."""
    missing = tables.missing(found.epochs)
    caption = "Validation accuracy after 100 epochs, and its standard deviation over the last 50 (swing)"
    ends = _theirs("published", caption, tables.published_ends())
    sections = [Section("What was published", tables=[ends])]
    sections += [_dataset(found, dataset, models) for dataset, models in _models(found).items()]
    study = tables.study(found.epochs)
    tuned = [_theirs("study", "Ours beside theirs", study)] if len(study) else []
    sections.append(Section("The authors' tuning study", [] if tuned else ["Not run."], tables=tuned))
    lacking = _theirs("missing", "Cells without a complete run of ours", missing)
    sections.append(Section("What is missing", [] if len(missing) else ["Nothing."], tables=[lacking]))
    return Page("Gravity: the paper's evaluation, run again", _introduction(found, len(missing)), sections)


_theirs = functools.partial(Table, blank="not available")


def _models(found: Results) -> dict[str, list[str]]:
    """The models by dataset: the paper's, and others that were run."""
    runs = found.runs[~found.runs["study"].astype(bool)]
    pairs = {cell[:2] for cell in published.ends().index} | {*zip(runs["dataset"], runs["model"], strict=True)}
    models = {dataset: sorted(model for of, model in pairs if of == dataset) for dataset in DATASET_NAMES}
    return {dataset: names for dataset, names in models.items() if names}


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
    notes = ["No run of ours can be compared with a published one."]
    if len(distance):
        notes, caption = [], "Distance from the published runs, at the last epoch that both have"
        shown.append(_theirs("", caption, tables.at_the_end(distance)))
        shown.append(_theirs(f"distance_{dataset}", "At all matched epochs", distance, folded=True))
    return Section(found.dataset_name(dataset), notes, drawn, shown)


def _introduction(found: Results, missing: int) -> list[tuple[str, str]]:
    cells = len(published.ends())
    parts = [
        (
            "",
            "The evaluation of Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning (Bahrami and"
            " Pouriyan Zadeh, arXiv 2101.09192), beside the runs that its authors published.",
        ),
        (
            "",
            f"{cells - missing} of the paper's {cells} cells are complete; a cell is one dataset, model and"
            f" optimizer.{' The last section lists what is missing.' if missing else ''}",
        ),
        ("warning", f"{claim()} That 20-way run is dotted here and compared with nothing."),
        (
            "note",
            "Ours: solid lines, the mean over seeds, with a band of one standard deviation (n - 1) on either side where"
            " there are at least two seeds. Published: dashed lines, one run each. Spread: the standard deviation"
            " of our own runs; with one seed it is not available. Loss: of training, a running mean over the epoch.",
        ),
    ]
    if len(found.runs):
        parts.append(("note", agreement(found.epochs)))
        parts.append(("note", f"Run on: {'; '.join(sorted(found.runs['machine'].unique()))}."))
    return parts + [("note", found.about[key]) for key in ("machine", "notes") if key in found.about]


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
        return "No cell has two seeds, so there is no spread to hold the distance from the published runs against."
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
    runs, epochs = frames.of_comparison(outcomes)
    lines = []
    for _, found in runs.groupby("setup"):
        first, parts = found.iloc[0], found["part"].value_counts()
        lines.append(
            f"{DATASET_NAMES[first['dataset']]}: {first['network']}; {first['training_pictures']:,} pictures to train"
            f" on, {first['validation_pictures']:,} to choose by, {first['test_pictures']:,} to test on;"
            f" {parts.get('search', 0)} runs to search, {parts.get('final', 0)} final ones."
        )
    rates = "learning rates half a decade apart, around the trainer's"
    points = "quasi-random points of the space in train/lab/spaces.py (sampler=qmc)"
    searched = [text for text, there in ((rates, runs["point"] == ""), (points, runs["point"] != "")) if there.any()]
    introduction = (
        f"Each optimizer was searched over {', or over '.join(searched)}, and the best was chosen by its accuracy on a"
        " tenth of the training set that was held out. Runs with new seeds followed there. train/lab/rules.py has what"
        " was fixed before."
    )
    alt = "Accuracy over learning rate, over epochs, and on the test set"
    drawn = _picture("comparison.png", alt, lambda: figures.draw_comparison(runs, epochs), dpi=80)
    sections = [Section("What was compared", lines, drawn)]
    for name, (title, note) in _COMPARISON.items():
        if len(frame := getattr(evidence, name)(runs)):
            sections.append(Section(title, [note], tables=[Table(name, title, frame)]))
    sources = dict.fromkeys(_SOURCES[dataset] for dataset in runs["dataset"])
    sections.append(Section("The data", [*sources]))
    title = "Optimizers, each at its best learning rate"
    return Page(title, [("", introduction)], sections).write(folder)


def write_ablation(folder: pathlib.Path, outcomes: Outcomes) -> pathlib.Path:
    """The report of `compare.py --study ablation`, from its runs."""
    runs, _ = frames.of_comparison(outcomes)
    arms, rates = ablation.cells(runs), ablation.rates(runs)
    named = {"arms": arms, "pooled": ablation.pooled(arms, runs), "rates": rates}
    sections = []
    for key, found in arms.groupby(ablation.CELL, sort=False) if len(arms) else []:
        note = "" if found["counts"].all() else " (momentum fails with some seed: this cell does not count)"
        frame = found.drop(columns=ablation.CELL)
        sections.append(Section(_cell(key) + note, tables=[Table("", "Each arm beside momentum", frame)]))
    sections.append(
        Section("All cells that count", tables=[Table("pooled", "Each arm over all cells", named["pooled"])])
    )
    losses = "Training loss after the last epoch, by momentum's rate or its counterpart (seeds 0, 1, 2)"
    by_rate = []
    for key, found in rates.groupby(ablation.CELL, sort=False) if len(rates) else []:
        by_rate.append(Table("", _cell(key), ablation.by_momentums_rate(found)))
    sections.append(Section(losses, tables=by_rate))
    whole = [Table(name, f"All of {name}.csv", named[name], folded=True) for name in ("arms", "rates")]
    sections.append(Section("The same as files", tables=whole))
    paragraphs = (ablation.__doc__ or "").split("\n\n")[1:]
    introduction = [("", " ".join(text.split())) for text in paragraphs]
    return Page("Which parts of Gravity matter?", introduction, sections).write(folder)


def _cell(key: tuple[str, ...]) -> str:
    return f"{key[0]}, {key[1]}, {key[2] or 'as in the paper'}"
