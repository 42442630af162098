"""Max-Step Grad m (Eq. 20), the gradient term zeta (Eq. 21), and what they do to a gradient (`damping`)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gravity_optax import _checks

MaxStepGrad = Callable[[jax.Array], jax.typing.ArrayLike]  # one gradient matrix -> m, a scalar


def compute_dtype(*arrays: Any) -> jnp.dtype:
    """float64 where one of the arrays is, else float32."""
    return jnp.dtype(jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32)


def _max_abs(gradient: jax.Array, stacked_axes: int) -> jax.Array:
    """max|G| of each matrix of a leaf, whose axes stay with size 1; 0 where there is nothing."""
    return jnp.max(jnp.abs(gradient), axis=tuple(range(stacked_axes, gradient.ndim)), keepdims=True, initial=0)


def ratio_to_m(gradient: jax.Array, max_step_grad: MaxStepGrad | None, stacked_axes: int) -> jax.Array:
    """|G / m| of a leaf, with an m (Eq. 20 unless `max_step_grad` is given) for each of its matrices."""
    if max_step_grad is None or 0 in gradient.shape:
        return jnp.abs(gradient * _max_abs(gradient, stacked_axes))

    def m_of(matrix: jax.Array) -> jax.Array:
        m = max_step_grad(matrix)
        try:
            return jnp.asarray(m, gradient.dtype)
        except (TypeError, ValueError):
            raise TypeError(f"max_step_grad gave {m!r}; give one real number m for each matrix.") from None

    for _ in range(stacked_axes):
        m_of = jax.vmap(m_of)
    # XLA divides by a constant as a product with its inverse, which underflows for m above 8e37; hence the barrier.
    m = jax.lax.optimization_barrier(m_of(gradient))
    if m.ndim > stacked_axes:
        raise ValueError(f"max_step_grad gave an array of shape {m.shape[stacked_axes:]}; give one m for each matrix.")
    return _over_m(gradient, jnp.expand_dims(m, tuple(range(stacked_axes, gradient.ndim))))


def _over_m(g: jax.Array, m: jax.Array) -> jax.Array:
    """|g / m|, with m = 0 taken as the smallest normal number, so that g = 0 gives 0 and not NaN."""
    return jnp.abs(g / jnp.maximum(jnp.abs(m), jnp.finfo(g.dtype).tiny))


def zeta_of_ratio(g: jax.Array, ratio: jax.Array) -> jax.Array:
    """Eq. 21, g / (1 + ratio^2) for ratio = |g / m|; neither it nor its derivatives overflow."""
    # Above 1 both are divided by the ratio: its square may overflow. As products: XLA makes (a / b) / c an a / (b c).
    above = ratio > 1
    inverse = 1 / jnp.where(above, ratio, 1)
    return (g * inverse) / (inverse + jnp.where(above, 1, ratio) * ratio)


def gravity_term(gradient: jax.typing.ArrayLike, m: jax.typing.ArrayLike) -> jax.Array:
    r"""The gradient term :math:`\zeta = g / (1 + (g / m)^2)` (Eq. 21).

    It is largest, m / 2, at g = m; for g well below m it is g, well above m it is :math:`m^2 / g`. Neither a large g
    nor m = 0 or m = inf makes it overflow or NaN; a non-finite g or a NaN m does.

    Args:
      gradient: g, a real array of any shape; integers are converted to float32.
      m: Max-Step Grad, above 0, broadcast against `gradient`.

    Returns:
      Zeta, in the dtype of `gradient` (computed in at least float32).

    Raises:
      TypeError: for a complex g or m.

    Example:
      >>> import gravity_optax, jax.numpy as jnp
      >>> print(gravity_optax.gravity_term(jnp.array([0.0, 1.0, 2.0, 3.0]), 1.0))
      [0.  0.5 0.4 0.3]
    """
    gradient, m = jnp.asarray(gradient), jnp.asarray(m)
    for name, value in (("gradient", gradient), ("m", m)):
        if jnp.iscomplexobj(value):
            raise TypeError(f"{name} is {value.dtype}; give gravity_term the real and the imaginary part one by one.")
    if not jnp.issubdtype(gradient.dtype, jnp.floating):  # a Python int, say
        gradient = gradient.astype(jnp.float32)
    g = gradient.astype(compute_dtype(gradient))
    return zeta_of_ratio(g, _over_m(g, m.astype(g.dtype))).astype(gradient.dtype)


class Damping(NamedTuple):
    """Two trees like the gradients, whose leaves have shape leaf.shape[:stacked_axes] (float32, or float64)."""

    max_abs: Any  # max|G|
    share: Any  # of entries with |g| > m


def damping(
    gradients: optax.Updates, *, stacked_axes: int | None = None, max_step_grad: MaxStepGrad | None = None
) -> Damping:
    """How strongly Gravity damps these gradients: a run stalls where max|G| is far above 1.

    Inside `jax.shard_map`, max|G| and the share are those of the device's own part of each leaf.

    Args:
      gradients: a tree of real float arrays, as handed to `update`.
      stacked_axes, max_step_grad: as in `gravity`.

    Returns:
      `Damping(max_abs, share)`: max|G|, and the share of entries with |g| > m, which take part in the step with less
      than half of their value (Eq. 21). NaN for a matrix with a NaN, 0 for one without entries.

    Raises:
      ValueError, TypeError: for an argument or a leaf that `gravity` does not take.

    Example:
      >>> import gravity_optax, jax.numpy as jnp
      >>> max_abs, share = gravity_optax.damping({"w": jnp.array([0.1, 0.2, 1.0, 4.0])})  # m = 1 / 4
      >>> print(max_abs["w"], share["w"])
      4.0 0.5
    """
    _checks.check_static(max_step_grad, stacked_axes)
    gradients, axes = _checks.as_arrays(gradients), stacked_axes or 0
    _checks.check_leaves("gradients", gradients, axes)

    def of_leaf(leaf: Any) -> tuple[jax.Array, jax.Array]:
        g = jnp.asarray(leaf, compute_dtype(jax.typeof(leaf)))
        within, count = tuple(range(axes, g.ndim)), 1 if 0 in g.shape else math.prod(g.shape[axes:])
        # XLA:CPU's maximum of a large array ignores NaNs.
        max_abs = jnp.where(jnp.isnan(g).any(within), jnp.nan, _max_abs(g, axes).squeeze(within))
        ratio = jnp.where(g == 0, 0, ratio_to_m(g, max_step_grad, axes))  # also where max|G| is inf
        damped = jnp.where(jnp.isnan(ratio), ratio, (ratio > 1).astype(ratio.dtype))
        return max_abs, jnp.sum(damped, axis=within) / count

    leaves, treedef = jax.tree.flatten(gradients)
    pairs = [of_leaf(leaf) for leaf in leaves]
    return Damping(*(jax.tree.unflatten(treedef, [pair[i] for pair in pairs]) for i in (0, 1)))
