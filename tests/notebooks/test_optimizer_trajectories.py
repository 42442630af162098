"""What only optimizer_trajectories.ipynb has: the chains of its Section 3, the circles of its Section 4."""

import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helpers import functions, plots
from helpers.minimize import minimize

NOTEBOOK = pathlib.Path(__file__).parents[2] / "notebooks" / "optimizer_trajectories.ipynb"


def run_cells(*beginnings):
    """The names that the imports of the notebook and its code cells with these beginnings define."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    imports = "\n".join(line for line in sources[0].splitlines() if line.startswith(("import ", "from ")))
    chosen = [source for beginning in beginnings for source in sources if source.startswith(beginning)]
    assert len(chosen) == len(beginnings)
    exec("\n".join([imports, *chosen]), names := {})
    return names


SECTION_3 = run_cells("chains = {", "printed = {", "memories = {")
CHAINS, MEMORIES = SECTION_3["chains"], SECTION_3["memories"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("name", "rows", "worst"),
    [
        ("sgd", 10, 2.5e-5),
        ("momentum", 9, 0),  # all its numbers are short binary fractions
        ("nesterov", 7, 1.5e-5),
        ("adagrad", 2, 5.8e-5),  # the teaching notebook rounds the states and points of this and the next two
        ("rmsprop", 5, 2e-4),
        ("adam", 1, 1.2e-3),
    ],
)
def test_a_chain_agrees_with_what_the_teaching_notebook_printed(name, rows, worst):
    points = SECTION_3["printed"][name]
    path = minimize(functions.TILTED, jnp.zeros(2), CHAINS[name], steps=len(points))
    errors = np.max(np.abs(path.positions[1:] - points), axis=1)
    assert np.argmin(np.append(errors < 0.5e-4 * (1 + 1e-9), False)) == rows  # that agree to four decimals
    assert 0.9 * worst <= errors.max() <= worst


def steps(tx, gradients):
    state, updates = tx.init(jnp.zeros(2)), []
    for gradient in gradients:
        update, state = tx.update(jnp.asarray(gradient), state)
        updates.append(update)
    return np.array(updates)


def test_adam_adds_its_epsilon_before_the_bias_is_corrected_and_rmsprop_outside_the_root():
    small = np.random.default_rng(0).normal(size=(6, 2)) * 1e-6  # enough for the notebook's 1e-7 to be seen
    m = v = h = 0.0
    adam, rmsprop = [], []
    for t, g in enumerate(small, 1):
        m, v, h = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, 0.75 * h + 0.25 * g**2
        adam.append(-0.9 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / np.sqrt(v + 1e-7))
        rmsprop.append(-0.9 * g / (np.sqrt(h) + 1e-7))
    np.testing.assert_allclose(steps(CHAINS["adam"], small), adam, rtol=1e-6)
    np.testing.assert_allclose(steps(CHAINS["rmsprop"], small), rmsprop, rtol=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
def test_the_gradient_memory_is_a_running_mean_and_a_running_mean_square(unbiased):
    gradients = np.random.default_rng(1).normal(size=(8, 2))
    mean = square = 0.0
    means, normalized = [], []
    for t, g in enumerate(gradients, 1):
        mean, square = 0.9 * mean + 0.1 * g, 0.8 * square + 0.2 * g**2
        means.append(mean / (1 - 0.9**t if unbiased else 1))
        normalized.append(g / (np.sqrt(square / (1 - 0.8**t if unbiased else 1)) + 1e-8))
    np.testing.assert_allclose(steps(MEMORIES["mean"](0.9, unbiased), gradients), means, rtol=1e-12)
    np.testing.assert_allclose(steps(MEMORIES["normalized"](0.8, unbiased), gradients), normalized, rtol=1e-12)
    np.testing.assert_array_equal(steps(MEMORIES["normalized"](0.0, unbiased), gradients), gradients)  # as they are


@pytest.mark.slow
def test_the_boundary_animation_ends_with_what_the_classifiers_have_learnt():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):  # flax's layers raise ranks
        cells = run_cells("circles = ", "ticks = ")
        animation = plots.animate(cells["figure"], cells["show"], steps=200, frames=2)
        for step in animation.new_frame_seq():
            animation._func(step)
            for name, axes in cells["panels"].items():
                params = jax.tree.map(lambda leaf, step=step: leaf[step], cells["learned"][name])
                assert axes.get_title() == f"{name}: {cells['accuracy'](params):.3f}"
                assert (axes.get_xlabel(), axes.get_ylabel()) == ("$x$", "$y$")
                if step == 200:
                    assert cells["accuracy"](params) > 0.95
                    probability = axes.images[0].get_array()
                    middle, edge = probability[40, 40], probability[0, 0]  # the inner circle is class 1
                    assert middle > 0.9 and edge < 0.1
        assert Image.open(io.BytesIO(plots.gif(animation, dpi=30))).n_frames == 2
