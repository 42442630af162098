"""One optimizer step (update and apply, state and parameters donated): Gravity beside optax's and PyTorch's optimizers.

    pip install -e ".[train,peers]" && python tests/speed/optimizer_step.py [--json FILE]

Three trees of float32 parameters: VGG16's 32 leaves, 1,000 leaves of 1,000, and one of 100 million. Every candidate
does the same: new parameters and state from given gradients. GB/s counts the arrays that must move at least (Gravity: G
twice, V and W in and out, six in all; momentum SGD five, Adam seven) over the median time.
"""

import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
import torch

from gravity_optax import gravity

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "train"))
import vgg

ARRAYS = {"gravity": 6, "adam": 7, "momentum": 5, "pass": 2}


def trees() -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the leaves."""
    model = vgg.build("vgg16", 1.0, 10, "float32")
    params = jax.eval_shape(lambda: vgg.init(model, jax.random.key(0), (32, 32, 3)))
    return {
        "vgg16": [leaf.shape for leaf in jax.tree.leaves(params)],
        "1000 x 1000": [(1000,)] * 1000,
        "1 x 100M": [(100_000_000,)],
    }


def jax_step(tx: optax.GradientTransformation, gradients: list[np.ndarray]) -> tuple[Callable[[], object], float]:
    """A step of an optax optimizer, and the seconds that its compilation took."""
    grads = [jnp.asarray(g) for g in gradients]
    params = [jnp.zeros_like(g) for g in grads]
    state = [params, tx.init(params)]

    def step(grads, params, opt_state):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    lowered = jax.jit(step, donate_argnums=(1, 2)).lower(grads, *state)
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start

    def run():
        state[:] = jax.block_until_ready(compiled(grads, *state))

    return run, seconds


def torch_step(make: Callable, gradients: list[np.ndarray]) -> Callable[[], object]:
    """A step of a torch optimizer."""
    params = [torch.zeros(g.shape, requires_grad=True) for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.from_numpy(g)
    return make(params).step


class AuthorsRule(torch.optim.Optimizer):
    """Algorithm 1 in PyTorch, an operation at a time, as the authors wrote theirs."""

    def __init__(self, params, lr=0.1, alpha=0.01, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})
        self.t = 0
        for p in self.param_groups[0]["params"]:
            self.state[p]["v"] = torch.randn_like(p) * (alpha / lr)

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        self.t += 1
        average = (group["beta"] * self.t + 1) / (self.t + 2)
        for p in group["params"]:
            m = 1 / p.grad.abs().max()
            zeta = p.grad / (1 + (p.grad / m) ** 2)
            self.state[p]["v"] = average * self.state[p]["v"] + (1 - average) * zeta
            p -= group["lr"] * self.state[p]["v"]


def candidates(gradients: list[np.ndarray]) -> tuple[dict[str, Callable], dict[str, float]]:
    """Every candidate by name, and the compilation times of those that are compiled."""
    from pytorch_optimizer import Gravity

    ours = {
        "gravity": gravity(0.1, key=0),
        "optax.adam": optax.adam(1e-3),
        "optax.sgd, momentum": optax.sgd(0.1, momentum=0.9),
        "pass in place": optax.stateless(lambda updates, params: jax.tree.map(lambda p: p + 1e-3, params)),
    }
    compiled = {name: jax_step(tx, gradients) for name, tx in ours.items()}
    theirs = {
        "torch: authors' rule": AuthorsRule,
        "pytorch_optimizer Gravity": functools.partial(Gravity, lr=0.1),
        "torch Adam, fused": functools.partial(torch.optim.Adam, lr=1e-3, fused=True),
        "torch SGD momentum, fused": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
    }
    runs = {name: run for name, (run, _) in compiled.items()}
    runs |= {name: torch_step(make, gradients) for name, make in theirs.items()}
    return runs, {name: seconds for name, (_, seconds) in compiled.items()}


def arrays_moved(name: str) -> int:
    """How many arrays of the parameters' size a candidate reads and writes at least."""
    return next(count for word, count in ARRAYS.items() if word in name.lower().replace("authors' rule", "gravity"))


def main() -> None:
    options = timing.arguments(__doc__, rounds=15)
    figures = {}
    for tree, shapes in trees().items():
        rng = np.random.default_rng(0)
        gradients = [0.01 * rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        runs, compile_seconds = candidates(gradients)
        times = timing.interleaved(runs, options.rounds)
        size = sum(g.nbytes for g in gradients)
        own = timing.summary(times["gravity"])["median_ms"]
        rows = []
        for name, seconds in times.items():
            row = {tree: name, **timing.summary(seconds)}
            row["gravity / this"] = own / row["median_ms"]
            row["GB/s"] = arrays_moved(name) * size / row["median_ms"] / 1e6
            row["compile s"] = compile_seconds.get(name, "")
            rows.append(row)
        sys.stdout.write(timing.table(rows) + "\n\n")
        figures[tree] = rows
        del gradients, runs
    timing.write(options.json, figures)


if __name__ == "__main__":
    main()
