"""The Gravity optimizer of Bahrami and Pouriyan Zadeh (https://arxiv.org/abs/2101.09192).

`gravity` chains `scale_by_gravity` with the learning rate; `scale_by_gravity` draws V_0 (Eq. 27, `_first_velocity`) and
at each step applies Eqs. 20 to 26 to each leaf (`_gradient_term` has Eqs. 20 and 21). Errors about arguments and trees
are in `_checks`.
"""

import functools
from collections.abc import Callable
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
    """State of `scale_by_gravity`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from gravity_optax import gravity
      >>> state = gravity(key=0).init({"w": jnp.zeros((2, 3))})  # a chain's state, with this one in it
      >>> print(optax.tree.get(state, "count"), optax.tree.get(state, "velocity")["w"].shape)
      0 (2, 3)
    """

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
    r"""The Gravity optimizer.

    For each leaf G of the gradients at step t (Algorithm 1 of the paper; equation numbers are the paper's)

    .. math::

        m &= 1 / \max|G| & \text{(20)} \\
        \zeta &= G / (1 + (G / m)^2) & \text{(21)} \\
        \hat\beta &= (\beta t + 1) / (t + 2) & \text{(26)} \\
        V &\leftarrow \hat\beta V + (1 - \hat\beta) \zeta & \text{(22)} \\
        W &\leftarrow W - l V & \text{(23)}

    from :math:`V_0 \sim N(0, \alpha / l)` (27; the second argument is a standard deviation).

    Gravity damps gradients above 1. Where the largest entry of a leaf is :math:`M > 1`, that entry's own :math:`\zeta`
    falls like :math:`1 / M^3`, and among the entries above :math:`1 / M` the larger one takes the smaller step. A loss
    with large gradients (a sum instead of a mean, a badly scaled quadratic) therefore stalls: put
    `optax.clip_by_global_norm(1.0)` in front.

    Args:
      learning_rate: l, a positive number or an optax schedule. With a schedule, l in :math:`\alpha / l` is its value at
        step 0; a schedule that starts at 0 leaves it without a value: chain `scale_by_gravity` with
        `optax.scale_by_learning_rate` instead. Where l comes as a `jax.Array`, as under
        `optax.inject_hyperparams`, an l that is 0 or so small that :math:`\alpha / l` overflows gives :math:`V_0 = 0`.
      alpha: :math:`\alpha \ge 0`, the size of the first steps due to :math:`V_0` (30). 0 starts from rest.
      beta: :math:`\beta \in [0, 1]`, the decay of the velocity once t is large.
      key: a seed or a JAX random key (typed or raw uint32) for :math:`V_0`. The same key gives the same velocity
        whatever the number or layout of devices, to the last digit or two (with JAX's default generator).
      first_step: t at the first update. 1 is Algorithm 1 and the authors' PyTorch code; 0 is Table 2, Eq. 28, the
        authors' Keras code and every run the paper reports.
      max_step_grad: a function from one gradient matrix (in float32, or float64) to m, a scalar; None is Eq. 20,
        :math:`1 / \max|G|`. It sees what it is handed: inside `jax.shard_map`, where a device holds a part of G, pass
        `lambda g: 1 / jax.lax.pmax(jnp.max(jnp.abs(g)), axis_name)`. The sign of m does not matter; m = inf gives
        :math:`\zeta = G`, m = 0 gives 0. It is not called for a leaf of size 0, and through `jax.vmap` for stacked
        matrices.
      stacked_axes: how many leading axes of every leaf number separate matrices, as with `flax.linen.scan`, so that
        each has its own m (None: 0). Where only some leaves are stacked, use `optax.partition`.
      velocity_dtype: dtype in which V is kept, for instance bfloat16, which halves the state; None is the parameter's.
        Arithmetic stays in float32.
      weight_decay: decoupled weight decay as in `optax.adamw`: adds this times W to V before the learning rate, at
        least 0; `update` then needs the parameters. None adds nothing to the chain.
      weight_decay_mask: which leaves decay: a tree of booleans (or a function from the parameters to one), as in
        `optax.adamw`. None decays all.

    Under `optax.inject_hyperparams`, `max_step_grad`, `stacked_axes`, `velocity_dtype` and a `weight_decay_mask` that
    is a function must be named in `static_args` where given. To update in place, donate parameters and state in the
    order in which the step returns them: `jax.jit(step, donate_argnums=(0, 1))` with
    `step(params, state, gradients) -> (params, state)`; in another order XLA copies them.
    `jax.vmap(tx.init)` gives every member of an ensemble the same :math:`V_0`; give each its own key with
    `jax.vmap(lambda key, params: gravity(0.1, key=key).init(params))(jax.random.split(key, members), params)`.

    Returns:
      The `optax.GradientTransformation`. Its state is a chain's: `(ScaleByGravityState, state of the learning rate)`.

    Raises:
      ValueError: for an argument out of its range.
      TypeError: for an argument or (at `init` and `update`) a leaf of the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from gravity_optax import gravity
      >>> loss = lambda w: jnp.mean((w - jnp.array([0.5, -0.5])) ** 2)
      >>> tx = gravity(0.1, key=0)
      >>> w = jnp.zeros(2)
      >>> state = tx.init(w)
      >>> @jax.jit
      ... def step(w, state):
      ...     updates, state = tx.update(jax.grad(loss)(w), state)
      ...     return optax.apply_updates(w, updates), state
      >>> for _ in range(200):
      ...     w, state = step(w, state)
      >>> print(w.round(3))
      [ 0.5 -0.5]

    References:
      Bahrami and Pouriyan Zadeh, `Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning
      <https://arxiv.org/abs/2101.09192>`_, 2021.
    """
    _checks.check_number("alpha", alpha, *_checks.NOT_NEGATIVE)
    if not callable(learning_rate):
        # An array may be 0: optax.inject_hyperparams passes on what a schedule gives, at every step.
        in_range = _checks.NOT_NEGATIVE if isinstance(learning_rate, jax.Array) else _checks.POSITIVE
        _checks.check_number("learning_rate", learning_rate, _checks.POSITIVE[0], in_range[1])
    if velocity_stddev is not None:
        _checks.check_number("velocity_stddev", velocity_stddev, *_checks.NOT_NEGATIVE)
    velocity = _velocity(
        lambda: initial_stddev(learning_rate, alpha) if velocity_stddev is None else velocity_stddev,
        beta,
        key,
        first_step,
        max_step_grad,
        stacked_axes,
        velocity_dtype,
    )
    parts = [velocity, optax.scale_by_learning_rate(learning_rate)]
    if callable(weight_decay):  # add_decayed_weights takes a schedule from optax 0.2.6 on
        add_decayed_weights = optax.inject_hyperparams(optax.add_decayed_weights, static_args="mask")
        parts.insert(1, add_decayed_weights(weight_decay, weight_decay_mask))
    elif weight_decay is not None:
        _checks.check_number("weight_decay", weight_decay, *_checks.NOT_NEGATIVE)
        parts.insert(1, optax.add_decayed_weights(weight_decay, weight_decay_mask))
    return optax.chain(*parts)


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

    Use it where :math:`\alpha / l` has no value, for instance with a warm-up from 0::

        optax.chain(scale_by_gravity(0.1, key=key), optax.scale_by_learning_rate(schedule))

    Arithmetic is in float32 (float64 for float64 leaves); the velocity has the parameters' dtype (or `velocity_dtype`)
    and the updates have the gradients'. A non-finite gradient makes its own leaf non-finite and no other; a NaN perhaps
    in its own place only, because XLA:CPU's maximum of a large array passes over NaNs (jaxlib 0.10.1).
    `init` belongs outside `jax.shard_map` and `jax.pmap`: inside, every shard would draw the same numbers. Called
    eagerly, and in explicit-sharding mode, it gives the velocity its parameter's sharding; under `jax.jit` in the
    automatic mode say so with `out_shardings`, as for any optax state.

    Args:
      velocity_stddev: standard deviation of :math:`V_0`, at least 0 (27: :math:`\sigma = \alpha / l`) and within the
        range of the velocity's dtype; draws beyond that range are clamped to it.
      beta, key, first_step, max_step_grad, stacked_axes, velocity_dtype: as in `gravity`.

    Returns:
      The `optax.GradientTransformation`, with state `ScaleByGravityState`.

    Raises:
      ValueError: for an argument out of its range (`velocity_stddev` at `init`, where the dtypes are known), or
        gradients whose tree or shapes are not the state's.
      TypeError: for an argument of the wrong type, for integer, boolean or complex parameters, for sparse gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> from gravity_optax import scale_by_gravity
      >>> tx = scale_by_gravity(0.0, key=0, first_step=0)  # from rest, so that V is half of zeta (Eq. 28)
      >>> velocity, state = tx.update(jnp.array([0.5, 2.0]), tx.init(jnp.zeros(2)))
      >>> print(velocity)  # m = 1/2, so zeta = 0.5 / 2 and 2 / 17
      [0.125      0.05882353]
    """
    _checks.check_number("velocity_stddev", velocity_stddev, *_checks.NOT_NEGATIVE)
    return _velocity(lambda: velocity_stddev, beta, key, first_step, max_step_grad, stacked_axes, velocity_dtype)


def _velocity(
    stddev_of: Callable[[], jax.typing.ArrayLike],
    beta: jax.typing.ArrayLike,
    key: Key,
    first_step: int,
    max_step_grad: MaxStepGrad | None,
    stacked_axes: int | None,
    velocity_dtype: jax.typing.DTypeLike | None,
) -> optax.GradientTransformationExtraArgs:
    _checks.check_number("beta", beta, *_checks.UNIT)
    _checks.check_first_step(first_step)
    _checks.check_max_step_grad(max_step_grad)
    _checks.check_stacked_axes(stacked_axes)
    _checks.check_velocity_dtype(velocity_dtype)
    jax.eval_shape(lambda: _checks.canonical_key(key))  # its errors; nothing is computed until init
    # Compiled once for leaves that are alike. Not with a function of the user's, which may not be pure.
    leaf_step = _compiled_leaf_step if max_step_grad is None else _leaf_step

    def init_fn(params: optax.Params) -> ScaleByGravityState:
        _checks.check_real("params", params)
        _checks.check_stacked("params", params, stacked_axes)
        stddev = stddev_of()
        _checks.check_stddev(stddev, params, velocity_dtype)
        velocity = draw_velocity(_checks.canonical_key(key), stddev, params, velocity_dtype)
        return ScaleByGravityState(jnp.zeros([], jnp.int32), velocity)

    def update_fn(
        updates: optax.Updates, state: ScaleByGravityState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ScaleByGravityState]:
        del params, extra_args
        _checks.check_matches(updates, state.velocity)
        count = jnp.asarray(state.count, jnp.int32)

        @functools.cache
        def weights(dtype: Any) -> tuple[jax.Array, jax.Array]:
            """Eq. 26, and 1 - beta_hat without the catastrophic cancellation as beta_hat nears 1."""
            t = count.astype(dtype) + jnp.asarray(first_step, dtype)
            beta_hat = (jnp.asarray(beta, dtype) * t + 1) / (t + 2)
            return beta_hat, (jnp.asarray(1 - beta, dtype) * t + 1) / (t + 2)

        gradients, treedef = jax.tree.flatten(updates)
        computed = []
        for g, v in zip(gradients, jax.tree.leaves(state.velocity), strict=True):
            g, v = (x if isinstance(x, jax.Array) else jnp.asarray(x) for x in (g, v))
            computed.append(leaf_step(g, v, *weights(compute_dtype(g, v)), max_step_grad, stacked_axes or 0))
        steps, velocity = (jax.tree.unflatten(treedef, [pair[i] for pair in computed]) for i in (0, 1))
        return steps, ScaleByGravityState(optax.safe_increment(count), velocity)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _leaf_step(
    gradient: jax.Array,
    velocity: jax.Array,
    beta_hat: jax.Array,
    one_minus_beta_hat: jax.Array,
    max_step_grad: MaxStepGrad | None,
    stacked_axes: int,
) -> tuple[jax.Array, jax.Array]:
    """The new V of one leaf as an update, in the wider dtype of gradient and velocity, and as it is kept."""
    g = gradient.astype(beta_hat.dtype)
    zeta = zeta_of_ratio(g, ratio_to_m(g, max_step_grad, stacked_axes))  # Eqs. 20 and 21
    new = beta_hat * velocity.astype(g.dtype) + one_minus_beta_hat * zeta  # Eq. 22
    return new.astype(gradient.dtype) if gradient.dtype == velocity.dtype else new, new.astype(velocity.dtype)


_compiled_leaf_step = jax.jit(_leaf_step, static_argnums=(4, 5))
