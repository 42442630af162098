"""What `.ci/optax-contrib` runs on a copy of optax with `pull_request.diff` applied and `_gravity.py` in it."""

import itertools
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from optax.contrib import _common_test

import gravity_optax

try:  # before JAX starts its backend, because it asks for eight devices
    from optax.contrib import _sharding_test
except ImportError:  # up to optax 0.2.8
    _sharding_test = None


# ---- optax's own tests


def cases_of_gravity(test_case):
    """The tests of a class of optax's that are about Gravity, by name or by their arguments."""
    names = unittest.defaultTestLoader.getTestCaseNames(test_case)
    arguments = {name: getattr(getattr(test_case, name), "__x_params_repr__", "") for name in names}
    return [test_case(name) for name in names if "'gravity'" in arguments[name] or name.endswith("_gravity")]


COMMON = cases_of_gravity(_common_test.ContribTest)
SHARDING = cases_of_gravity(_sharding_test.ContribShardingTest) if _sharding_test else []
TARGETS = (
    _common_test._setup_parabola,
    _common_test._setup_rosenbrock,
    _common_test._setup_matrix_parabola,
    _common_test._setup_mixed_tensor_target,
)


def test_all_cases_were_found():
    assert (len(COMMON), len(SHARDING)) == (16, 1 if _sharding_test else 0)


@pytest.mark.parametrize("case", COMMON + SHARDING, ids=lambda case: case._testMethodName)
def test_optax_accepts(case):
    result = case.run()
    assert result.testsRun == 1 and not result.skipped
    assert result.wasSuccessful(), "\n".join(text for _, text in result.failures + result.errors)


def test_without_the_clip_two_of_the_cases_fail(monkeypatch):
    """The numbers of DESIGN.md: 15 of 17 cases, where optax has all 17."""
    monkeypatch.setattr(_common_test._clipping, "clip_by_global_norm", lambda max_norm: optax.identity())
    arguments = {case: getattr(case, case._testMethodName).__x_params_repr__ for case in COMMON}
    failed = [arguments[case] for case in COMMON if "target=" in arguments[case] and not case.run().wasSuccessful()]
    assert len(failed) == 2
    assert "_setup_parabola" in failed[0] and "_setup_rosenbrock" in failed[1]


def settings_that_meet(target, settings, clip):
    """Which (learning rate, beta, velocity_stddev) end within optax's tolerance of the target's solution."""
    initial, solution, loss = target(jnp.float32)

    @jax.jit
    @jax.vmap
    def run(setting):
        tx = optax.chain(clip, optax.contrib.gravity(setting[0], setting[1], key=0, velocity_stddev=setting[2]))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (initial, tx.init(initial)), length=30_000)
        close = jax.tree.map(lambda p, s: jnp.all(jnp.abs(p - s) <= 3e-2 * (1 + jnp.abs(s))), params, solution)
        return jnp.all(jnp.array(jax.tree.leaves(close)))

    return np.asarray(run(settings))


@pytest.mark.parametrize(
    ("clip", "each", "together"),
    [(optax.identity(), (55, 139, 164, 230), 0), (optax.clip_by_global_norm(1.0), (260, 172, 304, 303), 124)],
    ids=["bare", "clipped"],
)
def test_how_many_constant_settings_meet_the_targets(clip, each, together):
    """The numbers of DESIGN.md. They may move by a few where rounding decides, except for the 0."""
    grid = itertools.product(np.logspace(-4, 2, 16), (0, 0.5, 0.9, 0.95, 0.99, 0.999), (0, 0.01, 0.1, 1))
    settings = jnp.array(list(grid), jnp.float32)
    assert len(settings) == 384
    met = np.stack([settings_that_meet(target, settings, clip) for target in TARGETS])
    np.testing.assert_allclose(met.sum(axis=1), each, atol=4)
    np.testing.assert_allclose((met[0] & met[1]).sum(), together, atol=4 if together else 0)
    np.testing.assert_allclose(met.all(axis=0).sum(), together, atol=4 if together else 0)


# ---- the same numbers as gravity_optax

