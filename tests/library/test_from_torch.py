"""Continuing a run started with the authors' PyTorch optimizer: 50 steps there and 50 here equal 100 there."""

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

pytestmark = pytest.mark.peers

README = (pathlib.Path(__file__).parents[2] / "gravity_optax" / "README.md").read_text()
# The README's own lines; `model` is a torch module, `theirs` its optimizer.
(RECIPE,) = re.findall(r"From the authors' PyTorch optimizer.*?```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def torch():
    return importlib.import_module("torch")


def begun(torch, images, labels):
    """A model, its optimizer and a function that trains it for some steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10))
    theirs = authors_rule()(model.parameters(), lr=0.2, alpha=0.02, beta=0.8)
    images, labels = torch.tensor(images), torch.tensor(labels)

    def train(steps):
        for _ in range(steps):
            model.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            theirs.step()
        return float(loss.detach())

    return model, theirs, train


def relative(ours, expected):
    return np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max()


def test_fifty_steps_in_torch_and_fifty_here_are_a_hundred_in_torch(torch):
    images, labels = oracle.digits()
    images, labels = np.float32(images[:200] / 16), np.int64(labels[:200])
    model, theirs, train = begun(torch, images, labels)
    first_loss = train(1)
    train(49)

    scope = {"model": model, "theirs": theirs, "gravity": gravity, "jnp": jnp, "optax": optax}
    exec(RECIPE, scope)
    tx, carry = scope["tx"], (scope["params"], scope["state"])
    assert carry[1][0].count == 50
    assert jax.tree.structure(carry[1]) == jax.tree.structure(tx.init(carry[0]))

    def loss_of(params):
        hidden = jnp.tanh(images @ params["0.weight"].T + params["0.bias"][None])
        logits = hidden @ params["2.weight"].T + params["2.bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.int32(labels)).mean()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=50))(carry)
    assert train(50) < 0.7 * first_loss  # torch's own second half; what was carried over is a copy
    for name, weight in model.named_parameters():
        assert relative(params[name], weight.detach().numpy()) <= 1e-5
        assert relative(state[0].velocity[name], theirs.state[weight]["v"].numpy()) <= 1e-5
        assert relative(carry[0][name], weight.detach().numpy()) > 1e-2  # the second half did move it

    # The count matters: from a count of 0 the same 50 steps end elsewhere.
    (forgetful, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=50))(
        (carry[0], optax.tree.set(carry[1], count=jnp.int32(0)))
    )
    assert max(relative(forgetful[n], w.detach().numpy()) for n, w in model.named_parameters()) > 1e-3


def test_the_recipe_sets_the_count_of_a_schedule_too(torch):
    model = torch.nn.Linear(3, 2)
    theirs = authors_rule()(model.parameters())
    theirs.param_groups[0].update(t=7, lr=optax.linear_schedule(0.1, 0.0, 10))
    scope = {"model": model, "theirs": theirs, "gravity": gravity, "jnp": jnp, "optax": optax}
    exec(RECIPE, scope)
    assert [int(count) for _, count in optax.tree.get_all_with_path(scope["state"], "count")] == [7, 7]
