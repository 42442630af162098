"""One optimizer step (update and apply, state and parameters donated): Gravity beside optax's and PyTorch's optimizers.

    pip install -e ".[train,peers]" && python tests/speed/optimizer_step.py [--json FILE]

Three trees of float32 parameters: VGG16's 32 leaves, 1,000 leaves of 1,000, and one of 100 million. Every candidate
does the same: new parameters and state from given gradients. JAX and PyTorch have a process each, so that their threads
do not meet; the candidates take turns. GB/s counts the arrays that must move at least (Gravity: G
twice, V and W in and out, six in all; momentum SGD five, Adam seven) over the median time.
"""

import functools
import importlib.util
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import timing

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "train"))

Shapes = list[tuple[int, ...]]
ARRAYS = {"gravity": 6, "adam": 7, "momentum": 5, "pass": 2}


def trees() -> dict[str, Shapes]:
    """Shapes of the leaves."""
    import jax

    from trainer import vgg

    model = vgg.build("vgg16", 1.0, 10, "float32")
    params = jax.eval_shape(lambda: vgg.init(model, jax.random.key(0), (32, 32, 3)))
    return {
        "vgg16": [leaf.shape for leaf in jax.tree.leaves(params)],
        "1000 x 1000": [(1000,)] * 1000,
        "1 x 100M": [(100_000_000,)],
    }


def draw(shapes: Shapes) -> list[np.ndarray]:
    """The gradients."""
    rng = np.random.default_rng(0)
    return [0.01 * rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def with_jax(shapes: Shapes) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """A step of each of optax's optimizers and of Gravity, and the seconds that its compilation took."""
    import jax
    import jax.numpy as jnp
    import optax

    from gravity_optax import gravity

    grads = [jnp.asarray(g) for g in draw(shapes)]

    def compiled(tx):
        params = [jnp.zeros_like(g) for g in grads]
        state = [params, tx.init(params)]

        def step(grads, params, opt_state):
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        lowered = jax.jit(step, donate_argnums=(1, 2)).lower(grads, *state)
        start = time.perf_counter()
        program = lowered.compile()
        seconds = time.perf_counter() - start

        def run():
            state[:] = jax.block_until_ready(program(grads, *state))

        return run, seconds

    made = {
        "gravity": compiled(gravity(0.1, key=0)),
        "optax.adam": compiled(optax.adam(1e-3)),
        "optax.sgd, momentum": compiled(optax.sgd(0.1, momentum=0.9)),
        "pass in place": compiled(optax.stateless(lambda updates, params: jax.tree.map(lambda p: p + 1e-3, params))),
    }
    return {name: run for name, (run, _) in made.items()}, {name: seconds for name, (_, seconds) in made.items()}


def with_torch(shapes: Shapes) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """A step of PyTorch's optimizers, and of Gravity as others have it for PyTorch."""
    import torch
    from pytorch_optimizer import Gravity

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

    gradients = draw(shapes)

    def step(make):
        params = [torch.zeros(g.shape, requires_grad=True) for g in gradients]
        for p, g in zip(params, gradients, strict=True):
            p.grad = torch.from_numpy(g)
        return make(params).step

    makes = {
        "torch: authors' rule": AuthorsRule,
        "pytorch_optimizer Gravity": functools.partial(Gravity, lr=0.1),
        "torch Adam, fused": functools.partial(torch.optim.Adam, lr=1e-3, fused=True),
        "torch SGD momentum, fused": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
    }
    return {name: step(make) for name, make in makes.items()}, {}


def arrays_moved(name: str) -> int:
    """How many arrays of the parameters' size a candidate reads and writes at least."""
    return next(count for word, count in ARRAYS.items() if word in name.lower().replace("authors' rule", "gravity"))


def main() -> None:
    options = timing.arguments(__doc__, rounds=15)
    peers = all(importlib.util.find_spec(name) for name in ("torch", "pytorch_optimizer"))
    if not peers:
        sys.stderr.write("PyTorch's optimizers are left out: torch or pytorch_optimizer is not installed\n")
    figures = {}
    for tree, shapes in trees().items():
        frameworks = {"jax": functools.partial(with_jax, shapes)}
        if peers:
            frameworks["torch"] = functools.partial(with_torch, shapes)
        times, compile_seconds = timing.in_processes(frameworks, options.rounds, settle=True)
        size = sum(4 * math.prod(shape) for shape in shapes)
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
    timing.write(options.json, figures)


if __name__ == "__main__":
    main()
