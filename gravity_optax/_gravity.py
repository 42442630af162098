"""The velocity V (Eqs. 22 and 26), and the optimizer: V chained with the learning rate (Eq. 23)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gravity_optax import _checks
from gravity_optax._first_velocity import draw_velocity, initial_stddev
from gravity_optax._gradient_term import MaxStepGrad, compute_dtype, ratio_to_m, zeta_of_ratio

Key = jax.Array | np.ndarray | np.integer | int


class ScaleByGravityState(NamedTuple):
    """State of `scale_by_gravity`, also found by `optax.tree.get(state, "velocity")` in the state of a chain."""

    count: jax.Array  # type: ignore[assignment]  # (), int32: updates made so far; t = first_step + count at the next one
    velocity: optax.Params  # V, a tree like the parameters, of the same shapes


def gravity(
    learning_rate: optax.ScalarOrSchedule = 0.1,
    alpha: jax.typing.ArrayLike = 0.01,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    key: Key,
    first_step: int = 1,
    max_step_grad: MaxStepGrad | None = None,
    stacked_axes: int | None = None,
    velocity_dtype: jax.typing.DTypeLike | None = None,
    velocity_stddev: jax.typing.ArrayLike | None = None,
    weight_decay: optax.ScalarOrSchedule | None = None,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The Gravity optimizer of Bahrami and Pouriyan Zadeh (https://arxiv.org/abs/2101.09192).

    For each leaf G of the gradients at step t (Algorithm 1 of the paper; equation numbers are the paper's)

    .. math::

        m &= 1 / \max|G| & \text{(20)} \\
        \zeta &= G / (1 + (G / m)^2) & \text{(21)} \\
        \hat\beta &= (\beta t + 1) / (t + 2) & \text{(26)} \\
        V &\leftarrow \hat\beta V + (1 - \hat\beta) \zeta & \text{(22)} \\
        W &\leftarrow W - l V & \text{(23)}

    from :math:`V_0 \sim N(0, \alpha / l)` (27; the second argument is a standard deviation). Large gradients (of a sum
    instead of a mean, a badly scaled quadratic) stall: the :math:`\zeta` of a leaf whose largest entry is
    :math:`M > 1` falls like :math:`1 / M^3` there. Put `optax.clip_by_global_norm(1.0)` in front.

    Under `optax.inject_hyperparams` name these in `static_args` where given: `key` (else an array is donated with the
    state, Flax cannot serialize a typed key, and a seed must be below 2^31), `max_step_grad`, `stacked_axes`,
    `velocity_dtype`, and a `weight_decay_mask` that is a function. `jax.vmap(tx.init)` gives all members of an ensemble
    one :math:`V_0`; for one each, `jax.vmap(lambda key, params: gravity(0.1, key=key).init(params))(keys, params)`.

    Args:
      learning_rate: l, a positive number or an optax schedule, whose largest value in its first 2^17 steps gives
        :math:`\alpha / l`, so that a warm-up may start at 0. What follows a value that is not finite, or an error, does
        not count. A schedule that JAX cannot trace, or with side effects, is called at steps 0 to 1,023 and at every
        128th. A `jax.Array` below :math:`\alpha` is taken for the start of a warm-up, of which
        `optax.inject_hyperparams` shows no more, and gives :math:`V_0 = 0`.
      alpha: :math:`\alpha \ge 0`, the size of the first steps due to :math:`V_0` (30). 0 starts from rest.
      beta: :math:`\beta \in [0, 1]`, the decay of the velocity once t is large.
      key: a seed or a JAX random key (typed or raw uint32) for :math:`V_0`, which does not depend on the number or
        layout of devices, except in its last digits (with JAX's default generator).
      first_step: t at the first update. 1 is Algorithm 1 and the authors' PyTorch code; 0 is Table 2, Eq. 28, the
        authors' Keras code and every run the paper reports.
      max_step_grad: a function from one gradient matrix (in float32, or float64) to m, a scalar whose sign does not
        matter and which may be inf (:math:`\zeta = G`) or 0 (:math:`\zeta = 0`); None is Eq. 20. Stacked matrices come
        through `jax.vmap`, leaves of size 0 not at all. Inside `jax.shard_map`, where a device holds a part of G, pass
        `lambda g: 1 / jax.lax.pmax(jnp.max(jnp.abs(g)), axis_name)`.
      stacked_axes: how many leading axes of every leaf number separate matrices, as with `flax.linen.scan`, so that
        each has its own m (None: 0). Where only some leaves are stacked, use `optax.partition`.
      velocity_dtype: dtype in which V is kept, for instance bfloat16, which halves the state; None is the parameter's.
      velocity_stddev: standard deviation of :math:`V_0`; None is :math:`\alpha / l`.
      weight_decay, weight_decay_mask: as in `optax.adamw`, a number of at least 0 or a schedule, and a tree of booleans
        or a function that gives one. Adds it times W to V, for which `update` needs the parameters. None adds nothing,
        and there must be no mask.

    Returns:
      A chain, whose state is `(ScaleByGravityState, state of the learning rate)`.

    Raises:
      ValueError: for an argument out of its range (at `init` for a schedule that is never positive or starts with NaN
        or inf, and for a `velocity_stddev` beyond the velocity's dtype), or gradients whose tree or shapes are not the
        state's.
      TypeError: for an argument or (at `init` and `update`) a leaf of the wrong type: integer, complex or sparse.

    Example:
      >>> import gravity_optax, jax, jax.numpy as jnp, optax
      >>> loss = lambda w: jnp.mean((w - jnp.array([0.5, -0.5])) ** 2)
      >>> tx, w = gravity_optax.gravity(0.1, key=0), jnp.zeros(2)
      >>> state = tx.init(w)
      >>> for _ in range(200):
      ...     updates, state = tx.update(jax.grad(loss)(w), state)
      ...     w = optax.apply_updates(w, updates)
      >>> print(w.round(3))
      [ 0.5 -0.5]
    """
    _checks.check_number("alpha", alpha, _checks.NOT_NEGATIVE)
    if not callable(learning_rate):
        # An array may be 0: optax.inject_hyperparams passes on what a schedule gives, at every step.
        is_array = isinstance(learning_rate, jax.Array)
        _checks.check_number("learning_rate", learning_rate, _checks.NOT_NEGATIVE if is_array else _checks.POSITIVE)
    stddev: Any = functools.partial(initial_stddev, learning_rate, alpha)  # for init: it may start JAX's backend
    stddev = stddev if velocity_stddev is None else velocity_stddev
    if weight_decay is None and weight_decay_mask is not None:
        raise ValueError("weight_decay_mask is given and weight_decay is None; give both, or neither.")
    options: Any = {"max_step_grad": max_step_grad, "stacked_axes": stacked_axes, "velocity_dtype": velocity_dtype}
    parts: list[Any] = [scale_by_gravity(stddev, beta, key=key, first_step=first_step, **options)]
    if callable(weight_decay):  # which optax.add_decayed_weights itself does not take before optax 0.2.6
        parts.append(optax.inject_hyperparams(optax.add_decayed_weights, "mask")(weight_decay, weight_decay_mask))
    elif weight_decay is not None:
        _checks.check_number("weight_decay", weight_decay, _checks.NOT_NEGATIVE)
        parts.append(optax.add_decayed_weights(weight_decay, weight_decay_mask))
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))


