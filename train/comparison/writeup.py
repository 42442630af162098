"""The report of a comparison: report.md with a figure, and each table as a CSV file of its own under report/."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from comparison import evidence
from comparison.ledger import Outcomes, Setup
from comparison.rules import PLATEAU, RULES
from paper import palette
from paper.results import DATASET_NAMES
from trainer import pictures
from trainer.config import UserError

_SOURCES = {
    "digits": "The digits are scikit-learn's (UCI, Alpaydin and Kaynak 1998).",
    "mnist": "MNIST is by LeCun, Cortes and Burges.",
    "fashion_mnist": "Fashion-MNIST is by Zalando SE (Xiao, Rasul and Vollgraf 2017), MIT license.",
    "cifar10": "CIFAR-10 and CIFAR-100 are by Krizhevsky (2009).",
    "cifar100_coarse": "CIFAR-10 and CIFAR-100 are by Krizhevsky (2009).",
    "cifar100_fine": "CIFAR-10 and CIFAR-100 are by Krizhevsky (2009).",
}
_DASHES: tuple[Any, ...] = ("--", ":", "-.", (0, (1, 1)), (0, (6, 2, 1, 2, 1, 2)))
_TITLES = {
    "standings": "Test accuracy at the best learning rate",
    "leads": "Gravity's lead, by the number of classes",
    "growths": "Does Gravity's lead over Adam grow with the number of classes?",
    "plateaus": "How wide is the range of good learning rates?",
    "rate_scores": "Accuracy over learning rate",
    "to_target": "Epochs to a target",
    "failures": "Runs that never left the chance level, or diverged",
}
_NOTES = {
    "standings": "Mean over the seeds, standard deviation, difference from Adam's mean, and the 95% interval of that"
    " difference by Welch. The test set was looked at once, after the last epoch.",
    "leads": "Test accuracy of Gravity minus the other's, and its 95% interval.",
    "growths": "The lead on the second dataset minus the lead on the first, and its 95% interval.",
    "plateaus": f"The learning rates around the best with at least {PLATEAU:.0%} of its validation accuracy."
    ' "Open end": the search did not find the edge of the plateau on that side.',
    "rate_scores": "The search: accuracy on the validation part after the last epoch, mean over the search's seeds.",
    "to_target": "The epoch after which the final runs first reach the target on the validation part, mean over the"
    " seeds; the targets were fixed before the runs.",
    "failures": "At chance: not more than three standard errors above an equal share after any epoch. Diverged: the"
    " loss was not finite.",
}


def write(folder: pathlib.Path, outcomes: Outcomes) -> pathlib.Path:
    """Writes everything into `folder` and returns the page's path. UserError where there are no runs."""
    if not outcomes:
        raise UserError(f"--workdir is {folder}, where runs.csv holds no runs yet; leave --report out.")
    tables = {name: getattr(evidence, name)(outcomes) for name in _TITLES}
    (folder / "report").mkdir(exist_ok=True)
    for name, rows in tables.items():
        (folder / "report" / f"{name}.csv").write_text(table_csv(rows))
    if picture := pictures.png("comparison.png", lambda: draw(outcomes), dpi=80):
        (folder / "report" / "comparison.png").write_bytes(picture)
    page = folder / "report.md"
    page.write_text(render(outcomes, tables))
    return page


def render(outcomes: Outcomes, tables: dict[str, Sequence[Any]]) -> str:
    """The page, Markdown."""
    setups = evidence.setups(outcomes)
    parts = ["# Optimizers, each at its best learning rate", _introduction(outcomes)]
    parts.append("![Accuracy over learning rate, over epochs, and on the test set](report/comparison.png)")
    for name, rows in tables.items():
        if rows:
            parts += [f"## {_TITLES[name]}", _NOTES[name], _markdown(rows)]
    sources = dict.fromkeys(_SOURCES[setup.dataset] for setup in setups)
    return "\n\n".join([*parts, "## The data", " ".join(sources)]) + "\n"


def _introduction(outcomes: Outcomes) -> str:
    lines = []
    for setup in evidence.setups(outcomes):
        found = [(trial, outcome) for trial, outcome in outcomes.items() if trial.setup == setup]
        counts = {part: sum(trial.part == part for trial, _ in found) for part in ("search", "final")}
        first = found[0][1]
        lines.append(
            f"- {DATASET_NAMES[setup.dataset]}: {evidence.network(setup)}; {first.training_pictures:,} pictures to"
            f" train on, {first.validation_pictures:,} to choose by, {first.test_pictures:,} to test on;"
            f" {counts['search']} runs to search, {counts['final']} final ones"
        )
    return (
        "Each optimizer was searched over learning rates half a decade apart, around the trainer's, and the best was"
        " chosen by its accuracy on a tenth of the training set that was held out. Runs with new seeds followed at that"
        " rate. `train/comparison/rules.py` has what was fixed before.\n\n" + "\n".join(lines)
    )


