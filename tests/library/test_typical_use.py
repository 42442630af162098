"""What users write around `gravity`: it runs, and `.ci/run` checks its types with mypy and pyrefly."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from gravity_optax import Damping, ScaleByGravityState, damping, gravity, gravity_term, scale_by_gravity

Params = dict[str, jax.Array]
PARAMS: Params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
GRADIENTS: Params = {"w": jnp.full((3, 2), 0.5), "b": jnp.full(2, -0.5)}
WARM_UP = optax.warmup_cosine_decay_schedule(0.0, 0.1, warmup_steps=10, decay_steps=100)
OPTIONS: dict[str, Any] = {"alpha": 0.01, "beta": 0.9, "key": 0}


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def is_matrix(params: Params) -> dict[str, bool]:
    return {name: leaf.ndim > 1 for name, leaf in params.items()}


def test_keys_numbers_rules_schedules_masks_and_wrappers() -> None:
    accumulated = optax.MultiSteps(gravity(0.1, key=0), every_k_schedule=2)
    transformations: list[optax.GradientTransformation] = [
        gravity(0.1, key=np.uint32(0)),
        gravity(0.1, key=np.random.default_rng(0).integers(2**31)),
        gravity(0.1, key=jax.random.key(0)),
        gravity(0.1, key=jax.random.PRNGKey(0)),
        gravity(0.1, key=np.asarray(jax.random.PRNGKey(0))),
        gravity(learning_rate=1, alpha=0, beta=0, key=0),
        gravity(0.1, np.float32(0.01), jnp.float32(0.9), key=0, first_step=0),
        gravity(jnp.array(0.1), key=0, velocity_dtype=jnp.bfloat16),
        gravity(0.1, key=0, velocity_dtype="bfloat16", velocity_stddev=0.1),
        gravity(0.1, **OPTIONS),
        gravity(0.1, key=0, max_step_grad=lambda g: np.float32(0.3)),
        gravity(0.1, key=0, max_step_grad=lambda g: 1 / jnp.linalg.norm(g)),
        gravity(WARM_UP, key=0),
        gravity(lambda count: 0.1, key=0),
        gravity(optax.cosine_decay_schedule(0.1, 100), key=0, weight_decay=optax.linear_schedule(0.0, 1e-3, 10)),
        optax.chain(scale_by_gravity(0.1, key=0), optax.scale_by_learning_rate(WARM_UP)),
        gravity(0.1, key=0, weight_decay=1e-4, weight_decay_mask={"w": True, "b": False}),
        gravity(0.1, key=0, weight_decay=1e-4, weight_decay_mask=is_matrix),
        optax.masked(gravity(0.1, key=0), is_matrix),
        optax.partition({"w": gravity(key=0), "b": gravity(key=1)}, lambda params: {name: name for name in params}),
        optax.chain(optax.clip_by_global_norm(1.0), gravity(0.1, key=0)),
        optax.inject_hyperparams(gravity)(learning_rate=WARM_UP, key=0),
        optax.inject_hyperparams(gravity, static_args=("key",))(learning_rate=0.1, beta=0.95, key=0),
        optax.apply_if_finite(gravity(0.1, key=0), max_consecutive_errors=3),
        optax.contrib.schedule_free(gravity(0.1, key=0), learning_rate=0.1),
        accumulated.gradient_transformation(),
    ]
    for tx in transformations:

        def train(gradients: Params, tx: optax.GradientTransformation = tx) -> optax.Params:
            """Two steps as in any training loop, whose values are for the other tests."""
            params, state = PARAMS, tx.init(PARAMS)
            for _ in range(2):
                updates, state = tx.update(gradients, state, params)
                params = optax.apply_updates(params, updates)
            return params

        assert jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(train, GRADIENTS)) == {"w": (3, 2), "b": (2,)}


def test_extra_arguments() -> None:
    tx = optax.chain(scale_by_gravity(key=0), optax.contrib.reduce_on_plateau())
    updates, _ = jax.jit(tx.update)(GRADIENTS, tx.init(PARAMS), PARAMS, value=jnp.float32(1))
    assert float(optax.tree.norm(updates)) > 0
    assert isinstance(scale_by_gravity(key=0), optax.GradientTransformationExtraArgs)


def test_in_a_jitted_step_with_the_state_s_type_written_out() -> None:
    tx: optax.GradientTransformation = gravity(0.1, key=0)

    @jax.jit
    def step(params: Params, state: optax.OptState) -> tuple[optax.Params, optax.OptState]:
        updates, state = tx.update(GRADIENTS, state, params)
        return optax.apply_updates(params, updates), state

    _, state = step(PARAMS, tx.init(PARAMS))
    assert int(optax.tree.get(state, "count", filtering=lambda path, value: "Gravity" in str(path))) == 1
    of_gravity = cast(ScaleByGravityState, scale_by_gravity(key=0).init(PARAMS))
    assert of_gravity.count.dtype == jnp.int32


def test_the_other_functions() -> None:
    what: Damping = damping(GRADIENTS, max_step_grad=lambda g: 0.3)
    assert float(what.share["w"]) == 1
    zeta: jax.Array = gravity_term(2.0, 1)
    assert float(gravity_term(np.float32(2), jnp.float32(1))) == float(zeta)
