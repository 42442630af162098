"""Max-Step Grad (Eq. 20): rules of one's own, one for each of the matrices stacked in a leaf, `damping`."""

import functools
import itertools
import pathlib
import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import oracle
from gravity_optax import ScaleByGravityState, damping, gravity, scale_by_gravity
from trees import F32, assert_trees_close

VELOCITY = jnp.linspace(0.5, -0.3, 12).reshape(3, 4)
STD = oracle.TRIALS["1/std G"][0]
MATRICES = [(), (7,), (33, 17), (3, 3, 4, 8)]  # an odd length, one that XLA vectorizes, a convolution's
# The order of a sum and fused multiply-adds depend on the shape. Over ten seeds of these trees the largest difference
# was 2 on jax 0.7.2, 4 on 0.10.1 and 8 on 0.12.0.1.
ULPS = 16


def velocity_of(hook, gradient, velocity=VELOCITY, **options):
    """V after one step at t = 1."""
    tx = scale_by_gravity(0.0, key=0, max_step_grad=hook, **options)
    return tx.update(gradient, ScaleByGravityState(0, velocity))[0]


def random_matrix(scale=1.0):
    return jnp.asarray(np.random.default_rng(2).normal(0, scale, (3, 4)), jnp.float32)


# ---- max_step_grad


@pytest.mark.parametrize(("hook", "exact"), oracle.TRIALS.values(), ids=oracle.TRIALS)
def test_the_authors_trials_agree_with_the_oracle(hook, exact):
    update = jax.jit(functools.partial(velocity_of, hook))
    for scale in (1e-3, 0.5, 20.0):
        gradient = random_matrix(scale)
        expected = oracle.velocity_after(gradient, VELOCITY, t=1, m=exact(np.asarray(gradient, np.float64)))
        np.testing.assert_allclose(update(gradient), expected, **F32)


def test_a_gradient_far_above_m_leaves_the_small_step_that_the_equations_say():
    # In float32 the square of g / m overflows; compiled, XLA joins divisions that follow each other.
    for g, m in np.float32([(1e30, 1e5), (1e38, 1e10), (1e10, 1e-10), (1e38, 1e38)]):
        step = functools.partial(velocity_of, lambda _, m=m: float(m), velocity=jnp.float32(0))
        for velocity in (step(g), jax.jit(step)(g)):
            np.testing.assert_allclose(velocity, oracle.velocity_after(g, 0.0, t=1, m=np.float64(m)), rtol=2e-6)


def test_every_leaf_has_its_own_m_and_empty_leaves_are_not_asked_also_when_called_again():
    seen = []

    def hook(g):
        seen.append((g.shape, g.dtype))
        return 1 / jnp.max(jnp.abs(g))

    gradients = {"b": jnp.full(3, 0.5, jnp.bfloat16), "empty": jnp.zeros((0, 2)), "w": jnp.full((2, 2), 3.0)}
    rest = jax.tree.map(lambda g: jnp.zeros(g.shape, g.dtype), gradients)
    for _ in range(2):  # a hook may be impure: each eager step asks again
        updates = velocity_of(hook, gradients, rest)
    assert seen == [((3,), jnp.float32), ((2, 2), jnp.float32)] * 2
    np.testing.assert_allclose(updates["w"], 1.1 / 3 * 3 / 82, rtol=1e-6)
    np.testing.assert_allclose(np.float32(updates["b"]), 1.1 / 3 * 0.5 / 1.0625, rtol=4e-3)
    seen.clear()
    update = jax.jit(functools.partial(velocity_of, hook))
    assert update(gradients, update(gradients, rest))["empty"].shape == (0, 2)
    assert len(seen) == 2  # traced once


def test_pmax_in_the_hook_serves_leaves_split_inside_shard_map():
    rng = np.random.default_rng(3)
    gradients = [jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for shape in ((8, 16), (16, 8))]
    state = ScaleByGravityState(jnp.int32(0), gradients)
    split = scale_by_gravity(0.1, key=0, max_step_grad=lambda g: 1 / jax.lax.pmax(jnp.max(jnp.abs(g)), "x"))
    alone = scale_by_gravity(0.1, key=0)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    specs = P("x"), ScaleByGravityState(P(), P("x"))
    run = lambda tx: jax.jit(jax.shard_map(tx.update, mesh=mesh, in_specs=specs, out_specs=specs))(gradients, state)
    expected = jax.jit(alone.update)(gradients, state)
    assert_trees_close(run(split), expected)
    # Without the hook each device takes the maximum of its part.
    assert max(np.abs(np.asarray(a) - b).max() for a, b in zip(run(alone)[0], expected[0], strict=True)) > 1e-3


def test_inject_hyperparams_takes_what_cannot_be_traced_in_static_args():
    options = {"max_step_grad": STD, "stacked_axes": 1, "velocity_dtype": jnp.bfloat16}
    tx, plain = optax.inject_hyperparams(gravity, tuple(options))(0.1, key=0, **options), gravity(0.1, key=0, **options)
    updates, state = jax.jit(tx.update)(random_matrix(), tx.init(VELOCITY))
    expected, plain_state = jax.jit(plain.update)(random_matrix(), plain.init(VELOCITY))
    np.testing.assert_allclose(updates, expected, **F32)
    assert state.inner_state[0].velocity.dtype == plain_state[0].velocity.dtype
    assert {"learning_rate", "alpha", "beta"} <= set(state.hyperparams) and not set(options) & set(state.hyperparams)


# ---- stacked_axes: each matrix is updated as it would be alone, up to rounding


