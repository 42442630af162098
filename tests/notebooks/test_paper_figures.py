"""The redrawn figures of the paper hold what its text says of them."""

import functools
import math

import jax
import numpy as np
import pytest

from helpers import paper_figures


def curves(axes):
    return {line.get_label(): np.array(line.get_data()) for line in axes.lines}


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def figure_7():
    return paper_figures.figure_7()  # trains: once


@pytest.mark.parametrize("number", range(1, 10))
def test_every_axes_of_every_figure_is_labelled(number):
    figure = figure_7() if number == 7 else getattr(paper_figures, f"figure_{number}")()
    for i, axes in enumerate(figure.axes):
        assert axes.get_xlabel() and (axes.get_ylabel() or (number == 6 and i == 1))  # the two panels share an axis
    figure.draw_without_rendering()


def test_figure_2_is_a_line_of_slope_minus_l():
    g, step = curves(paper_figures.figure_2().axes[0])["gradient descent, $l$ = 0.1"]
    np.testing.assert_allclose(step, -0.1 * g, atol=1e-7)


def test_figure_3_gravity_is_gradient_descent_for_small_gradients():
    drawn = curves(paper_figures.figure_3().axes[0])
    (g, gravity), (_, descent) = drawn["Gravity, $l$ = 0.1"], drawn["gradient descent, $l$ = 0.1"]
    small = (np.abs(g) < 0.1) & (g != 0)
    np.testing.assert_allclose(gravity[small], descent[small], rtol=0.01)
    assert np.all(np.abs(gravity) <= np.abs(descent) + 1e-7)


def test_figure_4_the_extremum_stays_at_1_whatever_the_learning_rate():
    drawn = curves(paper_figures.figure_4().axes[0])
    for rate in (0.1, 0.25):
        g, step = drawn[f"Gravity, $l$ = {rate}"]
        assert g[np.argmin(step)] == pytest.approx(1, abs=0.011)


def test_figure_5_the_largest_step_is_at_m_and_is_half_of_l_m():
    drawn = curves(paper_figures.figure_5().axes[0])
    for m in (1.25, 2.0):
        g, step = drawn[f"Gravity, $m$ = {m}"]
        assert g[np.argmin(step)] == pytest.approx(m, abs=0.011)
        assert -np.min(step) == pytest.approx(0.1 * m / 2, rel=1e-3)  # Eq. 19


def test_figure_6_gradient_descent_climbs_and_gravity_descends():
    descent, gravity = (axes.lines[1].get_ydata() for axes in paper_figures.figure_6().axes)
    assert np.all(np.diff(descent) > 0) and np.all(np.diff(gravity) < 0)


def test_figure_7_beta_hat_removes_the_initial_delay():
    drawn = curves(figure_7().axes[0])
    at = {label: y[20] for label, (_, y) in drawn.items()}
    plain = [at[f"Eq. 22, $\\beta$ = {beta}"] for beta in (0.0, 0.5, 0.9, 0.99)]
    assert plain == sorted(plain) and plain[-1] > 2 * plain[0]
    assert at["$\\hat\\beta$ and $V_0$, $\\beta$ = 0.99"] < plain[-1] / 2


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 1.0])
def test_figure_8_is_equation_26(beta):
    left, right = (curves(axes)[f"$\\beta$ = {beta}"] for axes in paper_figures.figure_8().axes)
    expected = (beta * left[0] + 1) / (left[0] + 2)
    np.testing.assert_allclose(left[1], expected, rtol=1e-5)
    np.testing.assert_allclose(right[1], 1 / (1 - expected), rtol=1e-4)


def test_figure_9_is_the_68_95_997_rule():
    labels = paper_figures.figure_9().axes[0].get_legend_handles_labels()[1]
    parts = [float(label.split(": ")[1][:-1]) for label in labels if "within" in label]
    np.testing.assert_allclose(sorted(parts), [100 * math.erf(k / math.sqrt(2)) for k in (1, 2, 3)], atol=0.3)


def test_table_2_is_the_papers():
    printed = "0.5 0.6667 0.75 0.8 0.8333 0.8571 0.875 0.8889 0.9 0.9090 0.9166 0.9230 0.9285 0.9333 0.9375 0.9411"
    for row, (t, beta_hat) in zip(paper_figures.table_2(), enumerate(printed.split()), strict=True):
        # The paper rounds some and cuts others.
        assert row[:3] == (t, pytest.approx(float(beta_hat), abs=1.01e-4), t + 2)
        assert row[3] == pytest.approx(t + 2, rel=1e-5)
