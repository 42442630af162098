"""The path of any optax optimizer over a scalar function, from start to end, as one compiled loop.

`jax.vmap` of `minimize` over the start, or over hyperparameters of an optimizer that is built inside the mapped
function, gives trajectories with a leading axis. Step sizes that change are optax schedules, passed to the optimizer as
its learning rate: `optax.constant_schedule`, `optax.exponential_decay` (with `staircase=True` a step decay),
`optax.piecewise_constant_schedule`, or `power_law_decay` below. A call with the same function and optimizer (the same
objects) and the same shapes is not compiled again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Trajectory(NamedTuple):
    """Every step of one minimization: n steps, n + 1 points, the start first.

    After convergence the point stays: the rest of `positions`, `values` and `gradient_norms` repeats the last one and
    the rest of `updates` is 0. A path that diverges continues to inf and NaN and is not converged.
    """

    positions: Any  # the tree of the start, each leaf (n + 1, *shape)
    values: jax.Array  # (n + 1,): the function there
    gradient_norms: jax.Array  # (n + 1,): the Euclidean norm of its gradient there
    updates: Any  # the tree of the start, each leaf (n, *shape): updates[i] leads from positions[i] to positions[i + 1]
    converged: jax.Array  # (), bool: whether the last gradient norm is below the tolerance
    steps_taken: jax.Array  # (), int32: up to convergence, or n


@functools.partial(jax.jit, static_argnums=(0, 2), static_argnames=("steps", "maximize"))
def minimize(
    function: Callable[[Any], jax.Array],
    start: Any,
    tx: optax.GradientTransformation,
    *,
    steps: int = 100,
    tolerance: jax.typing.ArrayLike = 0.0,
    maximize: bool = False,
) -> Trajectory:
    """Follows `tx` over `function` from `start`.

    Args:
      function: from a tree of floats like `start` to a scalar.
      start: an array, or a tree of arrays, of floats.
      tx: any optax optimizer, those with a line search (`optax.lbfgs`) included.
      steps: the number of steps, at most; the shapes of the result do not depend on the tolerance.
      tolerance: stop where the gradient's norm is below it; 0 never stops.
      maximize: climb, by minimizing -function; `values` are of `function` itself.

    Raises:
      ValueError: for fewer than 0 steps.
      TypeError: for a function that is not scalar, or a start that is not of floats.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; it must be at least 0.")
    sign = -1 if maximize else 1
    start = jax.tree.map(jnp.asarray, start)
    positions, values, norms, updates = _follow(lambda w: sign * function(w), start, tx, steps, tolerance)
    stopped = norms < tolerance  # once true it stays true, as the point stays
    return Trajectory(
        positions=positions,
        values=sign * values,
        gradient_norms=norms,
        updates=jax.tree.map(lambda u: u[:-1], updates),
        converged=stopped[-1],
        steps_taken=jnp.sum(~stopped[:-1], dtype=jnp.int32),
    )


def _follow(
    function: Callable[[Any], jax.Array],
    start: Any,
    tx: optax.GradientTransformation,
    steps: int,
    tolerance: jax.typing.ArrayLike,
) -> tuple[Any, jax.Array, jax.Array, Any]:
    """Positions, values, gradient norms and updates of steps + 1 iterations; the last update leads nowhere."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, _):
        position, state = carry
        value, gradient = jax.value_and_grad(function)(position)
        norm = optax.tree.norm(gradient)
        # A line search needs the function; optimizers that take no extra arguments do not get them.
        update, state = tx.update(gradient, state, position, value=value, grad=gradient, value_fn=function)
        stop = norm < tolerance
        update = jax.tree.map(lambda u: jnp.where(stop, jnp.zeros_like(u), u), update)
        return (optax.apply_updates(position, update), state), (position, value, norm, update)

    return jax.lax.scan(step, (start, tx.init(start)), length=steps + 1)[1]


def power_law_decay(
    init_value: jax.typing.ArrayLike, power: jax.typing.ArrayLike, transition_steps: jax.typing.ArrayLike = 1
) -> optax.Schedule:
    """The schedule init_value / (1 + count / transition_steps) ** power, which optax does not have.

    Args:
      init_value: the value at count 0.
      power: how fast it decays; 0.5 is the inverse square root, 0 a constant.
      transition_steps: the number of steps after which it has decayed by a factor of 2 ** power.
    """
    return lambda count: init_value / (1.0 + jnp.asarray(count, jnp.float32) / transition_steps) ** power
