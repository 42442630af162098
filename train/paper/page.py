"""The report: our runs beside the published ones.

Writes RESULTS/report.html, one page that needs nothing else, and under RESULTS/report/ its figures (PNG) and tables
(Markdown and CSV). What has not been run yet is listed as missing.
"""

import base64
import html
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from paper import palette, published, results, tables
from paper.results import DATASET_NAMES, MODEL_NAMES, RecordedRun, Results

OPTIMIZER_NAMES = {"gravity": "Gravity", "adam": "Adam", "rmsprop": "RMSProp"}
PANELS = {
    "loss": "(a) training loss",
    "accuracy": "(b) training accuracy",
    "val_loss": "(c) validation loss",
    "val_accuracy": "(d) validation accuracy",
}
_FEW_EPOCHS = 20  # below this, ours would be a speck beside 100 epochs on a linear axis
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; color: #1a1a1a;
       background: #fff; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #444; font-size: .9rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
td.number { text-align: right; } thead th { border-bottom: 2px solid #888; }
.warning { border-left: 4px solid #d55e00; padding: .3rem .8rem; background: #fdf3ec; }
"""


def write(found: Results) -> pathlib.Path:
    """Writes figures, tables and the page, and returns the page's path."""
    folder = found.path / "report"
    folder.mkdir(exist_ok=True)
    sections = []
    for dataset, model in _pairs(found.runs):
        picture = png(draw(found, dataset, model))
        (folder / f"{dataset}_{model}.png").write_bytes(picture)
        sections.append((dataset, model, picture))
    named = all_tables(found)
    for name, table in named.items():
        (folder / f"{name}.md").write_text(table.markdown())
        (folder / f"{name}.csv").write_text(table.csv())
    page = found.path / "report.html"
    page.write_text(render(found, named, sections))
    return page


def all_tables(found: Results) -> dict[str, tables.Table]:
    """The report's tables by the names of their files."""
    named = {f"summary_{dataset}": tables.summary(dataset, found.runs) for dataset in _datasets(found.runs)}
    named |= {"distance": tables.distance(found.runs), "missing": tables.missing(found.runs)}
    named["published"] = tables.published_finals()
    return named | ({"study": tables.study(found.study)} if found.study else {})


def _datasets(runs: Sequence[RecordedRun]) -> list[str]:
    """The paper's, and others that were run, in a fixed order."""
    return [d for d in DATASET_NAMES if d in published.CLASSES or any(run.dataset == d for run in runs)]


def _pairs(runs: Sequence[RecordedRun]) -> list[tuple[str, str]]:
    """The paper's ten (dataset, model), and others that were run."""
    theirs = {cell[:2] for cell in published.load()}
    found = theirs | {(run.dataset, run.model) for run in runs}
    return sorted(found, key=lambda pair: ([*DATASET_NAMES].index(pair[0]), pair[1]))


def draw(found: Results, dataset: str, model: str) -> Figure:
    """The paper's four panels (Figures 10-19): ours as lines with the spread over seeds, the published runs dashed."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    groups = results.grouped([run for run in found.runs if (run.dataset, run.model) == (dataset, model)])
    groups.sort(key=lambda group: [*OPTIMIZER_NAMES, group[0].optimizer].index(group[0].optimizer))
    theirs = [run for run in published.load().values() if (run.dataset, run.model) == (dataset, model)]
    few = bool(groups and theirs) and max(map(tables.furthest, groups)) < _FEW_EPOCHS
    for axes, (metric, label) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for run in theirs:
            _draw_published(axes, run, metric)
        for group in groups:
            _draw_ours(axes, group, metric)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        if few:
            axes.set_xscale("log")
            axes.set_xticks(tables.MATCHED_EPOCHS, tables.MATCHED_EPOCHS)
            axes.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.suptitle(f"{found.dataset_name(dataset)} on {MODEL_NAMES[model]}")
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _draw_published(axes: Any, run: published.PublishedRun, metric: str) -> None:
    label = f"{_name(run.optimizer)}, published"
    style: dict[str, Any] = {"linestyle": "--", "linewidth": 1}
    if run.mark:
        label += f" ({run.mark}: not comparable)"
        style = {"linestyle": ":", "linewidth": 1.5}
    axes.plot(run.history["epoch"], run.history[metric], color=palette.colour(run.optimizer), label=label, **style)


def _draw_ours(axes: Any, group: Sequence[RecordedRun], metric: str) -> None:
    """The mean at each epoch over the seeds that have reached it, and one spread on either side of two or more."""
    epochs = np.arange(1, tables.furthest(group) + 1)
    values = [tables.values_at(group, metric, int(epoch)) for epoch in epochs]
    means = np.array([np.mean(v) for v in values])
    remarks = "".join(f", {text}" for text in group[0].departures)
    seeds = f"{len(group)} seeds" if len(group) > 1 else f"seed {group[0].seed}"
    colour = palette.colour(group[0].optimizer)
    marker = "o" if len(epochs) < _FEW_EPOCHS else ""
    label = f"{_name(group[0].optimizer)}, ours ({seeds}{remarks})"
    axes.plot(epochs, means, color=colour, label=label, marker=marker, markersize=4)
    several = np.array([len(v) > 1 for v in values])
    spreads = np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values])
    if several.any():
        axes.fill_between(epochs, means - spreads, means + spreads, where=several, color=colour, alpha=0.25, lw=0)


def _name(optimizer: str) -> str:
    return OPTIMIZER_NAMES.get(optimizer, optimizer)


def render(found: Results, named: dict[str, tables.Table], figures: Sequence[tuple[str, str, bytes]]) -> str:
    """The page; `figures` are (dataset, model, PNG)."""
    body = ["<h1>Gravity: the paper's evaluation, run again</h1>", _introduction(found, named["missing"])]
    caption = "Validation accuracy after 100 epochs, and its standard deviation over the last 50 (swing)"
    body.append(f"<h2>What was published</h2>{_table(named['published'], caption)}")
    for dataset in _datasets(found.runs):
        body.append(f"<h2>{_text(found.dataset_name(dataset))}</h2>")
        for of, model, png in figures:
            if of == dataset:
                body.append(_figure(found, dataset, model, png))
        caption = "Where the runs stand, and the published ones at their end"
        body.append(_table(named[f"summary_{dataset}"], caption))
        body.append(_distance(named["distance"], dataset))
    body.append("<h2>The authors' tuning study</h2>")
    body.append(_table(named["study"], "Ours beside theirs") if "study" in named else "<p>Not run.</p>")
    body.append("<h2>What is missing</h2>")
    body.append(_table(named["missing"], "Cells without a complete run of ours") if named["missing"].rows else "")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Gravity: the paper's evaluation</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _introduction(found: Results, missing: tables.Table) -> str:
    cells = len(published.load())
    machines = sorted({_machine(run) for run in (*found.runs, *found.study)})
    parts = [
        "<p>The evaluation of <i>Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning</i> (Bahrami"
        " and Pouriyan Zadeh, arXiv 2101.09192), beside the runs that its authors published.</p>",
        f"<p>{cells - len(missing.rows)} of the paper's {cells} cells are complete"
        f"{'; the last section says what is missing' if missing.rows else ''}.</p>",
        f"<p class='warning'>{_text(tables.claim())} That 20-way run is dotted here and compared with nothing.</p>",
        "<p class='note'>Ours: lines, the mean over seeds, with one standard deviation (n - 1) on either side where"
        " there are at least two seeds. Published: dashed, one run each. Spread: that standard deviation, of our own"
        " runs only; with one seed it is not available. Loss is the training loss, a running mean over the epoch.</p>",
    ]
    if machines:
        parts.append(f"<p class='note'>RecordedRun on: {_text('; '.join(machines))}.</p>")
    parts += [f"<p class='note'>{_text(found.about[key])}</p>" for key in ("machine", "notes") if key in found.about]
    return "\n".join(parts)


def _machine(run: RecordedRun) -> str:
    """The devices and the versions that count, as config.json has them."""
    devices = run.config.get("devices", [])
    kinds = ", ".join(f"{devices.count(kind)} x {kind}" for kind in sorted(set(devices))) or "unknown devices"
    versions = run.config.get("versions", {})
    return f"{kinds} with jax {versions.get('jax', 'unknown')}, {run.config.get('precision', 'unknown precision')}"


def _figure(found: Results, dataset: str, model: str, png: bytes) -> str:
    what = f"{found.dataset_name(dataset)} on {MODEL_NAMES[model]}"
    source = base64.b64encode(png).decode()
    alt = f"{what}: training and validation loss and accuracy over the epochs, ours and published"
    return f"<figure><img src='data:image/png;base64,{source}' alt='{_text(alt)}'></figure>"


def _distance(table: tables.Table, dataset: str) -> str:
    """At the last matched epoch of each cell in the open, at the others a click away."""
    every = tables.Table(table.columns, [row for row in table.rows if row[0] == dataset])
    if not every.rows:
        return "<p class='note'>No run of ours that can be held against a published one.</p>"
    return (
        _table(tables.at_the_end(every), "Distance from the published runs, at the last epoch that both have")
        + f"<details><summary>At all matched epochs</summary>{_table(every, 'At all matched epochs')}</details>"
    )


def _table(table: tables.Table, caption: str) -> str:
    head = "".join(f"<th scope='col'>{_text(name)}</th>" for name in table.columns)
    rows = "\n".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in table.rows)
    return (
        f"<div class='table'><table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(value: tables.Value) -> str:
    return f"<td{'' if isinstance(value, str) else ' class=number'}>{_text(tables.shown(value))}</td>"


def _text(text: str) -> str:
    return html.escape(text)
