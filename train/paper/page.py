"""The report: our runs beside the published ones.

Writes RESULTS/report.html, one self-contained page, and under RESULTS/report/ its figures (PNG) and tables (Markdown
and CSV). What has not been run yet is listed as missing.
"""

import base64
import functools
import html
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from paper import formats, palette, published, results, tables
from paper.results import DATASET_NAMES, MODEL_NAMES, RecordedRun, Results
from paper.tables import TARGETS
from trainer import pictures

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
    pairs = [(dataset, model) for dataset, models in _models(found.runs).items() for model in models]
    figures = {}
    for dataset, model in pairs:
        name = f"{dataset}_{model}.png"
        if picture := pictures.png(name, functools.partial(draw, found, dataset, model)):
            figures[dataset, model] = picture
            (folder / name).write_bytes(picture)
    named = all_tables(found)
    for name, table in named.items():
        (folder / f"{name}.md").write_text(table.markdown())
        (folder / f"{name}.csv").write_text(table.csv())
    page = found.path / "report.html"
    page.write_text(render(found, named, figures))
    return page


def all_tables(found: Results) -> dict[str, formats.Table]:
    """The report's tables by the names of their files."""
    named = {
        f"summary_{dataset}": formats.table(formats.SUMMARY, tables.summary(dataset, found.runs), TARGETS[dataset])
        for dataset in _models(found.runs)
    }
    named["distance"] = formats.table(formats.DISTANCE, tables.distance(found.runs))
    named["missing"] = formats.table(formats.MISSING, tables.missing(found.runs))
    named["published"] = formats.table(formats.PUBLISHED, tables.published_ends())
    if found.study:
        named["study"] = formats.table(formats.STUDY, tables.study(found.study))
    return named


def _models(runs: Sequence[RecordedRun]) -> dict[str, list[str]]:
    """The models by dataset: the paper's, and others that were run."""
    pairs = {cell[:2] for cell in published.load()} | {(run.dataset, run.model) for run in runs}
    models = {dataset: sorted(model for of, model in pairs if of == dataset) for dataset in DATASET_NAMES}
    return {dataset: names for dataset, names in models.items() if names}


def draw(found: Results, dataset: str, model: str) -> Any:
    """A matplotlib Figure of the paper's four panels (Figures 10-19).

    Ours are lines with the spread over seeds, the published runs dashed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
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


def png(figure: Any, dpi: int = 100) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
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
    statistics = [tables.mean_and_spread(tables.values_at(group, metric, int(epoch))) for epoch in epochs]
    means, spreads = np.array(statistics, float).T  # a spread of None is NaN, which is not drawn
    seeds = f"{len(group)} seeds" if len(group) > 1 else f"seed {group[0].seed}"
    remarks = ", ".join([seeds, *formats.texts(group[0].departures)])
    colour = palette.colour(group[0].optimizer)
    marker = "o" if len(epochs) < _FEW_EPOCHS else ""
    label = f"{_name(group[0].optimizer)}, ours ({remarks})"
    axes.plot(epochs, means, color=colour, label=label, marker=marker, markersize=4)
    if len(group) > 1:
        axes.fill_between(epochs, means - spreads, means + spreads, color=colour, alpha=0.25, lw=0)


def _name(optimizer: str) -> str:
    return OPTIMIZER_NAMES.get(optimizer, optimizer)


def render(found: Results, named: dict[str, formats.Table], figures: dict[tuple[str, str], bytes]) -> str:
    """The page, with `figures` (PNG) by dataset and model."""
    body = ["<h1>Gravity: the paper's evaluation, run again</h1>", _introduction(found, named["missing"])]
    caption = "Validation accuracy after 100 epochs, and its standard deviation over the last 50 (swing)"
    body.append(f"<h2>What was published</h2>{_table(named['published'], caption)}")
    for dataset in _models(found.runs):
        body.append(f"<h2>{_text(found.dataset_name(dataset))}</h2>")
        body += [_figure(found, dataset, model, png) for (of, model), png in figures.items() if of == dataset]
        caption = "Our runs so far, and the published ones at their end"
        body.append(_table(named[f"summary_{dataset}"], caption))
        body.append(_distance([run for run in found.runs if run.dataset == dataset]))
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


def claim() -> str:
    """What the 20-way run means for the paper's claim, in two sentences."""
    final = {cell: float(run.history["val_accuracy"][-1]) for cell, run in published.load().items()}
    gravity, adam, rmsprop = (final["cifar100_fine", "vgg16", name] for name in OPTIMIZER_NAMES)
    gravity_19, adam_19, _ = (final["cifar100_fine", "vgg19", name] for name in OPTIMIZER_NAMES)
    return (
        "The abstract's strongest claim, greater validation accuracy on datasets with more classes such as CIFAR-100"
        f" (fine), rests on Figure 19 ({gravity_19:.3f} for Gravity, {adam_19:.3f} for Adam, with VGG19). There"
        " Gravity's run had 20 outputs and the others 100, so the figure compares different tasks. What remains of the"
        f" claim is VGG16 ({gravity:.3f} for Gravity, {adam:.3f} for Adam, {rmsprop:.3f} for RMSProp): one run each,"
        f" which cannot say whether a lead of {gravity - max(adam, rmsprop):.3f} is more than two seeds differ by."
    )


