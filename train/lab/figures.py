"""The reports' figures, each a matplotlib Figure: a cell of the evaluation, and a comparison."""

import re
import textwrap
from typing import Any

import numpy as np
import pandas as pd

from lab import palette, published, tables
from lab.evidence import AT
from lab.frames import DATASET_NAMES, MODEL_NAMES, Results, by_epoch
from lab.rules import RULES

OPTIMIZER_NAMES = {"gravity": "Gravity", "adam": "Adam", "rmsprop": "RMSProp"}
PANELS = {
    "loss": "(a) training loss",
    "accuracy": "(b) training accuracy",
    "val_loss": "(c) validation loss",
    "val_accuracy": "(d) validation accuracy",
}
_FEW_EPOCHS = 20  # below this, ours would be a speck beside 100 epochs on a linear axis
_DASHES: tuple[Any, ...] = ("--", ":", "-.", (0, (1, 1)), (0, (6, 2, 1, 2, 1, 2)))
# The arms of the ablation that are drawn: their label, colour, marker and dashes.
_ARMS: dict[str, tuple[str, str, str, str]] = {
    "momentum": ("SGD with momentum", "black", "o", "-"),
    "momentum, V_0's noise": ("momentum, $V_0$'s noise", "dimgray", "s", "--"),
    "Gravity": ("Gravity", "tab:red", "v", "-"),
    "damping off": ("Gravity, damping off", "tab:orange", "^", "--"),
    "from rest": ("Gravity from rest", "tab:blue", "D", ":"),
    "Gravity, clipped": ("Gravity, clipped", "tab:green", "P", "-."),
}


def draw_cells(found: Results, dataset: str, model: str) -> Any:
    """The paper's four panels (Figures 10-19) for a dataset and a model.

    Ours are lines with the spread over seeds, the published runs dashed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    here = lambda frame: frame[(frame["dataset"] == dataset) & (frame["model"] == model) & ~frame["study"]]
    ours, theirs = here(found.epochs), here(published.epochs())
    few = len(ours) and len(theirs) and ours["epoch"].max() < _FEW_EPOCHS
    names = sorted(ours["optimizer"].unique(), key=lambda name: [*OPTIMIZER_NAMES, name].index(name))
    for axes, (metric, label) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name, run in theirs.groupby("optimizer", sort=False):
            mark = run["mark"].iloc[0]
            remark = f" ({mark}: not comparable)" if mark else ""
            style: dict[str, Any] = {"linestyle": ":" if mark else "--", "linewidth": 1.5 if mark else 1}
            style |= {"label": f"{OPTIMIZER_NAMES[name]}, published{remark}", "color": palette.colour(name)}
            axes.plot(run["epoch"], run[metric], **style)
        for name in names:
            for departures, runs in ours[ours["optimizer"] == name].groupby("departures", sort=False):
                _draw_ours(axes, name, departures, runs, metric)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        if few:
            axes.set_xscale("log")
            axes.set_xticks(tables.MATCHED_EPOCHS, tables.MATCHED_EPOCHS)
            axes.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.suptitle(f"{found.dataset_name(dataset)} on {MODEL_NAMES[model]}")
    return figure


def _draw_ours(axes: Any, name: str, departures: str, runs: pd.DataFrame, metric: str) -> None:
    """The mean at each epoch over the seeds that have reached it, and one spread on either side of two or more."""
    curve = runs.groupby("epoch")[metric].agg(["mean", "std"])  # a spread of NaN is not drawn
    seeds = runs["seed"].unique()
    remarks = ", ".join(filter(None, [f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}", departures]))
    style: dict[str, Any] = {"color": palette.colour(name), "marker": "o" if len(curve) < _FEW_EPOCHS else ""}
    label = f"{OPTIMIZER_NAMES.get(name, name)}, ours ({remarks})"
    axes.plot(curve.index, curve["mean"], label=label, markersize=4, **style)
    if len(seeds) > 1:
        low, high = curve["mean"] - curve["std"], curve["mean"] + curve["std"]
        axes.fill_between(curve.index, low, high, color=style["color"], alpha=0.25, lw=0)


def draw_comparison(runs: pd.DataFrame) -> Any:
    """A row for each dataset and network: accuracy over learning rate, over epochs, and on the test set."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    setups = [*runs.groupby("setup")]
    figure = Figure(figsize=(12, 3.4 * len(setups) + 0.6), layout="constrained")
    panels = figure.subplots(len(setups), 3, squeeze=False)
    for (_, found), (rates, curves, test) in zip(setups, panels, strict=True):
        tested: list[str] = []
        for name, its in found.groupby("optimizer", sort=False):
            scores = its[its["part"] == "search"].groupby(AT)["validation_accuracy"].mean()
            line = {"linestyle": "none"} if its["point"].any() else {}
            rates.plot(scores.index.get_level_values(0), scores, label=name, **(_style(name) | line))
            chosen = its[its["chosen"]]
            if len(values := chosen["test_accuracy"]):
                mean = by_epoch(chosen).groupby("epoch")["validation_accuracy"].mean()
                curves.plot(mean.index, mean, label=name, **_style(name))
                i, style = len(tested), _style(name) | {"linestyle": "none", "alpha": 0.6}
                test.plot(values, np.full(len(values), i), label=name, **style)
                test.plot([values.mean()] * 2, [i - 0.3, i + 0.3], color=palette.colour(name))
                tested.append(name)
        dataset = found["dataset"].iloc[0]
        title = f"{DATASET_NAMES[dataset]}\n{textwrap.fill(found['network'].iloc[0], 45)}"
        rates.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy")
        rates.set_title(title, fontsize="medium", loc="left")
        curves.axhline(RULES[dataset].target, color="gray", linewidth=1, linestyle=":")
        curves.set(xlabel="epoch (dotted: the target)", ylabel="validation accuracy, mean")
        curves.xaxis.get_major_locator().set_params(integer=True)
        test.set_yticks(range(len(tested)), tested)
        test.set(xlabel="test accuracy (line: the mean)", ylim=(max(1, len(tested)) - 0.5, -0.5))
        for axes, axis in ((rates, "both"), (curves, "both"), (test, "x")):
            axes.grid(alpha=0.3, axis=axis)
    names = [*dict.fromkeys(runs["optimizer"])]
    handles = [Line2D([], [], label=name, **_style(name)) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(names)))
    return figure


