"""The Gravity optimizer of Bahrami and Pouriyan Zadeh (https://arxiv.org/abs/2101.09192).

`gravity` chains `scale_by_gravity` with the learning rate; `scale_by_gravity` draws V_0 (`_draw_velocity`) and at each
step applies Eqs. 20-26 to each leaf. Errors about arguments and trees are in `gravity_optax._checks`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gravity_optax import _checks

MaxStepGrad = Callable[[jax.Array], jax.Array]  # one gradient matrix -> m, a scalar


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
            _initial_stddev(learning_rate, alpha),
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
        keys = jax.random.split(jax.random.clone(base_key), len(leaves))  # init may be called again
        velocity = [
            _draw_velocity(k, velocity_stddev, leaf, velocity_dtype) for k, leaf in zip(keys, leaves, strict=True)
        ]
        return ScaleByGravityState(jnp.zeros([], jnp.int32), jax.tree.unflatten(treedef, velocity))

    def update_fn(
        updates: optax.Updates, state: ScaleByGravityState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByGravityState]:
        del params
        _checks.check_matches(updates, state.velocity)
        updates = jax.tree.map(jnp.asarray, updates)

        def new_velocity(gradient: jax.Array, velocity: jax.Array) -> jax.Array:
            dtype = _compute_dtype(gradient, velocity)
            gradient, velocity = gradient.astype(dtype), velocity.astype(dtype)
            t = state.count.astype(dtype) + jnp.asarray(first_step, dtype)
            zeta = _zeta(gradient, _ratio(gradient, max_step_grad, stacked_axes or 0))  # Eqs. 20 and 21
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


def gravity_term(gradient: jax.typing.ArrayLike, max_step_grad: jax.typing.ArrayLike) -> jax.Array:
    r"""The gradient term :math:`\zeta = g / (1 + (g / m)^2)` (Eq. 21).

    It is largest, m / 2, at g = m; for g well below m it is g, well above m it is :math:`m^2 / g`. Neither a large g
    nor m = 0 or m = inf makes it overflow or NaN; a non-finite g or a NaN m does.

    Args:
      gradient: g, a float array of any shape.
      max_step_grad: m > 0 (Max-Step Grad), broadcast against `gradient`.

    Returns:
      :math:`\zeta`, in the dtype of `gradient` (computed in at least float32).

    Example:
      >>> import jax.numpy as jnp
      >>> from gravity_optax import gravity_term
      >>> print(gravity_term(jnp.array([0.0, 1.0, 2.0, 3.0]), 1.0))
      [0.  0.5 0.4 0.3]
    """
    gradient = jnp.asarray(gradient)
    if not jnp.issubdtype(gradient.dtype, jnp.floating):  # a Python int, say
        gradient = gradient.astype(jnp.float32)
    dtype = _compute_dtype(gradient)
    g = gradient.astype(dtype)
    return _zeta(g, _over_m(g, jnp.asarray(max_step_grad, dtype))).astype(gradient.dtype)


class Damping(NamedTuple):
    """What `damping` returns: two trees like the gradients, of one number per matrix (float32, or float64)."""

    max_abs: Any  # max|G|, of shape leaf.shape[:stacked_axes]
    share: Any  # of the same shape: the share of entries with |g| > m


def damping(
    gradients: optax.Updates, *, stacked_axes: int | None = None, max_step_grad: MaxStepGrad | None = None
) -> Damping:
    """How strongly Gravity damps these gradients: a run stalls where max|G| is far above 1.

    An entry with |g| > m takes part in the step with less than half of its value (Eq. 21).

    Args:
      gradients: a tree of real float arrays, as handed to `update`.
      stacked_axes: as in `gravity`.
      max_step_grad: as in `gravity`.

    Returns:
      `Damping(max_abs, share)`, NaN for a matrix whose maximum is NaN, 0 for one without entries.

    Raises:
      ValueError: for leaves with fewer axes than `stacked_axes`.
      TypeError: for an argument or a leaf of the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> from gravity_optax import damping
      >>> max_abs, share = damping({"w": jnp.array([0.1, 0.2, 1.0, 4.0])})  # m = 1 / 4
      >>> print(max_abs["w"], share["w"])
      4.0 0.5
    """
    _checks.check_max_step_grad(max_step_grad)
    _checks.check_stacked_axes(stacked_axes)
    _checks.check_real("gradients", gradients)
    _checks.check_stacked("gradients", gradients, stacked_axes)
    stack = stacked_axes or 0

    def share_of(gradient: jax.Array) -> jax.Array:
        ratio = _ratio(gradient, max_step_grad, stack)
        damped = jnp.where(jnp.isnan(ratio), ratio, (ratio > 1).astype(ratio.dtype))
        return jnp.sum(damped, axis=tuple(range(stack, gradient.ndim))) / max(math.prod(gradient.shape[stack:]), 1)

    gradients = jax.tree.map(lambda g: jnp.asarray(g).astype(_compute_dtype(jnp.asarray(g))), gradients)
    max_abs = jax.tree.map(lambda g: _max_abs(g, stack).reshape(g.shape[:stack]), gradients)
    return Damping(max_abs, jax.tree.map(share_of, gradients))


def _ratio(gradient: jax.Array, max_step_grad: MaxStepGrad | None, stacked_axes: int) -> jax.Array:
    """|G / m| of a leaf, with an m (Eq. 20 unless `max_step_grad` is given) for each of its matrices."""
    if max_step_grad is None or gradient.size == 0:
        return jnp.abs(gradient * _max_abs(gradient, stacked_axes))

    def m_of(matrix: jax.Array) -> jax.Array:
        m = jnp.asarray(max_step_grad(matrix), gradient.dtype)
        if m.shape != ():
            raise ValueError(f"max_step_grad gave an array of shape {m.shape}; it must give one m for each matrix.")
        return m

    for _ in range(stacked_axes):
        m_of = jax.vmap(m_of)
    # XLA divides by a constant as a product with its inverse, which underflows for m above 8e37; hence the barrier.
    m = jax.lax.optimization_barrier(m_of(gradient))
    return _over_m(gradient, jnp.expand_dims(m, tuple(range(stacked_axes, gradient.ndim))))


def _over_m(g: jax.Array, m: jax.Array) -> jax.Array:
    """|g / m|, with m = 0 taken as the smallest normal number, so that g = 0 gives 0 and not NaN."""
    return jnp.abs(g / jnp.maximum(jnp.abs(m), jnp.finfo(g.dtype).tiny))


def _zeta(g: jax.Array, ratio: jax.Array) -> jax.Array:
    """Eq. 21, g / (1 + ratio^2) for ratio = |g / m|; neither it nor its derivatives overflow."""
    # Above 1, numerator and denominator are divided by the ratio, so that its square is not needed. As products with
    # its inverse: XLA rewrites (a / b) / c as a / (b c), which does overflow.
    above = ratio > 1
    inverse = 1 / jnp.where(above, ratio, 1)
    return (g * inverse) / (inverse + jnp.where(above, 1, ratio) * ratio)


def _max_abs(gradient: jax.Array, stacked_axes: int) -> jax.Array:
    """max|G| of each matrix of a leaf, whose axes stay with size 1; 0 where there is nothing."""
    axes = tuple(range(stacked_axes, gradient.ndim))

    def largest(g: jax.Array) -> jax.Array:  # one reduction: the maxima of sharded leaves share one all-reduce
        return jnp.max(jnp.abs(g), axis=axes, keepdims=True, initial=0)

    axis = -2 if len(axes) > 1 else -1
    is_sharded = any(jax.typeof(gradient).sharding.spec)  # in explicit mode, where an axis cannot be cut
    if not axes or gradient.size < 2**16 or gradient.shape[axis] < 16 or is_sharded:
        return largest(gradient)
    fold = functools.partial(_fold, axis=axis)
    return jax.lax.platform_dependent(gradient, cpu=lambda g: largest(fold(g)), default=largest)


def _fold(g: jax.Array, axis: int) -> jax.Array:
    """A sixteenth of g along an axis, with the same max|g|: XLA:CPU reduces abs() in a scalar loop on one core.

    Elementwise functions run there with vector instructions on all cores (the whole step twice as fast). The parts may
    overlap; the barrier keeps XLA from moving the fold back into the reduction.
    """
    size = -(-g.shape[axis] // 16)
    starts = (min(part * size, g.shape[axis] - size) for part in range(16))
    parts = (jnp.abs(jax.lax.slice_in_dim(g, start, start + size, axis=axis)) for start in starts)
    return jax.lax.optimization_barrier(functools.reduce(jnp.maximum, parts))


def _initial_stddev(learning_rate: optax.ScalarOrSchedule, alpha: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """alpha / l (Eq. 27), with l at step 0; 0 where l is an array and alpha / l is not finite."""
    _checks.check_number("alpha", alpha, *_checks.NOT_NEGATIVE)
    if callable(learning_rate):
        with jax.ensure_compile_time_eval():  # a number, also when the transformation is built inside jit
            first = learning_rate(jnp.zeros([], jnp.int32))
        _checks.check_first_learning_rate(first)
    else:
        first = learning_rate
        # An array may be 0: optax.inject_hyperparams passes on what a schedule gives, at every step.
        in_range = _checks.NOT_NEGATIVE[1] if isinstance(first, jax.Array) else _checks.POSITIVE[1]
        _checks.check_number("learning_rate", first, _checks.POSITIVE[0], in_range)
    if not isinstance(first, jax.Array) and not isinstance(alpha, jax.Array):
        ratio = _checks.as_float(alpha) / _checks.as_float(first)
        if not math.isfinite(ratio):
            raise ValueError(f"alpha / learning_rate is {alpha} / {first}, which is beyond float64; lower alpha.")
        return ratio
    stddev = jnp.asarray(alpha, jnp.float32) / jnp.asarray(first, jnp.float32)
    return jnp.where(jnp.isfinite(stddev), stddev, 0)


def _draw_velocity(
    key: jax.Array, stddev: jax.typing.ArrayLike, leaf: jax.typing.ArrayLike, dtype: jax.typing.DTypeLike | None
) -> jax.Array:
    """V_0 ~ N(0, stddev) (Eq. 27) with the shape and sharding of `leaf`, which may be a ShapeDtypeStruct."""
    aval = jax.typeof(leaf)
    dtype = aval.dtype if dtype is None else jax.dtypes.canonicalize_dtype(dtype)
    stddev = jnp.asarray(stddev, _compute_dtype(aval))
    if isinstance(leaf, jax.core.Tracer):
        return _draw(key, stddev, aval.shape, dtype, aval.sharding)
    sharding = getattr(leaf, "sharding", None)
    if sharding is not None and getattr(leaf, "committed", True):
        # Compiled with the leaf's own sharding, so that no device ever holds a sharded leaf whole.
        return _compiled_draw(aval.shape, dtype, sharding)(key, stddev)
    # The same numbers, drawn flat in one of a few lengths (powers of 4): XLA compiles a flat draw three times faster,
    # and a length once; the first of many numbers are those of a draw of fewer. VGG11 starts some seconds earlier.
    length = 4 ** max(7, -(-(aval.size - 1).bit_length() // 2)) if 0 < aval.size < 2**20 else aval.size
    return _first(_compiled_draw((length,), dtype, None)(key, stddev), aval.shape)


def _draw(key, stddev, shape, dtype, out_sharding=None):
    sample = jax.random.normal(key, shape, stddev.dtype, out_sharding=out_sharding) * stddev
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(sample, -limit, limit).astype(dtype)


@functools.lru_cache(maxsize=1024)
def _compiled_draw(shape, dtype, sharding):
    return jax.jit(functools.partial(_draw, shape=shape, dtype=dtype), out_shardings=sharding)


@functools.partial(jax.jit, static_argnums=1)
def _first(numbers, shape):
    return numbers[: math.prod(shape)].reshape(shape)


def _compute_dtype(*arrays: Any) -> jnp.dtype:
    """float64 where one of the arrays is, else float32."""
    return jnp.dtype(jnp.float64 if any(a.dtype == jnp.float64 for a in arrays) else jnp.float32)