def agreement(runs: Sequence[RecordedRun]) -> str:
    """How many of our means lie within two of our own spreads of the published values, and which do not."""
    compared = [row for row in tables.distance(runs) if row.in_spreads is not None]
    outside = tables.beyond(compared, 2)
    if not compared:
        return "No cell has two seeds, so there is no spread to hold the distance from the published runs against."
    text = (
        f"At the matched epochs, {len(compared) - len(outside)} of {len(compared)} means over our seeds lie within two"
        " of our own spreads of the published value (a cell with one seed has no spread)."
    )
    cells: dict[str, list[str]] = {}
    for row in outside:
        cell = f"{_name(row.optimizer)}, {MODEL_NAMES[row.model]}, {DATASET_NAMES[row.dataset]}, epoch {row.epoch}"
        cells.setdefault(cell, []).append(f"{row.metric} {row.ours:.4g} for {row.published:.4g}")
    others = "; ".join(f"{cell}: {', '.join(values)}" for cell, values in cells.items())
    return f"{text} The others, ours for theirs: {others}." if others else text


def _introduction(found: Results, missing: formats.Table) -> str:
    cells = len(published.load())
    machines = sorted({_machine(run) for run in (*found.runs, *found.study)})
    parts = [
        "<p>The evaluation of <i>Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning</i> (Bahrami"
        " and Pouriyan Zadeh, arXiv 2101.09192), beside the runs that its authors published.</p>",
        f"<p>{cells - len(missing.rows)} of the paper's {cells} cells are complete; a cell is one dataset, model and"
        f" optimizer.{' The last section lists what is missing.' if missing.rows else ''}</p>",
        f"<p class='warning'>{_text(claim())} That 20-way run is dotted here and compared with nothing.</p>",
        "<p class='note'>Ours: solid lines, the mean over seeds, with a band of one standard deviation (n - 1) on"
        " either side where there are at least two seeds. Published: dashed lines, one run each. Spread: the standard"
        " deviation of our own runs; with one seed it is not available. Loss is the training loss, a running mean over"
        " the epoch.</p>",
    ]
    if found.runs:
        parts.append(f"<p class='note'>{_text(agreement(found.runs))}</p>")
    if machines:
        parts.append(f"<p class='note'>Run on: {_text('; '.join(machines))}.</p>")
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


def _distance(runs: Sequence[RecordedRun]) -> str:
    """At the last matched epoch of each run in the open, at the others a click away."""
    if not (rows := tables.distance(runs)):
        return "<p class='note'>No run of ours can be compared with a published one.</p>"
    last, every = (formats.table(formats.DISTANCE, some) for some in (tables.at_the_end(rows), rows))
    return (
        _table(last, "Distance from the published runs, at the last epoch that both have")
        + f"<details><summary>At all matched epochs</summary>{_table(every, 'At all matched epochs')}</details>"
    )


def _table(table: formats.Table, caption: str) -> str:
    head = "".join(f"<th scope='col'>{_text(name)}</th>" for name in table.columns)
    rows = "\n".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in table.rows)
    return (
        f"<div class='table'><table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(value: formats.Value) -> str:
    return f"<td{'' if isinstance(value, str) else ' class=number'}>{_text(formats.shown(value))}</td>"


def _text(text: str) -> str:
    return html.escape(text)