def scale_by_gravity(
    velocity_stddev: jax.typing.ArrayLike = 0.1,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    key: Key,
    first_step: int = 1,
    max_step_grad: MaxStepGrad | None = None,
    stacked_axes: int | None = None,
    velocity_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces gradients by Gravity's velocity V: `gravity` without the learning rate.

    Arithmetic is in float32 (float64 for float64 leaves). Updates have the gradients' dtype where the velocity has the
    same one, and float32 (float64) otherwise, as those of `optax.trace` do. A non-finite gradient makes its own leaf
    non-finite and no other; a NaN perhaps in its own place only. Called eagerly, and in explicit-sharding mode, `init`
    gives the velocity its parameter's sharding; under `jax.jit` in the automatic mode set `out_shardings`, as for any
    optax state, and call it outside `jax.shard_map` and `jax.pmap`, where every shard would draw the same numbers.

    Args:
      velocity_stddev: standard deviation of :math:`V_0`, at least 0 (27: :math:`\sigma = \alpha / l`) and within the
        range of the velocity's dtype; draws beyond that range are clamped to it.
      beta, key, first_step, max_step_grad, stacked_axes, velocity_dtype: as in `gravity`.

    Returns:
      A transformation with state `ScaleByGravityState`.

    Raises:
      ValueError, TypeError: as `gravity`.

    Example:
      >>> import gravity_optax, jax.numpy as jnp
      >>> tx = gravity_optax.scale_by_gravity(0.0, key=0, first_step=0)  # from rest: V is half of zeta (Eq. 28)
      >>> velocity, state = tx.update(jnp.array([0.5, 2.0]), tx.init(jnp.zeros(2)))
      >>> print(velocity)  # m = 1/2, so zeta = 0.5 / 2 and 2 / 17
      [0.125      0.05882353]
    """
    deferred = getattr(velocity_stddev, "func", None) is initial_stddev  # as `gravity` passes it
    if not deferred:
        _checks.check_number("velocity_stddev", velocity_stddev, _checks.NOT_NEGATIVE)
    _checks.check_number("beta", beta, _checks.UNIT)
    _checks.check_number("first_step", first_step, _checks.NOT_NEGATIVE, integer=True)
    _checks.check_static(max_step_grad, stacked_axes, velocity_dtype)
    jax.eval_shape(lambda: _checks.canonical_key(key))  # raises its errors now; init makes the key
    # Compiled once for equal leaves, but not with a max_step_grad, which may be impure.
    leaf_step = _leaf_step if max_step_grad is None else _leaf_step.__wrapped__  # type: ignore[attr-defined]

    def init_fn(params):
        params = _checks.as_arrays(params)
        stddev: Any = velocity_stddev() if deferred else velocity_stddev  # type: ignore[operator]
        stddev = stddev if isinstance(stddev, jax.core.Tracer) else float(stddev)
        dtype = None if velocity_dtype is None else jax.dtypes.canonicalize_dtype(velocity_dtype)
        _checks.check_leaves("params", params, stacked_axes or 0, stddev, dtype)
        velocity = draw_velocity(_checks.canonical_key(key), stddev, params, dtype)
        return ScaleByGravityState(jnp.zeros([], jnp.int32), velocity)

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        updates = _checks.as_arrays(updates)
        _checks.check_matches(updates, state.velocity)
        count = jnp.asarray(state.count, jnp.int32)

        @functools.cache
        def averaging(dtype):
            """Eq. 26, and 1 - beta_hat without the catastrophic cancellation as beta_hat nears 1."""
            t = count.astype(dtype) + jnp.asarray(first_step, dtype)
            beta_hat = (jnp.asarray(beta, dtype) * t + 1) / (t + 2)
            return beta_hat, (jnp.asarray(1 - beta, dtype) * t + 1) / (t + 2)

        leaves, treedef = jax.tree.flatten(updates)
        pairs = []
        for g, v in zip(leaves, jax.tree.leaves(state.velocity), strict=True):
            g, v = (x if isinstance(x, jax.Array) else jnp.asarray(x) for x in (g, v))
            pairs.append(leaf_step(g, v, *averaging(compute_dtype(g, v)), max_step_grad, stacked_axes or 0))
        updates, velocity = (jax.tree.unflatten(treedef, [pair[i] for pair in pairs]) for i in (0, 1))
        return updates, ScaleByGravityState(optax.safe_increment(count), velocity)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _leaf_step(gradient, velocity, beta_hat, one_minus_beta_hat, max_step_grad, stacked_axes):
    """The new V of one leaf as an update, in the wider dtype of gradient and velocity, and as it is kept."""
    g = gradient.astype(beta_hat.dtype)
    zeta = zeta_of_ratio(g, ratio_to_m(g, max_step_grad, stacked_axes))  # Eqs. 20 and 21
    new = beta_hat * velocity.astype(g.dtype) + one_minus_beta_hat * zeta  # Eq. 22
    return new.astype(gradient.dtype) if gradient.dtype == velocity.dtype else new, new.astype(velocity.dtype)
