"""Functions of two variables to minimize: two easy ones, and three that are hard in known ways."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Landscape:
    """A scalar function of a point (..., 2), with what is needed to draw it."""

    formula: str  # for titles, in TeX
    value: Callable[[jax.Array, jax.Array], jax.Array]  # of x and y, elementwise
    start: tuple[float, float]
    minima: tuple[tuple[float, float], ...]  # the local ones, all global here
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_levels: bool = False  # whether contours are better spaced by powers

    def __call__(self, point: jax.Array) -> jax.Array:
        """Float points (..., 2) -> values (...)."""
        return self.value(point[..., 0], point[..., 1])


BOWL = Landscape(
    formula="x^2 + y^2",
    value=lambda x, y: x**2 + y**2,
    start=(-4.0, 3.0),
    minima=((0.0, 0.0),),
    x_range=(-5.0, 5.0),
    y_range=(-5.0, 5.0),
)
TILTED = Landscape(
    formula="x^2 + y^2 + xy - 4x - 8y",
    value=lambda x, y: x**2 + y**2 + x * y - 4 * x - 8 * y,
    start=(0.0, 0.0),
    minima=((0.0, 4.0),),
    x_range=(-4.0, 4.0),
    y_range=(-1.0, 7.0),
)
ROSENBROCK = Landscape(  # Rosenbrock (1960): a curved valley with a flat floor
    formula="(1 - x)^2 + 100 (y - x^2)^2",
    value=lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
    start=(-1.2, 1.0),
    minima=((1.0, 1.0),),
    x_range=(-2.0, 2.0),
    y_range=(-1.0, 3.0),
    log_levels=True,
)
SADDLE = Landscape(  # at (0, 0), between two minima; the start is almost on its ridge
    formula="x^2 - y^2 + y^4 / 4",
    value=lambda x, y: x**2 - y**2 + y**4 / 4,
    start=(1.5, 0.01),
    minima=((0.0, -(2**0.5)), (0.0, 2**0.5)),
    x_range=(-2.0, 2.0),
    y_range=(-2.0, 2.0),
)
ILL_CONDITIONED = Landscape(  # condition number 100
    formula="(x^2 + 100 y^2) / 2",
    value=lambda x, y: (x**2 + 100 * y**2) / 2,
    start=(-4.0, 0.8),
    minima=((0.0, 0.0),),
    x_range=(-5.0, 5.0),
    y_range=(-1.0, 1.0),
    log_levels=True,
)


def grid(function: Landscape, points: int = 121) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x (points,), y (points,) over the function's ranges, and its values there, (points in y, points in x)."""
    x, y = jnp.linspace(*function.x_range, points), jnp.linspace(*function.y_range, points)
    xs, ys = jnp.meshgrid(x, y)
    return x, y, function(jnp.stack([xs, ys], -1))
