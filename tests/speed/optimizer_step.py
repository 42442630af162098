"""One optimizer step (update and apply, state and parameters donated): Gravity beside optax's and PyTorch's optimizers.

    pip install -e ".[train,peers]" && python tests/speed/optimizer_step.py [--json FILE]

Three trees of float32 parameters: VGG16's 32 leaves, 1,000 leaves of 1,000, and one of 100 million. Every candidate
does the same: new parameters and state from given gradients. JAX and PyTorch have a process each, so that their threads
do not meet; the candidates take turns. GB/s counts the arrays that must move at least (Gravity: G
twice, V and W in and out, six in all; momentum SGD five, Adam seven) over the median time.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import programs
import timing
import torch_peer

Runs = dict[str, Callable[[], object]]


def with_jax(leaves: list) -> tuple[Runs, dict[str, float]]:
    """A step of each of optax's optimizers and of Gravity, and the seconds that its compilation took."""
    runs, seconds = {}, {}
    for name, tx in (programs.OPTIMIZERS | programs.IN_PLACE).items():
        run, seconds[name] = programs.running_step(tx, leaves)
        runs[name] = lambda run=run: jax.block_until_ready(run())
    return runs, seconds


def with_torch(leaves: list) -> tuple[Runs, dict[str, float]]:
    """A step of PyTorch's optimizers, and of Gravity as others have it for PyTorch."""
    from pytorch_optimizer import Gravity

    shapes = [leaf.shape for leaf in leaves]
    step = functools.partial(torch_peer.optimizer_step, shapes=shapes, device="cpu")
    return {
        "torch: authors' rule of Gravity": step(torch_peer.authors_rule()),
        "pytorch_optimizer Gravity": step(functools.partial(Gravity, lr=0.1)),
        "torch Adam, fused": step("Adam"),
        "torch SGD momentum, fused": step("SGD"),
    }, {}


def main() -> None:
    options = timing.arguments(__doc__, rounds=15)
    peers = all(importlib.util.find_spec(name) for name in ("torch", "pytorch_optimizer"))
    if not peers:
        sys.stderr.write("PyTorch's optimizers are left out: torch or pytorch_optimizer is not installed\n")
    figures = {}
    for tree, leaves in programs.trees().items():
        frameworks = {"jax": functools.partial(with_jax, leaves)}
        if peers:
            frameworks["torch"] = functools.partial(with_torch, leaves)
        times, compile_seconds = timing.in_processes(frameworks, options.rounds, settle=True)
        own = timing.summary(times["gravity"])["median_ms"]
        figures[tree] = rows = []
        for name, seconds in times.items():
            row = {tree: name, **timing.summary(seconds)}
            row["gravity / this"] = own / row["median_ms"]
            row["GB/s"] = programs.arrays_moved(name) * 4 * programs.size(leaves) / row["median_ms"] / 1e6
            row["compile s"] = compile_seconds.get(name, "")
            rows.append(row)
    timing.report(options.json, figures)


if __name__ == "__main__":
    main()
