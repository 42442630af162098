"""The redrawn figures of the paper hold what its text says of them."""

import functools
import math

import numpy as np
import pytest

from helpers import paper_figures


@functools.cache
def figure(number):
    return getattr(paper_figures, f"figure_{number}")()  # the seventh trains


def curves(number, panel=0):
    return {line.get_label(): np.array(line.get_data()) for line in figure(number).axes[panel].lines}


@pytest.mark.parametrize("number", range(1, 10))
def test_every_axes_of_every_figure_is_labelled(number):
    for i, axes in enumerate(figure(number).axes):
        assert axes.get_xlabel() and (axes.get_ylabel() or (number == 6 and i == 1))  # the two panels share an axis
    figure(number).draw_without_rendering()


def test_figure_3_gravity_is_gradient_descent_for_small_gradients():
    (g, gravity), (_, descent) = curves(3)["Gravity, $l$ = 0.1"], curves(3)["gradient descent, $l$ = 0.1"]
    np.testing.assert_allclose(descent, -0.1 * g, atol=1e-7)
    small = (np.abs(g) < 0.1) & (g != 0)
    np.testing.assert_allclose(gravity[small], descent[small], rtol=0.01)
    assert np.all(np.abs(gravity) <= np.abs(descent) + 1e-7)


@pytest.mark.parametrize(
    ("number", "label", "rate", "m"),
    [
        (4, "$l$ = 0.1", 0.1, 1),
        (4, "$l$ = 0.25", 0.25, 1),  # whatever the learning rate
        (5, "$m$ = 1.25", 0.1, 1.25),
        (5, "$m$ = 2.0", 0.1, 2),
    ],
)
def test_the_largest_step_is_at_m_and_is_half_of_l_m(number, label, rate, m):
    g, step = curves(number)[f"Gravity, {label}"]
    assert g[np.argmin(step)] == pytest.approx(m, abs=0.011)
    assert -np.min(step) == pytest.approx(rate * m / 2, rel=1e-3)  # Eq. 19


def test_figure_6_gradient_descent_climbs_and_gravity_descends():
    descent, gravity = (axes.lines[1].get_ydata() for axes in figure(6).axes)
    assert np.all(np.diff(descent) > 0) and np.all(np.diff(gravity) < 0)


def test_figure_7_beta_hat_removes_the_initial_delay():
    at = {label: y[20] for label, (_, y) in curves(7).items()}
    plain = [at[f"Eq. 22, $\\beta$ = {beta}"] for beta in (0.0, 0.5, 0.9, 0.99)]
    assert plain == sorted(plain) and plain[-1] > 2 * plain[0]
    assert at["$\\hat\\beta$ and $V_0$, $\\beta$ = 0.99"] < plain[-1] / 2


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 1.0])
def test_figure_8_is_equation_26(beta):
    (t, beta_hat), (_, averaged) = (curves(8, panel)[f"$\\beta$ = {beta}"] for panel in (0, 1))
    expected = (beta * t + 1) / (t + 2)
    np.testing.assert_allclose(beta_hat, expected, rtol=1e-5)
    np.testing.assert_allclose(averaged, 1 / (1 - expected), rtol=1e-4)


def test_figure_9_is_the_68_95_997_rule():
    labels = figure(9).axes[0].get_legend_handles_labels()[1]
    parts = [float(label.split(": ")[1][:-1]) for label in labels if "within" in label]
    np.testing.assert_allclose(sorted(parts), [100 * math.erf(k / math.sqrt(2)) for k in (1, 2, 3)], atol=0.3)


def test_table_2_is_the_papers():
    printed = "0.5 0.6667 0.75 0.8 0.8333 0.8571 0.875 0.8889 0.9 0.9090 0.9166 0.9230 0.9285 0.9333 0.9375 0.9411"
    for row, (t, beta_hat) in zip(paper_figures.table_2(), enumerate(printed.split()), strict=True):
        # The paper rounds some and cuts others.
        assert row[:3] == (t, pytest.approx(float(beta_hat), abs=1.01e-4), t + 2)
        assert row[3] == pytest.approx(t + 2, rel=1e-5)