SHAPES = {"kernel": (30, 20), "bias": [(20,), (0, 3)], "scale": ()}
STEPS = 50
WARM_UP = optax.warmup_cosine_decay_schedule(0.0, 0.2, 10, STEPS)


def tree_of(make, dtype):
    return jax.tree.map(lambda shape: jnp.asarray(make(shape), dtype), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def gradients(dtype):
    """Gradients of all steps, which are the first axis of each leaf, of sizes from 1e-4 to 30."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e-4, 30, STEPS)
    return tree_of(
        lambda shape: (sizes * rng.normal(size=(*shape, STEPS))).transpose(len(shape), *range(len(shape))), dtype
    )


def trajectory(tx, parameter=jnp.float32, gradient=jnp.float32, count=None):
    """The first velocity, and the updates and velocities of all steps, in one jitted loop."""
    params = tree_of(np.zeros, parameter)

    def step(state, g):
        updates, state = tx.update(g, state, params)
        return state, (updates, optax.tree.get(state, "velocity"))

    state = tx.init(params)
    velocity = optax.tree.get(state, "velocity")
    if count is not None:
        state = optax.tree.set(state, count=jnp.int32(count))
    return velocity, *jax.jit(lambda s, g: jax.lax.scan(step, s, g))(state, gradients(gradient))[1]


def assert_same(ours, theirs, ulps=16):
    """The same trees, shapes and dtypes, and numbers that differ by rounding.

    That is in units of the last place of the largest entry of a leaf over all steps, because a running mean keeps the
    rounding of what it has been.
    """
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        unit = float(jnp.finfo(a.dtype).eps)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(b, a, rtol=0, atol=ulps * unit * np.max(np.abs(a), initial=0))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (gravity_optax.gravity(0.1, key=0), optax.contrib.gravity(0.1, key=0)),
        (gravity_optax.gravity(0.1, key=7), optax.contrib.gravity(0.1, key=jax.random.key(7))),
        (gravity_optax.gravity(0.3, 0.06, 0.5, key=1), optax.contrib.gravity(0.3, 0.5, key=1, velocity_stddev=0.2)),
        (gravity_optax.gravity(0.1, 0, key=0), optax.contrib.gravity(0.1, key=0, velocity_stddev=0)),
        (gravity_optax.gravity(WARM_UP, key=0), optax.contrib.gravity(WARM_UP, key=0, velocity_stddev=0.01 / 0.2)),
        (gravity_optax.scale_by_gravity(0.3, key=2), optax.contrib.scale_by_gravity(key=2, velocity_stddev=0.3)),
    ],
    ids=["defaults", "key", "arguments", "from_rest", "schedule", "scale_by_gravity"],
)
def test_same_numbers(ours, theirs):
    assert_same(trajectory(ours), trajectory(theirs))


@pytest.mark.parametrize(
    ("parameter", "gradient"),
    [
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.float16, jnp.float16),
        (jnp.float32, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32),
    ],
)
def test_same_numbers_and_dtypes_in_low_precision(parameter, gradient):
    ours, theirs = gravity_optax.scale_by_gravity(key=0), optax.contrib.scale_by_gravity(key=0)
    assert_same(trajectory(ours, parameter, gradient), trajectory(theirs, parameter, gradient))


def test_a_count_of_minus_one_gives_the_paper_s_other_first_step():
    ours = gravity_optax.scale_by_gravity(key=0, first_step=0)
    assert_same(trajectory(ours), trajectory(optax.contrib.scale_by_gravity(key=0), count=-1))


def test_same_numbers_eagerly_and_under_inject_hyperparams():
    params = tree_of(np.zeros, jnp.float32)
    g = jax.tree.map(lambda leaf: leaf[STEPS // 2], gradients(jnp.float32))
    expected = (tx := gravity_optax.gravity(0.2, 0.02, 0.95, key=0)).update(g, tx.init(params))[0]
    plain = optax.contrib.gravity(0.2, 0.95, key=0)
    injected = optax.inject_hyperparams(optax.contrib.gravity)(0.2, 0.95, key=0)
    for tx in (plain, injected):
        assert_same(expected, tx.update(g, tx.init(params), params)[0])
