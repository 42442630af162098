"""The same few lines train a small network on scikit-learn's digits in Flax Linen, Flax NNX and Equinox, the state
outlives Orbax, `flax.serialization` and NumPy, and a run that the authors' PyTorch optimizer began goes on here."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from torch_peer import authors_rule

import oracle
from gravity_optax import gravity

eqx = pytest.importorskip("equinox")
nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
serialization = pytest.importorskip("flax.serialization")
TrainState = pytest.importorskip("flax.training.train_state").TrainState
ocp = pytest.importorskip("orbax.checkpoint")

TX = gravity(0.5, key=0)
IMAGES, LABELS = (array[:300] for array in oracle.digits())
IMAGES = np.float32(IMAGES / 16)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, np.int32(LABELS)).mean()


def learns(step, *state):
    losses = []
    for _ in range(100):
        *state, loss = step(*state)
        losses.append(float(loss))
    assert losses[0] > 2 and losses[-1] < 0.3  # from the 2.3 of a guess (0.18 to 0.20 measured)


def test_flax_linen_train_state_learns_the_digits():
    model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)])
    params = jax.jit(model.init)(jax.random.key(0), IMAGES[:1])["params"]

    @jax.jit
    def step(state):
        loss_of = lambda params: cross_entropy(state.apply_fn({"params": params}, IMAGES))
        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        return state.apply_gradients(grads=gradients), loss

    learns(step, TrainState.create(apply_fn=model.apply, params=params, tx=TX))


def test_flax_nnx_optimizer_learns_the_digits():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: cross_entropy(model(IMAGES)))(model)
        optimizer.update(model, gradients)
        return loss

    learns(lambda: (step(model, optimizer),))


def test_equinox_module_with_leaves_that_are_no_parameters_learns_the_digits():
    model = eqx.nn.MLP(64, 10, width_size=32, depth=1, key=jax.random.key(0))
    state = TX.init(eqx.filter(model, eqx.is_inexact_array))
    assert state[0].velocity.activation is None  # relu: eqx.filter leaves None where a leaf is no parameter

    @eqx.filter_jit
    def step(model, state):
        loss, gradients = eqx.filter_value_and_grad(lambda model: cross_entropy(jax.vmap(model)(IMAGES)))(model)
        updates, state = TX.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss

    learns(step, model, state)


def through_orbax(tree, file):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(file, tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(file, jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))


def through_flax(tree, file):
    file.write_bytes(serialization.to_bytes(tree))
    return serialization.from_bytes(jax.tree.map(np.zeros_like, tree), file.read_bytes())


def through_numpy(tree, file):
    leaves, treedef = jax.tree.flatten(tree)
    np.savez(file, *leaves)
    with np.load(f"{file}.npz") as arrays:
        # NumPy's files know no bfloat16 and give back bytes, hence the view.
        return jax.tree.unflatten(treedef, [arrays[f"arr_{i}"].view(leaf.dtype) for i, leaf in enumerate(leaves)])


def test_a_restored_run_goes_on_bit_for_bit(tmp_path):
    tx = optax.partition({"a": TX, "b": gravity(0.5, key=0, velocity_dtype=jnp.bfloat16)}, {"a": "a", "b": "b"})
    params = {name: jnp.linspace(-0.1, 0.1, 640).reshape(64, 10) for name in "ab"}

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda params: sum(cross_entropy(IMAGES @ w) for w in params.values()))(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    saved = step(*step(params, tx.init(params)))
    for carry in (through_orbax, through_flax, through_numpy):
        restored = carry(saved, tmp_path / carry.__name__)
        for ours, theirs in ((restored, saved), (step(*restored), step(*saved))):
            assert jax.tree.structure(ours) == jax.tree.structure(theirs)
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


# ---- from PyTorch

README = (pathlib.Path(__file__).parents[2] / "gravity_optax" / "README.md").read_text()
# The README's own lines; `model` is a torch module, `theirs` its optimizer.
(RECIPE,) = re.findall(r"From the authors' PyTorch optimizer.*?```python\n(.*?)```", README, re.DOTALL)


def continued(model, theirs):
    """What the recipe defines."""
    scope = {"model": model, "theirs": theirs, "gravity": gravity, "jnp": jnp, "optax": optax}
    exec(RECIPE, scope)
    return scope["tx"], scope["params"], scope["state"]


@pytest.mark.peers
def test_fifty_steps_in_torch_and_fifty_here_are_a_hundred_in_torch():
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10))
    theirs = authors_rule()(model.parameters(), lr=0.2, alpha=0.02, beta=0.8)

    def train(steps):
        for _ in range(steps):
            model.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(torch.tensor(IMAGES)), torch.tensor(LABELS))
            loss.backward()
            theirs.step()
        return float(loss.detach())

    first_loss = train(1)
    train(49)
    tx, params_0, state_0 = continued(model, theirs)
    assert state_0[0].count == 50
    assert jax.tree.structure(state_0) == jax.tree.structure(tx.init(params_0))

    def loss_of(params):
        hidden = jnp.tanh(IMAGES @ params["0.weight"].T + params["0.bias"][None])
        return cross_entropy(hidden @ params["2.weight"].T + params["2.bias"][None])

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    train_here = jax.jit(lambda *carry: jax.lax.scan(step, carry, length=50)[0])
    params, state = train_here(params_0, state_0)
    forgetful, _ = train_here(params_0, optax.tree.set(state_0, count=jnp.int32(0)))
    assert train(50) < 0.7 * first_loss  # torch's own second half; what was carried over is a copy
    weights = dict(model.named_parameters())
    error = lambda ours, theirs: np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    for name, weight in weights.items():
        assert error(params[name], weight.detach().numpy()) <= 1e-5
        assert error(state[0].velocity[name], theirs.state[weight]["v"].numpy()) <= 1e-5
        assert error(params_0[name], weight.detach().numpy()) > 1e-2  # the second half did move it
    # The count matters: from a count of 0 the same 50 steps end elsewhere.
    assert max(error(forgetful[name], weight.detach().numpy()) for name, weight in weights.items()) > 1e-3


@pytest.mark.peers
def test_the_recipe_sets_the_count_of_a_schedule_too():
    model = importlib.import_module("torch").nn.Linear(3, 2)
    theirs = authors_rule()(model.parameters())
    theirs.param_groups[0].update(t=7, lr=optax.linear_schedule(0.1, 0.0, 10))
    _, _, state = continued(model, theirs)
    assert [int(count) for _, count in optax.tree.get_all_with_path(state, "count")] == [7, 7]
