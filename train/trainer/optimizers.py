"""The optimizers by name, with schedules and clipping: Gravity, its variants, and optax's ten of the paper's Table 1.

They have Keras' default values. The published runs used Keras (TensorFlow's, of July 2021); today's is Keras 3. Where
optax computes something different at the same values:

- `momentum`, `nesterov`: the same, at a constant learning rate. Keras keeps the learning rate inside the velocity, so
  with a schedule each gradient keeps the rate of its own step.
- `adagrad`: optax adds epsilon inside the square root, as Keras 3 does; Keras of 2021 and the paper (Duchi et al.) add
  it outside. The sum of squares starts at 0.1, in the paper at 0.
- `adadelta`: the same. Both put a learning rate in front, 0.001 in Keras; Zeiler's paper has none: pass 1.
- `rmsprop`: epsilon is outside the root, as in Keras of 2021; Keras 3 and optax's own default put it inside.
- `adam`: optax adds epsilon to the bias-corrected root, as the paper's Algorithm 1 does; Keras adds it to the
  uncorrected one, so that it counts 1 / sqrt(1 - b2^t) as much: 32 times in the first step, 1.3 times in the 1,000th.
- `adamax`: optax takes max(b2 u, |g| + epsilon); Keras divides by max(b2 u, |g|) + epsilon; the paper has no epsilon.
- `nadam`: optax keeps b1 constant. Dozat and Keras let it rise to its value over a schedule,
  b1 (1 - 0.96^(0.004 t) / 2) (in Keras 3 without the 0.004). In Keras epsilon is as in optax.
- `amsgrad`: optax takes the maximum of the bias-corrected second moments, Keras of the uncorrected ones, which it
  corrects afterwards, with Adam's epsilon. Reddi et al. correct nothing: `bias_correction_mu=False,
  bias_correction_nu=False, eps=0.0`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gravity_optax import gravity
from trainer.config import ResolvedConfig, UserError


@dataclasses.dataclass(frozen=True)
class _Optimizer:
    function: Callable[..., optax.GradientTransformation]
    defaults: dict[str, Any]  # where they differ from the function's own
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)  # arguments that define this optimizer


_OPTIMIZERS = {
    "gravity": _Optimizer(gravity, {}),
    "sgd": _Optimizer(optax.sgd, {}, {"momentum": None, "nesterov": False}),
    "momentum": _Optimizer(optax.sgd, {"momentum": 0.9}, {"nesterov": False}),
    "adagrad": _Optimizer(optax.adagrad, {"initial_accumulator_value": 0.1, "eps": 1e-7}),
    "adadelta": _Optimizer(optax.adadelta, {"rho": 0.95, "eps": 1e-7}),
    "rmsprop": _Optimizer(optax.rmsprop, {"decay": 0.9, "eps": 1e-7, "eps_in_sqrt": False}),
    "nesterov": _Optimizer(optax.sgd, {"momentum": 0.9}, {"nesterov": True}),
    "adam": _Optimizer(optax.adam, {"eps": 1e-7}, {"nesterov": False}),
    "adamax": _Optimizer(optax.adamax, {"eps": 1e-7}),
    "nadam": _Optimizer(optax.adam, {"eps": 1e-7}, {"nesterov": True}),
    "amsgrad": _Optimizer(optax.amsgrad, {"eps": 1e-7}),
}
NAMES = tuple(_OPTIMIZERS)

# Variants that the authors tried on the way to Gravity, under the names of their notes (published_tuning.csv): other
# rules for Max-Step Grad, and initial velocities from Keras' initialisers with Keras' default sizes. `lab/grid.py`
# says which of them make up the authors' runs. Two rules for m are ours: `none`, without damping, and `rms`, which does
# not depend on the scale of the loss.
_EPSILON = 1e-7  # the authors'

# The rule for m -> `gravity`'s argument max_step_grad; the first is Eq. 20. Only the absolute value of m counts.
MAX_STEP_GRAD: dict[str, Callable[[jax.Array], Any] | None] = {
    "inverse_max_abs": None,
    "inverse_range": lambda g: 1 / (jnp.max(g) - jnp.min(g) + _EPSILON),
    "inverse_std": lambda g: 1 / (jnp.std(g) + _EPSILON),
    "max": jnp.max,
    "max_abs": lambda g: jnp.max(jnp.abs(g)),
    "none": lambda g: jnp.inf,  # zeta = G
    "rms": lambda g: jnp.sqrt(jnp.mean(jnp.square(g))),
}
# Arguments of jax.nn.initializers.variance_scaling: scale, mode, distribution.
_SCALED: dict[str, tuple[Any, ...]] = {
    "glorot_normal": (1.0, "fan_avg", "truncated_normal"),
    "glorot_uniform": (1.0, "fan_avg", "uniform"),
    "he_normal": (2.0, "fan_in", "truncated_normal"),
    "he_uniform": (2.0, "fan_in", "uniform"),
    "lecun_normal": (1.0, "fan_in", "truncated_normal"),
    "lecun_uniform": (1.0, "fan_in", "uniform"),
}
_FIXED = {
    "random_normal": jax.nn.initializers.normal(0.05),
    "random_uniform": lambda *args: jax.nn.initializers.uniform(0.1)(*args) - 0.05,
    "truncated_normal": jax.nn.initializers.truncated_normal(0.05),
}
INITIALIZERS = (*_SCALED, *_FIXED)


def make(name: str, learning_rate: optax.ScalarOrSchedule, **hyperparameters: Any) -> optax.GradientTransformation:
    """The optimizer `name` (one of NAMES).

    Args:
      name: gravity, or one of Table 1: sgd, momentum, adagrad, adadelta, rmsprop, nesterov, adam, adamax, nadam,
        amsgrad.
      learning_rate: a number or an optax schedule.
      **hyperparameters: named as in the optax function (or `gravity`, which needs its `key`). The defaults are Keras',
        except for momentum, 0 in Keras and 0.9 here.
    """
    entry = _OPTIMIZERS[name]
    return entry.function(learning_rate, **entry.defaults | hyperparameters | entry.fixed)


def build(
    config: ResolvedConfig, key: jax.Array, steps_per_epoch: int = 1, **hyperparameters: Any
) -> optax.GradientTransformation:
    """The optimizer of a resolved configuration, with its recipe; `key` draws Gravity's initial velocity.

    In this order: clipping, the optimizer at the peak learning rate (which Gravity's initial velocity depends on),
    weight decay, the schedule; all on the mean gradient of `config.accumulate` steps. Parts that are not configured are
    not in the chain. `steps_per_epoch` is needed for a schedule and for accumulation. `hyperparameters` are `make`'s,
    for an optimizer other than Gravity; they, the learning rate, weight decay and Gravity's beta may be traced.
    """
    tx = _alone(config, key, **hyperparameters)
    parts = [*clipping(config), tx]
    decay: Any = config.weight_decay
    if isinstance(decay, jax.Array) or decay:
        # Decoupled: applied after the optimizer, whose updates already have the sign and the learning rate.
        rate = -config.learning_rate * decay
        parts.append(optax.add_decayed_weights(rate, lambda params: jax.tree.map(lambda w: w.ndim > 1, params)))
    if config.schedule != "constant" or config.warmup_epochs:
        rates = schedule(config, steps_per_epoch)
        parts.append(optax.scale_by_schedule(lambda count: rates(count) / config.learning_rate))
    if len(parts) > 1:
        tx = optax.chain(*parts)
    if config.accumulate == 1:
        return tx
    if config.accumulate > (steps := config.epochs * steps_per_epoch):
        raise UserError(f"--accumulate is {config.accumulate}; this run has only {steps} steps: choose a smaller one.")
    return optax.MultiSteps(tx, config.accumulate).gradient_transformation()


def clipping(config: ResolvedConfig) -> list[optax.GradientTransformation]:
    """The stateless transformation that clips the gradient, or none."""
    if config.clip_norm is not None:
        return [optax.clip_by_global_norm(config.clip_norm)]
    return [] if config.clip_value is None else [optax.clip(config.clip_value)]


def schedule(config: ResolvedConfig, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by the number of updates done; an update takes `config.accumulate` steps."""
    updates = lambda epochs: int(epochs * steps_per_epoch // config.accumulate)
    peak, final = config.learning_rate, config.final_learning_rate or 0.0
    warmup, end = updates(config.warmup_epochs), updates(config.epochs)
    constant, length = optax.constant_schedule, max(1, end - warmup)
    if config.schedule == "step":
        parts = [constant(peak), constant((peak * final) ** 0.5), constant(final)]
        boundaries = [updates(config.epochs / 2), updates(config.epochs * 3 / 4)]
    else:
        after = {
            "constant": lambda: constant(peak),
            "cosine": lambda: optax.cosine_decay_schedule(peak, length, final / peak),
            "linear": lambda: optax.linear_schedule(peak, final, length),
        }
        parts, boundaries = [after[config.schedule]()], []
    if warmup:
        parts, boundaries = [optax.linear_schedule(0.0, peak, warmup), *parts], [warmup, *boundaries]
    return optax.join_schedules(parts, boundaries) if boundaries else parts[0]


def _alone(config: ResolvedConfig, key: jax.Array, **hyperparameters: Any) -> optax.GradientTransformation:
    """The optimizer without clipping, weight decay and schedule."""
    if config.optimizer != "gravity":
        return make(config.optimizer, config.learning_rate, **hyperparameters)
    assert config.max_step_grad and config.velocity  # `resolve` has filled them in
    tx = make(
        "gravity",
        config.learning_rate,
        alpha=config.alpha or 0.0,
        beta=config.beta,
        key=key,
        first_step=config.first_step,
        max_step_grad=max_step_grad(config),
    )
    return tx if config.velocity == "normal" else start_from(tx, config.velocity, key)


def max_step_grad(config: ResolvedConfig) -> Callable[[jax.Array], Any] | None:
    """The rule for m of a resolved configuration; for other optimizers than Gravity that of Eq. 20."""
    rule, factor = MAX_STEP_GRAD[config.max_step_grad or "inverse_max_abs"], config.max_step_grad_factor
    return rule if rule is None or factor is None else lambda g: factor * rule(g)


def start_from(tx: optax.GradientTransformation, name: str, key: jax.Array) -> optax.GradientTransformation:
    """Gravity `tx` with its initial velocity drawn from the initialiser `name`, one of INITIALIZERS."""

    def init(params: optax.Params) -> optax.OptState:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        velocity = [_draw(name, k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        return optax.tree.set(tx.init(params), velocity=jax.tree.unflatten(treedef, velocity))

    return optax.GradientTransformation(init, tx.update)


def _draw(name: str, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    if name in _FIXED:
        return _FIXED[name](key, shape, dtype)
    scale, mode, distribution = _SCALED[name]
    if len(shape) == 1:  # a bias: in Keras both its fans are n
        return jax.nn.initializers.variance_scaling(scale, "fan_in", distribution)(key, (*shape, 1), dtype)[:, 0]
    return jax.nn.initializers.variance_scaling(scale, mode, distribution)(key, shape, dtype)
