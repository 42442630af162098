"""The plots: what is drawn is where the optimizers went, axes are labelled, colours can be told apart."""

import io
import itertools

import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import optax
import pytest
from PIL import Image

from gravity_optax import gravity
from helpers import functions, plots
from helpers.minimize import minimize
from lab import palette

OPTIMIZERS = {"sgd": optax.sgd(0.1), "adam": optax.adam(0.2), "gravity": gravity(0.1, key=0)}


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def drawn(line, view):
    return np.array(line.get_data_3d() if view == "surface" else line.get_data())


every_view = pytest.mark.parametrize("view", ["contour", "surface"])


@every_view
def test_each_line_is_the_path_of_its_optimizer(view):
    (axes,) = plots.paths(functions.BOWL, OPTIMIZERS, steps=12, view=view).axes
    assert list(lines(axes)) == list(OPTIMIZERS)
    for label, tx in OPTIMIZERS.items():
        path = minimize(functions.BOWL, jnp.array(functions.BOWL.start), tx, steps=12)
        coordinates = (*path.positions.T, path.values)[: 3 if view == "surface" else 2]
        np.testing.assert_allclose(drawn(lines(axes)[label], view), coordinates, rtol=1e-5, atol=1e-6)
        assert lines(axes)[label].get_color() == palette.COLOURS[label]


@every_view
@pytest.mark.parametrize("function", [functions.BOWL, functions.ROSENBROCK], ids=["bowl", "log levels"])
def test_axes_are_labelled_and_titled(function, view):
    figure = plots.paths(function, {}, steps=1, view=view)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("$x$", "$y$", f"${function.formula}$")
    assert np.allclose(axes.get_xlim(), function.x_range) and np.allclose(axes.get_ylim(), function.y_range)
    if view == "surface":
        assert axes.get_zlabel() == ("$\\log_{10}(f + 0.01)$" if function.log_levels else "$f(x, y)$")


def test_the_legend_names_every_optimizer_and_a_remark_is_dashed():
    figure = plots.paths(functions.BOWL, {"gravity": OPTIMIZERS["gravity"], "gravity, slow": gravity(0.01, key=0)})
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["gravity", "gravity, slow"]
    one, other = lines(figure.axes[0]).values()
    assert (one.get_linestyle(), other.get_linestyle()) == ("-", "--") and one.get_color() == other.get_color()


@every_view
def test_a_path_that_diverges_is_drawn_as_far_as_the_picture_goes(view):
    # Each step takes x by -9: beyond a million after 6 steps, beyond the picture after 1.
    figure = plots.paths(functions.BOWL, {"sgd": optax.sgd(5.0)}, steps=200, view=view)
    x = drawn(lines(figure.axes[0])["sgd"], view)[0]
    np.testing.assert_allclose(x[np.isfinite(x)], -4 * (-9.0) ** np.arange(1 if view == "surface" else 6))
    figure.draw_without_rendering()


def test_the_animation_shows_ever_more_of_the_paths_from_the_start_to_the_last_step():
    animation = plots.animate_paths(functions.TILTED, OPTIMIZERS, steps=10, frames=3)
    (axes,) = animation._fig.axes
    seen = []
    for step in animation.new_frame_seq():
        animation._func(step)
        seen.append({len(line.get_xdata()) for line in lines(axes).values()})
        assert axes.get_title().endswith(f", step {step}")
    assert seen == [{1}, {6}, {11}]
    image = Image.open(io.BytesIO(plots.gif(animation, dpi=40)))
    assert (image.format, image.n_frames) == ("GIF", 3)
    assert plots.html(animation, "a path", dpi=30).startswith('<img alt="a path" src="data:image/gif;base64,R0lGOD')


# What a dichromat sees of linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1).
VISIONS = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour):
    c = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def cielab(linear_rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear_rgb
    xyz = xyz / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_any_two_colours_can_be_told_apart(vision):
    seen = [cielab(np.clip(VISIONS[vision] @ linear(colour), 0, 1)) for colour in palette.COLOURS.values()]
    closest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert closest > 15  # in CIE Lab, where 2.3 is just noticeable


def test_every_colour_stands_out_from_white_and_every_marker_is_its_own():
    luminances = [np.dot([0.2126, 0.7152, 0.0722], linear(colour)) for colour in palette.COLOURS.values()]
    assert 1.05 / (max(luminances) + 0.05) > 1.74
    assert len(set(palette.MARKERS.values())) == len(palette.COLOURS)
    with pytest.raises(ValueError, match="'sdg'"):
        palette.colour("sdg, slow")
