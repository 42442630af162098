# Copyright 2026 DeepMind Technologies Limited. All Rights Reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
# ==============================================================================
"""Gravity optimizer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from optax._src import base
from optax._src import combine
from optax._src import numerics
from optax._src import transform
from optax._src import utils
import optax.tree


class ScaleByGravityState(NamedTuple):
  """State for the Gravity algorithm."""
  count: jax.typing.ArrayLike  # shape=(), dtype=jnp.int32.
  velocity: base.Updates


def scale_by_gravity(
    beta: jax.typing.ArrayLike = 0.9,
    *,
    key: jax.Array | int,
    velocity_stddev: jax.typing.ArrayLike = 0.1,
) -> base.GradientTransformation:
  """Rescale updates according to the Gravity algorithm.

  See :func:`optax.contrib.gravity` for more details.

  Args:
    beta: Decay rate of the velocity once the step count is large.
    key: random generator key, or a seed, for the initial velocity.
    velocity_stddev: Standard deviation of the initial velocity.

  Returns:
    A :class:`optax.GradientTransformation` object.
  """

  def init_fn(params):
    # A separate stream, since the parameters may come from the same seed.
    stream = jax.random.fold_in(utils.canonicalize_key(key), 0x47726176)
    noise = optax.tree.random_like(stream, params, dtype=jnp.float32)
    velocity = optax.tree.cast_like(
        optax.tree.scale(velocity_stddev, noise), params)
    return ScaleByGravityState(
        count=jnp.zeros([], jnp.int32), velocity=velocity)

  def update_fn(updates, state, params=None):
    del params
    t = state.count + 1.0
    weight = ((1 - beta) * t + 1) / (t + 2)  # 1 - beta_hat, to all its digits

    def new_velocity(g, v):
      dtype = jnp.promote_types(jnp.result_type(g, v), jnp.float32)
      g = g.astype(dtype)  # the powers below are beyond half precision
      zeta = g / (1 + (g * jnp.max(jnp.abs(g), initial=0)) ** 2)
      return (1 - weight) * v.astype(dtype) + weight * zeta

    velocity = jax.tree.map(new_velocity, updates, state.velocity)
    updates = jax.tree.map(
        lambda new, g, v: new.astype(jnp.result_type(g, v)),
        velocity, updates, state.velocity)
    return updates, ScaleByGravityState(
        count=numerics.safe_increment(state.count),
        velocity=optax.tree.cast_like(velocity, state.velocity))

  return base.GradientTransformation(init_fn, update_fn)


def gravity(
    learning_rate: base.ScalarOrSchedule,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    key: jax.Array | int,
    velocity_stddev: jax.typing.ArrayLike = 0.1,
) -> base.GradientTransformationExtraArgs:
  r"""The Gravity optimizer.

  Gravity follows a running mean of damped gradients, which turns from a mean of
  all into an exponential one. For each leaf :math:`G` of the gradients at step
  :math:`t = 1, 2, \ldots`, with learning rate :math:`l_t`,

  .. math::

    \begin{align*}
      \zeta_t &\leftarrow G_t / (1 + (G_t \cdot \max|G_t|)^2) \\
      \hat{\beta}_t &\leftarrow (\beta t + 1) / (t + 2) \\
      V_t &\leftarrow \hat{\beta}_t V_{t-1} + (1 - \hat{\beta}_t) \zeta_t \\
      W_t &\leftarrow W_{t-1} - l_t V_t
    \end{align*}

  from a normal :math:`V_0`. Gradients far below 1 act as they do in momentum.
  Where :math:`\max|G|` is above 1, the largest entries take the smallest steps
  and training may stall: chain :func:`optax.clip_by_global_norm` in front.

  Args:
    learning_rate: A global scaling factor, either fixed or evolving along
      iterations with a scheduler, see :func:`optax.scale_by_learning_rate`.
    beta: Decay rate of the velocity once :math:`t` is large.
    key: random generator key, or a seed, for the initial velocity.
    velocity_stddev: Standard deviation of the initial velocity. The paper has
      :math:`\alpha / l` with :math:`\alpha = 0.01` and :math:`l = 0.1`.

  Returns:
    The corresponding :class:`optax.GradientTransformationExtraArgs`.

  Examples:
    >>> import optax
    >>> import jax
    >>> import jax.numpy as jnp
    >>> def f(x): return jnp.mean(x ** 2)  # simple quadratic function
    >>> solver = optax.contrib.gravity(learning_rate=0.1, key=0)
    >>> params = jnp.array([.1, .2, .3])
    >>> print('Objective function: {:.2E}'.format(f(params)))
    Objective function: 4.67E-02
    >>> opt_state = solver.init(params)
    >>> for _ in range(5):
    ...  grad = jax.grad(f)(params)
    ...  updates, opt_state = solver.update(grad, opt_state, params)
    ...  params = optax.apply_updates(params, updates)
    ...  print('Objective function: {:.2E}'.format(f(params)))
    Objective function: 4.43E-02
    Objective function: 4.10E-02
    Objective function: 3.73E-02
    Objective function: 3.35E-02
    Objective function: 2.97E-02

  References:
    Bahrami et al, `Gravity Optimizer: a Kinematic Approach on Optimization in
    Deep Learning <https://arxiv.org/abs/2101.09192>`_, 2021
  """
  return combine.chain(
      scale_by_gravity(beta, key=key, velocity_stddev=velocity_stddev),
      transform.scale_by_learning_rate(learning_rate),
  )
