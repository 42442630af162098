"""The test functions: their minima are minima, their pictures hold what matters, and their known shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import functions


@pytest.mark.parametrize("name", ["BOWL", "TILTED", "ROSENBROCK", "SADDLE", "ILL_CONDITIONED"])
def test_the_picture_holds_start_and_minima_which_are_minima_and_nothing_is_lower(name):
    function = getattr(functions, name)
    with jax.enable_x64(True):
        minima = jnp.array(function.minima)
        np.testing.assert_allclose(jax.vmap(jax.grad(function))(minima), 0, atol=1e-12)
        assert np.all(np.linalg.eigvalsh(jax.vmap(jax.hessian(function))(minima)) > 0)
        values = np.array(function(minima))
    low, high = np.transpose([function.x_range, function.y_range])
    points = np.array([function.start, *function.minima])
    assert np.all((low <= points) & (points <= high))
    np.testing.assert_allclose(values, values[0], atol=1e-6)
    x, y, grid = functions.grid(function, 50)
    assert grid.shape == (50, 50) and np.min(grid) >= values[0] - 1e-5
    np.testing.assert_allclose(grid[3, 1], function(jnp.array([x[1], y[3]])), rtol=1e-4)  # y along its rows


@pytest.mark.parametrize(
    ("name", "point", "eigenvalues"),
    [
        ("SADDLE", (0.0, 0.0), (-2, 2)),
        ("ILL_CONDITIONED", (0.0, 0.0), (1, 100)),
        ("ROSENBROCK", (1.0, 1.0), (0.39936, 1001.6)),
    ],
)
def test_the_curvatures_are_what_the_function_is_known_for(name, point, eigenvalues):
    hessian = jax.hessian(getattr(functions, name))(jnp.array(point))
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), eigenvalues, rtol=1e-3)
