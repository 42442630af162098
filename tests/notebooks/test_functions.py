"""The test functions: their minima are minima, their pictures hold what matters, and their known shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import functions

ALL = list(functions.ALL.values())
every_function = pytest.mark.parametrize("function", ALL, ids=lambda f: f.name)


@every_function
def test_at_each_minimum_the_gradient_is_zero_and_the_curvature_positive(function):
    with jax.enable_x64(True):
        for minimum in function.minima:
            point = jnp.array(minimum)
            np.testing.assert_allclose(jax.grad(function)(point), 0, atol=1e-12)
            assert np.all(np.linalg.eigvalsh(jax.hessian(function)(point)) > 0)


@every_function
def test_the_picture_holds_start_and_minima_and_no_point_of_it_is_lower(function):
    for x, y in (function.start, *function.minima):
        assert function.x_range[0] <= x <= function.x_range[1]
        assert function.y_range[0] <= y <= function.y_range[1]
    _, _, values = functions.grid(function)
    lowest = [float(function(jnp.array(minimum))) for minimum in function.minima]
    np.testing.assert_allclose(lowest, lowest[0], atol=1e-6)
    assert np.min(values) >= lowest[0] - 1e-5


def test_the_grid_has_y_along_its_rows():
    x, y, values = functions.grid(functions.ROSENBROCK, 5)
    assert values.shape == (5, 5)
    assert values[3, 1] == functions.ROSENBROCK(jnp.array([x[1], y[3]]))


@pytest.mark.parametrize(
    ("function", "point", "eigenvalues"),
    [
        (functions.SADDLE, (0.0, 0.0), (-2, 2)),
        (functions.ILL_CONDITIONED, (0.0, 0.0), (1, 100)),
        (functions.BOWL, (3.0, 1.0), (2, 2)),
        (functions.TILTED, (0.0, 0.0), (1, 3)),
        (functions.ROSENBROCK, (1.0, 1.0), (0.39936, 1001.6)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_curvatures_are_what_the_function_is_known_for(function, point, eigenvalues):
    np.testing.assert_allclose(np.linalg.eigvalsh(jax.hessian(function)(jnp.array(point))), eigenvalues, rtol=1e-3)
