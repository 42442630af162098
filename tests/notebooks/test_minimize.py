"""The path that `minimize` records: against steps made by hand, when it stops, ascent, a schedule, under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gravity_optax import gravity
from helpers.minimize import minimize, power_law_decay

START = jnp.array([3.0, -2.0])
GRAVITY = gravity(0.1, key=0)
parabola = lambda w: jnp.sum(w**2)


def assert_close(path, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), path, other)


@pytest.mark.parametrize("tx", [optax.sgd(0.1, momentum=0.9), optax.adam(0.3), GRAVITY], ids=["sgd", "adam", "gravity"])
def test_every_step_is_the_step_made_by_hand(tx):
    w, state, rows = START, tx.init(START), []
    for _ in range(13):
        value, gradient = jax.value_and_grad(parabola)(w)
        update, state = tx.update(gradient, state, w)
        rows.append((w, value, jnp.linalg.norm(gradient), update))
        w = optax.apply_updates(w, update)
    positions, values, norms, updates = (np.stack(column) for column in zip(*rows, strict=True))
    path = minimize(parabola, START, tx, steps=12)
    assert_close(path[:4], (positions, values, norms, updates[:12]))


def test_it_stops_where_the_gradient_first_falls_below_the_tolerance():
    path = minimize(parabola, START, optax.sgd(0.1), steps=60, tolerance=0.01)
    expected = int(np.ceil(np.log(0.01 / (2 * np.sqrt(13))) / np.log(0.8)))  # from 2 sqrt(13), by 0.8 each step
    assert bool(path.converged) and int(path.steps_taken) == expected
    assert path.gradient_norms[expected - 1] >= 0.01 > path.gradient_norms[expected]
    np.testing.assert_array_equal(path.positions[expected:], np.tile(path.positions[expected], (61 - expected, 1)))
    assert np.all(path.updates[expected - 1] != 0) and not np.any(path.updates[expected:])


@pytest.mark.parametrize(
    ("start", "tx", "steps", "tolerance", "converged", "taken"),
    [
        (0.001, optax.sgd(0.1, momentum=0.9), 5, 1.0, True, 0),  # where momentum must not go on
        (1.0, optax.sgd(0.5), 1, 1e-3, True, 1),  # the last point counts too
        (1.0, optax.sgd(10.0), 100, 0.01, False, 100),  # diverges
        (1.0, optax.sgd(0.1), 0, 0.01, False, 0),  # too few steps
        (1.0, optax.lbfgs(), 10, 1e-4, True, 1),  # its line search is told the function
    ],
)
def test_what_counts_as_converged(start, tx, steps, tolerance, converged, taken):
    path = minimize(parabola, jnp.array([start]), tx, steps=steps, tolerance=tolerance)
    assert bool(path.converged) == converged and int(path.steps_taken) == taken
    assert path.positions.shape == (steps + 1, 1) and path.updates.shape == (steps, 1)
    if taken == 0:
        np.testing.assert_array_equal(path.positions, np.full((steps + 1, 1), np.float32(start)))


def test_fewer_than_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps is -1"):
        minimize(parabola, START, GRAVITY, steps=-1)


def test_ascent_climbs_what_descent_descends():
    up = minimize(lambda w: 5 - parabola(w), START, GRAVITY, steps=20, maximize=True)
    down = minimize(parabola, START, GRAVITY, steps=20)
    assert_close(up, down._replace(values=5 - down.values))


def test_the_step_size_follows_a_power_law():
    path = minimize(lambda w: w, jnp.float32(0), optax.sgd(power_law_decay(2.0, 0.5, 3)), steps=6)  # the gradient is 1
    np.testing.assert_allclose(-path.updates, 2 / np.sqrt(1 + np.arange(6) / 3), rtol=1e-5)


def test_vmap_over_starts_is_a_path_for_each():
    starts = jnp.array([[0.5, -0.3], [0.25, 0.1], [0.0, 0.1]])
    run = lambda start: minimize(parabola, start, GRAVITY, steps=30, tolerance=0.3)
    paths = jax.vmap(run)(starts)
    assert_close(paths, jax.tree.map(lambda *each: np.stack(each), *map(run, starts)))
    assert len(set(paths.steps_taken.tolist())) == 3  # each stops on its own


def test_the_same_function_and_optimizer_are_compiled_once():
    minimize(parabola, START, GRAVITY, steps=7, tolerance=0.5)
    before = minimize._cache_size()
    minimize(parabola, 3 * START, GRAVITY, steps=7, tolerance=0.7)
    assert minimize._cache_size() == before


def test_a_tree_of_parameters_keeps_its_tree():
    start = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    path = minimize(lambda p: jnp.sum((p["w"] + p["b"][None]) ** 2), start, optax.adam(0.1), steps=4)
    assert jax.tree.map(jnp.shape, path.positions) == {"w": (5, 2, 3), "b": (5, 3)}
    assert jax.tree.map(jnp.shape, path.updates) == {"w": (4, 2, 3), "b": (4, 3)}
