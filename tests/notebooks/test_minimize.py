"""The path that `minimize` records: against steps made by hand, when it stops, ascent, schedules, under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gravity_optax import gravity
from helpers.minimize import minimize, power_law_decay

START = jnp.array([3.0, -2.0])
GRAVITY = gravity(0.1, key=0)


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        yield


def parabola(w):
    return jnp.sum(w**2)


def by_hand(function, w, tx, steps):
    state, rows = tx.init(w), []
    for _ in range(steps):
        value, gradient = jax.value_and_grad(function)(w)
        update, state = tx.update(gradient, state, w)
        rows.append((w, value, jnp.linalg.norm(gradient), update))
        w = optax.apply_updates(w, update)
    return [np.stack(column) for column in zip(*rows, strict=True)], w


@pytest.mark.parametrize("tx", [optax.sgd(0.1, momentum=0.9), optax.adam(0.3), GRAVITY], ids=["sgd", "adam", "gravity"])
def test_every_step_is_the_step_made_by_hand(tx):
    path = minimize(parabola, START, tx, steps=12)
    (positions, values, norms, updates), last = by_hand(parabola, START, tx, 12)
    np.testing.assert_allclose(path.positions, np.vstack([positions, last]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(path.updates, updates, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(path.values, [*values, parabola(last)], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(path.gradient_norms, [*norms, 2 * jnp.linalg.norm(last)], rtol=1e-4, atol=1e-5)


def test_it_stops_where_the_gradient_first_falls_below_the_tolerance():
    path = minimize(parabola, START, optax.sgd(0.1), steps=60, tolerance=0.01)
    # Each step takes the norm from 2 sqrt(13) by 0.8.
    expected = int(np.ceil(np.log(0.01 / (2 * np.sqrt(13))) / np.log(0.8)))
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
        (1.0, optax.sgd(0.1), 3, 0.01, False, 3),  # too few steps
    ],
)
def test_what_counts_as_converged(start, tx, steps, tolerance, converged, taken):
    path = minimize(parabola, jnp.array([start]), tx, steps=steps, tolerance=tolerance)
    assert bool(path.converged) == converged and int(path.steps_taken) == taken
    if taken == 0:
        np.testing.assert_array_equal(path.positions, np.full((6, 1), np.float32(start)))


def test_ascent_climbs_what_descent_descends():
    up = minimize(lambda w: 5 - parabola(w), START, GRAVITY, steps=20, maximize=True)
    down = minimize(parabola, START, GRAVITY, steps=20)
    np.testing.assert_allclose(up.positions, down.positions, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(up.values, 5 - down.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (optax.exponential_decay(1.0, 2, 0.1, staircase=True), [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (power_law_decay(2.0, 0.5, 3), 2 / np.sqrt(1 + np.arange(6) / 3)),
    ],
    ids=["step", "power law"],
)
def test_the_step_size_follows_its_schedule(schedule, expected):
    path = minimize(lambda w: w, jnp.float32(0), optax.sgd(schedule), steps=6)  # the gradient is 1
    np.testing.assert_allclose(-path.updates, expected, rtol=1e-5)


def test_vmap_over_starts_is_a_path_for_each():
    starts = jnp.array([[0.5, -0.3], [0.25, 0.1], [0.0, 0.1]])
    paths = jax.vmap(lambda start: minimize(parabola, start, GRAVITY, steps=30, tolerance=0.3))(starts)
    for i, start in enumerate(starts):
        alone = minimize(parabola, start, GRAVITY, steps=30, tolerance=0.3)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), paths, alone)
    assert len(set(paths.steps_taken.tolist())) == 3  # each stops on its own


def test_the_same_function_and_optimizer_are_compiled_once():
    minimize(parabola, START, GRAVITY, steps=7)
    before = minimize._cache_size()
    minimize(parabola, 2 * START, GRAVITY, steps=7, tolerance=0.5)
    with_tolerance = minimize._cache_size()
    minimize(parabola, 3 * START, GRAVITY, steps=7, tolerance=0.7)
    assert minimize._cache_size() == with_tolerance <= before + 1


def test_an_optimizer_with_a_line_search_is_told_the_function():
    path = minimize(parabola, START, optax.lbfgs(), steps=10, tolerance=1e-4)
    assert bool(path.converged) and int(path.steps_taken) <= 3


def test_a_tree_of_parameters_keeps_its_tree():
    start = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    path = minimize(lambda p: jnp.sum((p["w"] + p["b"][None]) ** 2), start, optax.adam(0.1), steps=4)
    assert jax.tree.map(jnp.shape, path.positions) == {"w": (5, 2, 3), "b": (5, 3)}
    assert jax.tree.map(jnp.shape, path.updates) == {"w": (4, 2, 3), "b": (4, 3)}


def test_no_steps_is_the_start_alone_and_fewer_are_refused():
    path = minimize(parabola, START, GRAVITY, steps=0)
    assert path.positions.shape == (1, 2) and path.updates.shape == (0, 2) and path.values[0] == 13
    assert int(path.steps_taken) == 0
    with pytest.raises(ValueError, match="steps is -1"):
        minimize(parabola, START, GRAVITY, steps=-1)
