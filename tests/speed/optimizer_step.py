"""One optimizer step (update and apply, state and parameters donated): Gravity beside optax's and PyTorch's optimizers.

    pip install -e ".[train,peers]" && python tests/speed/optimizer_step.py [--out FOLDER]

Three trees of float32 parameters: VGG16's 32 leaves, 1,000 leaves of 1,000, and one of 100 million. JAX and PyTorch
have a process each, so that their threads do not compete; the candidates take turns. GB/s counts the arrays that must
move at least (Gravity: G twice, V and W in and out, six in all; momentum SGD five, Adam seven) over the median time.
"""

import functools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import programs
import timing
import torch_peer


def with_jax(leaves: list) -> tuple[timing.Runs, dict[str, float]]:
    """A step of each of optax's optimizers and of Gravity, and the seconds that its compilation took."""
    runs, seconds = {}, {}
    for name, tx in (programs.OPTIMIZERS | programs.IN_PLACE).items():
        run, seconds[name] = programs.running_step(tx, leaves)
        runs[name] = lambda run=run: jax.block_until_ready(run())
    return runs, seconds


def with_torch(leaves: list) -> tuple[timing.Runs, dict[str, float]]:
    """A step of PyTorch's optimizers, and of Gravity as others have it for PyTorch."""
    from pytorch_optimizer import Gravity

    makers = {
        "PyTorch, the authors' rule of Gravity": torch_peer.authors_rule(),
        "pytorch_optimizer.Gravity": functools.partial(Gravity, lr=0.1),
        "PyTorch Adam, fused": "Adam",
        "PyTorch SGD with momentum, fused": "SGD",
    }
    shapes = [leaf.shape for leaf in leaves]
    return {name: torch_peer.optimizer_step(make, shapes, "cpu") for name, make in makers.items()}, {}


def step(options):
    """The optimizer step."""
    for tree, leaves in programs.trees().items():
        frameworks = [functools.partial(make, leaves) for make in (with_jax, with_torch)]
        times, compile_seconds = timing.in_processes(frameworks, options.rounds, settle=True)
        for name, seconds in times.items():
            row = {"optimizer step": name, "leaves": tree, **timing.summary(seconds)}
            row["gravity / this"] = timing.summary(times["gravity"])["median ms"] / row["median ms"]
            row["GB/s"] = 1e3 * programs.gigabytes(name, leaves) / row["median ms"]
            yield row | {"compile s": compile_seconds.get(name, "")}


if __name__ == "__main__":
    timing.main(__doc__, step, rounds=15)