def _columns(row: Any) -> list[str]:
    """Titles of the fields, and of `answer` where a row has one."""
    names = [field.name.rstrip("_").replace("_", " ") for field in dataclasses.fields(row)]
    return names + ["answer"] * hasattr(row, "answer")


def _values(row: Any) -> list[Any]:
    return [
        *(getattr(row, field.name) for field in dataclasses.fields(row)),
        *([row.answer] if hasattr(row, "answer") else []),
    ]


def table_csv(rows: Sequence[Any]) -> str:
    """Rows (dataclasses of one kind) with a header; "" if there are none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([_columns(row) for row in rows[:1]])
    writer.writerows(
        [["" if x is None else f"{x:.6g}" if isinstance(x, float) else x for x in _values(r)] for r in rows]
    )
    return buffer.getvalue()


def _markdown(rows: Sequence[Any]) -> str:
    shown = lambda x: "" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x).replace("|", "\\|")
    lines = [_columns(rows[0]), ["---"] * len(_columns(rows[0])), *([shown(x) for x in _values(row)] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(outcomes: Outcomes) -> Any:
    """A row for each dataset and network: accuracy over learning rate, over epochs, and on the test set."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    setups = evidence.setups(outcomes)
    figure = Figure(figsize=(12, 3.4 * len(setups) + 0.6), layout="constrained")
    panels = figure.subplots(len(setups), 3, squeeze=False)
    names: dict[str, None] = {}
    for setup, (rates, epochs, test) in zip(setups, panels, strict=True):
        _draw_rates(rates, outcomes, setup)
        _draw_epochs(epochs, outcomes, setup)
        _draw_test(test, outcomes, setup)
        rates.set_title(f"{DATASET_NAMES[setup.dataset]}\n{evidence.network(setup)}", fontsize="medium", loc="left")
        names |= dict.fromkeys(evidence.entrants(outcomes, setup))
    handles = [Line2D([], [], label=name, **_style(name)) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(names)))
    return figure


def _style(name: str) -> dict[str, Any]:
    """Colour and marker of the optimizer; where it has settings of its own, a dash pattern that they decide."""
    settings = name.partition(", ")[2]
    line = _DASHES[sum(settings.encode()) % len(_DASHES)] if settings else "-"
    return {"color": palette.colour(name), "marker": palette.marker(name), "linestyle": line, "markersize": 5}


def _draw_rates(axes: Any, outcomes: Outcomes, setup: Setup) -> None:
    for name in evidence.entrants(outcomes, setup):
        rows = [row for row in evidence.rate_scores(outcomes) if _of(row, setup) and row.optimizer == name]
        axes.plot([r.learning_rate for r in rows], [r.validation_accuracy for r in rows], **_style(name))
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy")
    axes.grid(alpha=0.3)


def _draw_epochs(axes: Any, outcomes: Outcomes, setup: Setup) -> None:
    for name in evidence.entrants(outcomes, setup):
        if found := evidence.finals(outcomes, setup, name):
            curves = np.array([outcome.accuracy_by_epoch for _, outcome in found])
            axes.plot(range(1, curves.shape[1] + 1), curves.mean(axis=0), **_style(name))
    axes.axhline(RULES[setup.dataset].target, color="gray", linewidth=1, linestyle=":")
    axes.set(xlabel="epoch (dotted: the target)", ylabel="validation accuracy, mean")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def _draw_test(axes: Any, outcomes: Outcomes, setup: Setup) -> None:
    names = [name for name in evidence.entrants(outcomes, setup) if evidence.finals(outcomes, setup, name)]
    for i, name in enumerate(names):
        values = evidence.test_accuracies(evidence.finals(outcomes, setup, name))
        axes.plot(values, np.full(len(values), i), **(_style(name) | {"linestyle": "none", "alpha": 0.6}))
        axes.plot([values.mean()] * 2, [i - 0.3, i + 0.3], color=palette.colour(name))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(1, len(names)) - 0.5, -0.5)
    axes.set(xlabel="test accuracy: each seed, and the mean")
    axes.grid(alpha=0.3, axis="x")


def _of(row: Any, setup: Setup) -> bool:
    return (row.dataset, row.network) == (setup.dataset, evidence.network(setup))
