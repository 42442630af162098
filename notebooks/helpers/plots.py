"""Where optimizers go on functions of two variables: figures and animations, one call each.

`optimizers` is always a mapping from labels to optax optimizers. A label is a name of `palette.COLOURS`, which gives
its colour, or "name, remark", drawn dashed.
"""

import base64
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from helpers import functions
from helpers.minimize import minimize
from lab import palette

Optimizers = Mapping[str, optax.GradientTransformation]
View = Literal["contour", "surface"]


def paths(
    function: functions.Landscape,
    optimizers: Optimizers,
    *,
    steps: int = 100,
    view: View = "contour",
) -> Figure:
    """Each optimizer's path over the function, from the function's start, as a figure of one axes.

    Each path is a line of steps + 1 points with a marker at its end. On a surface, points outside the function's ranges
    are left out.
    """
    figure, axes = _landscape(function, view)
    lines = _lines(axes, optimizers)
    for label, points in _follow(function, optimizers, steps, view).items():
        _set(lines[label], points)
    figure.legend(handles=list(lines.values()), loc="outside right upper", frameon=False)
    return figure


def animate_paths(
    function: functions.Landscape,
    optimizers: Optimizers,
    *,
    steps: int = 100,
    view: View = "contour",
    frames: int = 40,
) -> FuncAnimation:
    """The figure of `paths`, growing from the start to the last step in `frames` frames."""
    figure, axes = _landscape(function, view)
    lines = _lines(axes, optimizers)
    figure.legend(handles=list(lines.values()), loc="outside right upper", frameon=False)
    followed = _follow(function, optimizers, steps, view)
    title = axes.get_title()

    def show(step: int) -> None:
        axes.set_title(f"{title}, step {step}")
        for label, points in followed.items():
            _set(lines[label], points[: step + 1])

    return animate(figure, show, steps=steps, frames=frames)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, whose layout follows what is drawn."""
    figure = Figure(figsize=(width, height), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def animate(figure: Figure, show: Callable[[int], None], *, steps: int = 100, frames: int = 40) -> FuncAnimation:
    """An animation of at most `frames` frames; `show` draws one of the steps 0 to `steps` in the figure.

    The layout is that of the last step: finding it takes longer than drawing.
    """
    show(steps)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    shown = sorted({round(steps * i / (frames - 1)) for i in range(frames)})
    return FuncAnimation(figure, show, frames=shown, interval=120, init_func=lambda: None)


def gif(animation: FuncAnimation, dpi: int = 60) -> bytes:
    """The animation as a GIF that repeats."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "animation.gif"
        animation.save(path, writer=PillowWriter(fps=8), dpi=dpi)
        return path.read_bytes()


def html(animation: FuncAnimation, alt: str, dpi: int = 60) -> str:
    """An HTML element that holds the animation as a GIF, for notebooks; `alt` describes what it shows."""
    return f'<img alt="{alt}" src="data:image/gif;base64,{base64.b64encode(gif(animation, dpi)).decode()}">'


def _landscape(function: functions.Landscape, view: View) -> tuple[Figure, Any]:
    """The function's contours or surface, with its minima, and labelled axes."""
    figure = new_figure(7.0, 4.6)
    x, y, values = (np.asarray(a) for a in functions.grid(function))
    heights, height_label = _heights(function, values)
    minima = np.array([*function.minima], np.float32)
    if view == "surface":
        axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
        axes.plot_surface(*np.meshgrid(x, y), heights, cmap="Greys", alpha=0.45, rcount=40, ccount=40, zorder=1)
        at_minima = _heights(function, np.asarray(function(jnp.asarray(minima))))[0]
        axes.plot(*minima.T, at_minima, "*", color="0.35", markersize=10, zorder=2)
        axes.set_zlabel(height_label)
        axes.view_init(elev=35, azim=-60)
    else:
        axes = figure.add_subplot()
        axes.contour(x, y, heights, levels=12, colors="0.8", linewidths=0.8)
        axes.plot(*minima.T, "*", color="0.35", markersize=10)
    axes.set(xlabel="$x$", ylabel="$y$", xlim=function.x_range, ylim=function.y_range, title=f"${function.formula}$")
    return figure, axes


def _heights(function: functions.Landscape, values: np.ndarray) -> tuple[np.ndarray, str]:
    """What is drawn for the function's values, with the label of its axis."""
    if function.log_levels:  # all such functions have their minimum at 0
        return np.log10(values + 1e-2), "$\\log_{10}(f + 0.01)$"
    return values, "$f(x, y)$"


def _follow(function: functions.Landscape, optimizers: Optimizers, steps: int, view: View) -> dict[str, np.ndarray]:
    """For each optimizer the coordinates to draw, (steps + 1, 2 or 3), NaN for points that cannot be drawn."""
    followed = {}
    for label, tx in optimizers.items():
        path = minimize(function, jnp.array(function.start), tx, steps=steps)
        points, values = np.asarray(path.positions, np.float64), np.asarray(path.values, np.float64)
        if view == "surface":
            points = np.column_stack([points, _heights(function, values)[0]])
            low, high = np.transpose([function.x_range, function.y_range])
            points[np.any((points[:, :2] < low) | (points[:, :2] > high), axis=1)] = np.nan
        points[~np.all(np.abs(points) < 1e6, axis=1)] = np.nan  # far outside the axes, or not finite
        followed[label] = points
    return followed


def _lines(axes: Any, labels: Iterable[str]) -> dict[str, Any]:
    """An empty line for each optimizer, with a marker at its end. Gravity's lies on top."""
    three_d = hasattr(axes, "zaxis")
    return {
        label: axes.plot(
            *([],) * (3 if three_d else 2),
            label=label,
            color=palette.colour(label),
            linestyle="--" if "," in label else "-",
            linewidth=1.6,
            marker=palette.marker(label),
            markevery=[-1],
            markersize=6,
            zorder=4 if label.startswith("gravity") else 3,
        )[0]
        for label in labels
    }


def _set(line: Any, points: np.ndarray) -> None:
    if points.shape[1] == 3:
        line.set_data_3d(*points.T)
    else:
        line.set_data(*points.T)
