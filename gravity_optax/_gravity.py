"""The Gravity optimizer of Bahrami and Pouriyan Zadeh (https://arxiv.org/abs/2101.09192).

`gravity` chains `scale_by_gravity` with the learning rate; `scale_by_gravity` draws V_0 (Eq. 27, `_first_velocity`) and
at each step applies Eqs. 20 to 26 to each leaf (`_gradient_term` has Eqs. 20 and 21). Errors about arguments and trees
are in `_checks`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gravity_optax import _checks
from gravity_optax._first_velocity import draw_velocity, initial_stddev
from gravity_optax._gradient_term import MaxStepGrad, compute_dtype, ratio_to_m, zeta_of_ratio

_STREAM = 0x47726176  # "Grav"


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
    key: jax.Array | int,
    first_step: int = 1,
    max_step_grad: MaxStepGrad | None = None,
    stacked_axes: int | None = None,
    velocity_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: jax.typing.ArrayLike | None = None,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformation:
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
    decay = []
    if weight_decay is not None:
        _checks.check_number("weight_decay", weight_decay, *_checks.NOT_NEGATIVE)
        decay = [optax.add_decayed_weights(weight_decay, weight_decay_mask)]
    return optax.chain(
        scale_by_gravity(
            initial_stddev(learning_rate, alpha),
            beta,
            key=key,
            first_step=first_step,
            max_step_grad=max_step_grad,
            stacked_axes=stacked_axes,
            velocity_dtype=velocity_dtype,
        ),
        *decay,
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_gravity(
    velocity_stddev: jax.typing.ArrayLike = 0.1,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    key: jax.Array | int,
    first_step: int = 1,
    max_step_grad: MaxStepGrad | None = None,
    stacked_axes: int | None = None,
    velocity_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
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
    _checks.check_number("beta", beta, *_checks.UNIT)
    _checks.check_first_step(first_step)
    _checks.check_max_step_grad(max_step_grad)
    _checks.check_stacked_axes(stacked_axes)
    _checks.check_velocity_dtype(velocity_dtype)
    base_key = _checks.canonical_key(key)

    def init_fn(params: optax.Params) -> ScaleByGravityState:
        _checks.check_real("params", params)
        _checks.check_stacked("params", params, stacked_axes)
        _checks.check_stddev(velocity_stddev, params, velocity_dtype)
        leaves, treedef = jax.tree.flatten(params)
        # A stream of its own: users give the weights the same seed, and split(key, n)[i] is fold_in(key, i).
        stream = jax.random.fold_in(jax.random.clone(base_key), _STREAM)  # a clone, since init may be called again
        keys = jax.random.split(stream, len(leaves))
        velocity = [
            draw_velocity(k, velocity_stddev, leaf, velocity_dtype) for k, leaf in zip(keys, leaves, strict=True)
        ]
        return ScaleByGravityState(jnp.zeros([], jnp.int32), jax.tree.unflatten(treedef, velocity))

    def update_fn(
        updates: optax.Updates, state: ScaleByGravityState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByGravityState]:
        del params
        _checks.check_matches(updates, state.velocity)
        updates = jax.tree.map(jnp.asarray, updates)

        def new_velocity(gradient: jax.Array, velocity: jax.Array) -> jax.Array:
            dtype = compute_dtype(gradient, velocity)
            gradient, velocity = gradient.astype(dtype), velocity.astype(dtype)
            t = state.count.astype(dtype) + jnp.asarray(first_step, dtype)
            zeta = zeta_of_ratio(gradient, ratio_to_m(gradient, max_step_grad, stacked_axes or 0))  # Eqs. 20 and 21
            # Eq. 26, and 1 - beta_hat without the catastrophic cancellation as beta_hat nears 1.
            beta_hat = (jnp.asarray(beta, dtype) * t + 1) / (t + 2)
            one_minus_beta_hat = (jnp.asarray(1 - beta, dtype) * t + 1) / (t + 2)
            return beta_hat * velocity + one_minus_beta_hat * zeta  # Eq. 22

        computed = jax.tree.map(new_velocity, updates, state.velocity)
        return (
            jax.tree.map(lambda v, like: v.astype(like.dtype), computed, updates),
            ScaleByGravityState(
                optax.safe_increment(state.count),
                jax.tree.map(lambda v, like: v.astype(like.dtype), computed, state.velocity),
            ),
        )

    return optax.GradientTransformation(init_fn, update_fn)