def _style(name: str) -> dict[str, Any]:
    """Colour and marker of the optimizer; where it has its own settings, a dash pattern derived from them."""
    settings = name.partition(", ")[2]
    line = _DASHES[sum(settings.encode()) % len(_DASHES)] if settings else "-"
    return {"color": palette.colour(name), "marker": palette.marker(name), "linestyle": line, "markersize": 5}


def draw_ablation(finals: pd.DataFrame, rates: pd.DataFrame) -> Any:
    """Two of the ablation's findings on the digits, for the front page.

    The MLP's training loss over Gravity's learning rate (along the cosine); each seed's test accuracy of VGG11 (at a
    constant rate), by its initial weights and with group norm.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    mlp = rates[(rates["model"] == "mlp") & rates["settings"].str.startswith("schedule=cosine")]
    row, ticks = 0, {}
    for arm, (label, colour, marker, line) in _ARMS.items():
        losses = mlp[mlp["arm"] == arm].sort_values("momentum_rate")
        style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "label": label}
        left.plot(10 * losses["momentum_rate"], losses["loss"], **style)
    for settings, name in (
        ("", "Glorot's initial weights"),
        ("init=he", "He's"),
        ("norm=group", "Glorot's, group norm"),
    ):
        right.text(0.01, row - 0.7, name, fontsize="small", style="italic")
        vgg11 = finals[(finals["model"] == "vgg11") & (finals["settings"] == settings)]
        for arm, (label, colour, marker, _) in _ARMS.items():
            values = vgg11[vgg11["arm"] == arm]["test_accuracy"]
            if values.empty:
                continue
            right.plot(values, np.full(len(values), row), marker, color=colour, alpha=0.6, markersize=5, label=label)
            right.plot([values.mean()] * 2, [row - 0.35, row + 0.35], color=colour)
            ticks[row] = label
            row += 1
        row += 1
    left.set(
        xscale="log", yscale="log", xlabel="Gravity's l; for momentum, ten times its rate", ylabel="training loss, MLP"
    )
    left.legend(fontsize="small", loc="lower left")
    right.set_yticks([*ticks], [*ticks.values()], fontsize="small")
    right.set(xlabel="test accuracy, VGG11: each seed, and the mean", xlim=(0, 1), ylim=(row - 1.2, -1.2))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def points(figure: Any) -> list[dict[str, Any]]:
    """The labelled lines of a figure that has been drawn, for the page's script: what they are and mean.

    Each point is its place in the picture, in shares of its width and height from the upper left, and its values.
    """
    found = []
    for axes in figure.axes:
        names = [re.sub(r"^\(\w\) | \(.*|[:,].*", "", label) for label in (axes.get_xlabel(), axes.get_ylabel())]
        for line in axes.lines:
            if not line.get_label().startswith("_"):
                values = np.ma.filled(line.get_xydata(), np.nan)
                values = values[np.isfinite(values).all(axis=1)]
                places = figure.transFigure.inverted().transform(line.get_transform().transform(values))
                rows = np.column_stack([places[:, 0], 1 - places[:, 1], values]).tolist()
                rounded = [[float(f"{number:.4g}") for number in row] for row in rows]
                found.append({"label": line.get_label(), "names": names, "points": rounded})
    return found
