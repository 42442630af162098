"""The authors' PyTorch rule, written anew from the paper's equations, beside ours on the same gradients."""

import importlib

import numpy as np
import pytest

import oracle

pytestmark = pytest.mark.peers

FIRST_STEP = 1  # the convention of Algorithm 1 and of the authors' PyTorch code


@pytest.fixture(scope="module")
def torch():
    return importlib.import_module("torch")


def torch_trajectory(torch, gradients, velocity_0, params_0, learning_rate, beta=0.9):
    """Eqs. 20-26 on one leaf with torch's in-place float32 operations; every velocity and every parameter."""
    with torch.no_grad():
        weight, velocity = torch.tensor(params_0), torch.tensor(velocity_0)
        velocities, weights = [], []
        for t, gradient in enumerate(torch.tensor(gradients), start=FIRST_STEP):
            beta_hat = (beta * t + 1) / (t + 2)
            m = 1 / gradient.abs().max()
            zeta = gradient / (1 + (gradient / m).square())
            velocity.mul_(beta_hat).add_(zeta, alpha=1 - beta_hat)
            weight.sub_(velocity, alpha=learning_rate)
            velocities.append(velocity.numpy().copy())
            weights.append(weight.numpy().copy())
    return np.stack(velocities), np.stack(weights)


def leaf_of(run, layer, name):
    return (tree[layer][name] for tree in (run.gradients, run.velocity_0, run.params_0, run.velocities, run.params))


@pytest.mark.parametrize("name", ["w", "b"])
@pytest.mark.parametrize("layer", ["layer0", "layer1", "layer2"])
def test_training_run_agrees_with_pytorch_at_every_step(torch, layer, name):
    gradients, velocity_0, params_0, velocities, params = leaf_of(oracle.recorded_run(FIRST_STEP), layer, name)
    assert len(gradients) >= 300
    theirs = torch_trajectory(torch, gradients, velocity_0, params_0, oracle.LEARNING_RATE)
    assert theirs[0].dtype == theirs[1].dtype == np.float32
    assert oracle.worst_error(velocities, theirs[0]) <= 2e-6  # both are in float32
    assert oracle.worst_error(params, theirs[1]) <= 2e-6


def test_the_other_convention_of_the_first_step_does_not_agree_with_pytorch(torch):
    gradients, velocity_0, params_0, velocities, params = leaf_of(oracle.recorded_run(0), "layer0", "w")
    theirs = torch_trajectory(torch, gradients, velocity_0, params_0, oracle.LEARNING_RATE)
    assert oracle.worst_error(velocities, theirs[0]) > 1e-2
    assert oracle.worst_error(params, theirs[1]) > 1e-3