@pytest.mark.parametrize("hook", [None, STD], ids=["None", "std"])
def test_a_stacked_tree_is_updated_as_its_slices_one_by_one_up_to_rounding(hook):
    rng = np.random.default_rng(0)
    gradients, velocity = ([np.float32(rng.normal(0, s, (4, 6, *shape))) for shape in MATRICES] for s in (3.0, 1.0))
    whole, alone = (jax.jit(functools.partial(velocity_of, hook, stacked_axes=axes)) for axes in (2, None))
    ours = whole(gradients, velocity)
    for i in itertools.product(range(4), range(6)):
        expected = alone([g[i] for g in gradients], [v[i] for v in velocity])
        for new, one, old in zip(ours, expected, velocity, strict=True):
            largest = np.max(np.abs(old[i]))  # of the terms of Eq. 22, which may cancel in the result
            assert np.max(np.abs(np.float64(new)[i] - np.float64(one))) <= ULPS * np.spacing(largest)


def test_a_stack_of_no_matrices_and_matrices_of_no_entries():
    params = [jnp.zeros((0, 3)), jnp.zeros((3, 0)), jnp.zeros((2, 1))]  # the last has vectors of one entry
    for hook in (None, STD):
        updates = jax.jit(functools.partial(velocity_of, hook, stacked_axes=1))(params, params)
        assert [u.shape for u in updates] == [(0, 3), (3, 0), (2, 1)]


def test_with_the_readme_s_partition_each_layer_has_its_own_m():
    page = (pathlib.Path(__file__).parents[2] / "gravity_optax" / "README.md").read_text()
    (recipe,) = re.findall(r"^  ```python\n(.*?)^  ```", page, re.DOTALL | re.MULTILINE)
    names = {"jax": jax, "optax": optax, "gravity": gravity, "learning_rate": 0.1, "key": jax.random.key(1)}
    exec(textwrap.dedent(recipe), names)
    gradients = {"layers": jnp.stack([random_matrix(), random_matrix(5.0)]), "out": random_matrix(2.0)}
    state = names["tx"].init(gradients)
    updates, _ = names["tx"].update(gradients, state, gradients)
    stacked, plain = (state.inner_states[part].inner_state[0].velocity for part in ("stacked", "plain"))
    one = functools.partial(oracle.velocity_after, t=1)
    expected = [one(g, v) for g, v in zip(gradients["layers"], stacked["layers"], strict=True)]
    np.testing.assert_allclose(updates["layers"], -0.1 * np.stack(expected), **F32)
    np.testing.assert_allclose(updates["out"], -0.1 * one(gradients["out"], plain["out"]), **F32)


# ---- damping: max|G|, and the share of entries that are damped below half of their value


@pytest.mark.parametrize("axes", [None, 1, 2])
def test_damping_of_each_matrix_against_numpy(axes):
    rng = np.random.default_rng(0)
    tree = {"w": np.float32(rng.normal(0, 3, (4, 5, 6))), "b": np.float32(rng.normal(0, 0.3, (4, 5, 1, 7)))}
    found = jax.jit(functools.partial(damping, stacked_axes=axes))(tree)
    for name, leaf in tree.items():
        sizes, within = np.abs(np.float64(leaf)), tuple(range(axes or 0, leaf.ndim))
        max_abs = sizes.max(within, keepdims=True)
        np.testing.assert_array_equal(found.max_abs[name], max_abs.squeeze(within))
        np.testing.assert_allclose(found.share[name], (sizes > 1 / max_abs).mean(within), rtol=1e-6)
    assert axes == 2 or (np.min(found.share["w"]) > 0.5 and np.max(found.share["b"]) == 0)


def test_damping_with_a_max_step_grad_of_ones_own():
    gradient = jnp.array([[0.0, 1.0, -3.0, 4.0]] * 2)
    for m, expected in ((2.0, 0.5), (-2.0, 0.5), (0, 0.75), (np.inf, 0.0), (4.0, 0.0)):
        for axes, shape in ((None, ()), (1, (2,))):
            max_abs, share = damping(gradient, stacked_axes=axes, max_step_grad=lambda g, m=m: m)
            np.testing.assert_array_equal(share, np.full(shape, expected))
            np.testing.assert_array_equal(max_abs, np.full(shape, 4.0))


def test_damping_of_a_leaf_with_a_nan_is_nan_and_of_an_empty_one_0_and_a_0_beside_inf_is_not_damped():
    tree = [jnp.array([1.0, jnp.nan]), jnp.zeros((0, 3)), jnp.array(2.0), jnp.array([1.0, 0.5])]
    tree.append(jnp.array([jnp.inf, 0.0, 1.0, -2.0]))
    max_abs, share = jax.jit(damping)(tree)
    np.testing.assert_array_equal(max_abs, [np.nan, 0, 2, 1, np.inf])
    np.testing.assert_array_equal(share, [np.nan, 0, 1, 0, 0.75])  # an entry at m keeps half and is not counted
    assert damping({}) == ({}, {})


def test_damping_of_a_bfloat16_leaf_is_counted_in_float32():
    max_abs, share = jax.jit(damping)(jnp.repeat(jnp.array([2.0, 0.25], jnp.bfloat16), jnp.array([300, 700])))
    assert max_abs.dtype == share.dtype == jnp.float32 and max_abs == 2
    assert share == pytest.approx(0.3, rel=1e-6)  # a count in bfloat16 would stop at 256


def test_damping_finds_a_nan_anywhere_in_a_large_leaf():
    whole, stacked = jax.jit(damping), jax.jit(functools.partial(damping, stacked_axes=1))
    for place in (0, 1, 300_007, 2**19 - 1):
        leaf = np.full((2, 2**19), 0.5, np.float32)
        leaf[0, place] = np.nan
        for number, clean in zip(stacked(leaf), (0.5, 0), strict=True):
            np.testing.assert_array_equal(number, [np.nan, clean])
        assert np.isnan(whole(leaf)).all()
