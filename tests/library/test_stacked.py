"""Leaves that hold many weight matrices: with `stacked_axes` each is updated as it would be alone, up to rounding."""

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
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import compat
import oracle
from gravity_optax import gravity, scale_by_gravity

HOOKS = {"None": None, "0.3": lambda g: 0.3, "1/std G": oracle.TRIALS["1/std G"][0]}
MATRICES = [(), (1,), (7,), (33, 17), (3, 3, 4, 8)]  # an odd length, one that XLA vectorizes, a convolution's
# The order of a sum and fused multiply-adds depend on the shape. Over ten seeds of these trees the largest difference
# was 2 on jax 0.7.2, 4 on 0.10.1 and 8 on 0.12.0.1.
ULPS = 16
STACKS = [(24,), (4, 6)]


def random_tree(stack, scale, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(0, scale, stack + shape), jnp.float32) for shape in MATRICES]


@pytest.mark.parametrize("stack", STACKS, ids=str)
@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_stacked_tree_is_updated_as_its_slices_one_by_one_up_to_rounding(hook, stack):
    gradients, velocity = random_tree(stack, 3.0), random_tree(stack, 1.0, seed=1)
    stacked = gravity(0.1, key=0, max_step_grad=hook, stacked_axes=len(stack))
    alone = gravity(0.1, key=0, max_step_grad=hook)
    state = stacked.init(gradients)
    whole, whole_state = jax.jit(stacked.update)(gradients, (state[0]._replace(velocity=velocity), *state[1:]))
    update = jax.jit(alone.update)
    for i in itertools.product(*map(range, stack)):
        part, part_state = update(
            [g[i] for g in gradients], (state[0]._replace(velocity=[v[i] for v in velocity]), *state[1:])
        )
        for j, old in enumerate(velocity):
            largest = np.max(np.abs(old[i]))  # of the terms of Eq. 22, which may cancel in the result
            for ours, expected, scale in (
                (whole[j][i], part[j], 0.1 * largest),
                (whole_state[0].velocity[j][i], part_state[0].velocity[j], largest),
            ):
                error = np.abs(np.float64(ours) - np.float64(expected))
                assert np.max(error) <= ULPS * np.spacing(np.float32(scale))


def test_without_stacked_axes_one_maximum_serves_the_whole_leaf():
    gradients = jnp.stack([jnp.full(3, 0.5), jnp.full(3, 4.0)])
    steps = {}
    for axes in (None, 0, 1):
        tx = scale_by_gravity(0.0, key=0, first_step=0, stacked_axes=axes)
        steps[axes] = 2 * tx.update(gradients, tx.init(gradients))[0][:, 0]
    np.testing.assert_allclose(steps[1], [0.5 / (1 + 0.5**4), 4 / (1 + 4**4)], rtol=1e-6)
    np.testing.assert_allclose(steps[None], [0.5 / (1 + (0.5 * 4) ** 2), 4 / (1 + 4**4)], rtol=1e-6)
    np.testing.assert_array_equal(steps[0], steps[None])


@pytest.mark.parametrize("hook", [None, oracle.TRIALS["1/std G"][0]], ids=["None", "std"])
def test_a_stack_of_no_matrices_and_matrices_of_no_entries(hook):
    params = [jnp.zeros((0, 3)), jnp.zeros((3, 0))]
    tx = gravity(0.1, key=0, max_step_grad=hook, stacked_axes=1)
    updates, _ = jax.jit(tx.update)(params, tx.init(params))
    assert [u.shape for u in updates] == [(0, 3), (3, 0)]


# ---- a tree in which only some leaves are stacked


def scanned_network():
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + 0.3 * nn.tanh(nn.Dense(8)(x)), None

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            x, _ = layers(name="layers")(nn.Dense(8, name="into")(x), None)
            return nn.Dense(1, name="out")(x)

    return Network()


def partition_recipe(learning_rate, key):
    """The lines of gravity_optax/README.md."""
    page = (pathlib.Path(__file__).parents[2] / "gravity_optax" / "README.md").read_text()
    (recipe,) = re.findall(r"^  ```python\n(.*?)^  ```", page, re.DOTALL | re.MULTILINE)
    names = {"jax": jax, "optax": optax, "gravity": gravity, "learning_rate": learning_rate, "key": key}
    exec(textwrap.dedent(recipe), names)
    return names["tx"]


def test_a_scanned_model_trains_with_the_recipe_and_each_layer_has_its_own_m():
    x = jnp.linspace(-2, 2, 64)[:, None]
    y = jnp.sin(2 * x)
    model = scanned_network()
    params = model.init(jax.random.key(0), x)["params"]
    assert params["layers"]["Dense_0"]["kernel"].shape == (3, 8, 8)
    tx = partition_recipe(0.1, jax.random.key(1))

    def loss_of(params):
        return jnp.mean((model.apply({"params": params}, x) - y) ** 2)

    gradients = jax.grad(loss_of)(params)
    state = tx.init(params)
    updates, _ = jax.jit(tx.update)(gradients, state, params)

    one = functools.partial(oracle.velocity_after, t=1)
    layer_by_layer = lambda gradient, velocity: np.stack([*map(one, gradient, velocity)])
    for part, names in (("stacked", ["layers"]), ("plain", ["into", "out"])):
        velocity = state.inner_states[part].inner_state[0].velocity
        for name in names:
            expected = jax.tree.map(layer_by_layer if part == "stacked" else one, gradients[name], velocity[name])
            jax.tree.map(
                lambda u, e: np.testing.assert_allclose(u, -0.1 * e, rtol=2e-6, atol=1e-7), updates[name], expected
            )

    def step(carry, _):
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=300))((params, state))
    assert losses[-1] < 0.1 * losses[0]


# ---- on several devices


@pytest.mark.parametrize("spec", [P("x"), P(None, "x")], ids=["stack-sharded", "matrix-sharded"])
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("hook", [None, oracle.TRIALS["1/std G"][0]], ids=["None", "std"])
def test_a_sharded_stack_is_updated_as_on_one_device_and_stays_sharded(hook, mode, spec):
    gradient = jnp.asarray(np.random.default_rng(0).normal(0, 2, (8, 16, 4)), jnp.float32)
    tx = gravity(0.1, key=0, max_step_grad=hook, stacked_axes=1)
    expected, expected_state = jax.jit(tx.update)(gradient, tx.init(gradient))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(mode,))
    with compat.set_mesh(mesh):
        sharded = jax.device_put(gradient, NamedSharding(mesh, spec))
        updates, state = jax.jit(tx.update)(sharded, tx.init(sharded))
        for ours, other in ((updates, expected), (state[0].velocity, expected_state[0].velocity)):
            np.testing.assert_allclose(np.asarray(ours), np.asarray(other), rtol=2e-6, atol=1e-7)
            assert ours.sharding.is_equivalent_to(sharded.sharding, 3)
