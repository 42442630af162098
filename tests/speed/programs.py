"""The optimizer step and the trainer's chunk of steps, whose cost is counted in compiled programs, and timed.

To be counted they are compiled ahead of time from shapes alone, for devices that need not be present.
"""

import argparse
import collections
import functools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gravity_optax import gravity

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "train"))
from trainer import steps, vgg
from trainer.devices import Program, Replicas

MIB = 2**20
IMAGES, SHAPE = 50_000, (32, 32, 3)  # CIFAR-10's training set
# An epoch of 49 steps is dispatched in chunks of 7 and 6 (loop.py); the length changes nothing in a step.
STEPS = 7
OPTIMIZERS = {
    "gravity": gravity(0.1, key=0),
    "optax.adam": optax.adam(1e-3),
    "optax.sgd, momentum": optax.sgd(0.1, momentum=0.9),
}
IN_PLACE = {"a pass in place": optax.stateless(lambda updates, params: jax.tree.map(lambda p: p + 1e-3, params))}


# How many arrays of the parameters' size a step reads and writes at least, by a part of its name.
ARRAYS = {"pass": 2, "gravity": 6, "adam": 7, "momentum": 5, "sgd": 5}


def arrays_moved(name: str) -> int:
    return next(count for part, count in ARRAYS.items() if part in name.lower())


def vgg_shapes(model: vgg.VGG) -> dict:
    return jax.eval_shape(lambda key: vgg.init(model, key, SHAPE), jax.random.key(0))


def trees() -> dict[str, list[jax.ShapeDtypeStruct]]:
    """Float32 leaves, as in optimizer_step.py."""
    leaves = lambda count, size: [jax.ShapeDtypeStruct((size,), jnp.float32)] * count
    return {
        "VGG16": jax.tree.leaves(vgg_shapes(vgg.build("vgg16", 1.0, 10, "float32"))),
        "1000 x 1000": leaves(1000, 1000),
        "1 x 100M": leaves(1, 100_000_000),
    }


def size(tree) -> int:
    """Number of elements."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def along_the_longest_axis(devices: Sequence) -> Callable:
    """The sharding of a leaf that is split along its longest axis that divides by the number of devices."""
    mesh = Mesh(np.array(devices), ("devices",))

    def sharding_of(leaf):
        fitting = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % len(devices) == 0]
        longest = max(fitting, key=lambda axis: leaf.shape[axis], default=None)
        return NamedSharding(mesh, PartitionSpec(*("devices" if i == longest else None for i in range(leaf.ndim))))

    return sharding_of


def compiled_step(tx: optax.GradientTransformation, params, sharding_of: Callable) -> jax.stages.Compiled:
    """Update and apply, (params, state, gradients) -> (params, state), the first two donated.

    The donated arguments are in the order of the results: XLA pairs their buffers with the results in turn, and would
    copy what it paired crosswise.
    """

    def abstract(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x)), tree)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = abstract(params), abstract(jax.eval_shape(tx.init, params))
    shardings = jax.tree.map(lambda x: x.sharding, (params, state))
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings).lower(params, state, params).compile()


def running_step(tx: optax.GradientTransformation, shapes: Sequence) -> tuple[Callable[[], object], float]:
    """A function that starts a compiled step on given gradients, and the seconds that its compilation took."""
    gradients = [0.01 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(shapes)]
    params = [jnp.zeros_like(g) for g in gradients]
    start = time.perf_counter()
    program = compiled_step(tx, params, lambda x: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    seconds = time.perf_counter() - start
    state = [params, tx.init(params)]

    def run():
        state[:] = program(*state, gradients)
        return state

    return run, seconds


def compiled_chunk(
    on: Sequence, model: vgg.VGG, batch: int, tx: optax.GradientTransformation = OPTIMIZERS["gravity"]
) -> jax.stages.Compiled:
    """The trainer's program for a chunk of steps, with the dataset on each of the devices `on`."""
    replicas = Replicas(on)
    params = vgg_shapes(model)
    state = steps.TrainState(params, jax.eval_shape(tx.init, params))
    pictures = jax.eval_shape(
        lambda: steps.Split(steps.flat(jnp.zeros((IMAGES, *SHAPE), jnp.uint8)), jnp.zeros(IMAGES, jnp.int32))
    )
    chunk = functools.partial(steps.train_chunk, steps.on_flat(model.apply, SHAPE), tx)
    batches = replicas.split(np.zeros((STEPS, batch), np.int32))
    return Program(replicas, chunk, state, pictures, batches, donate_first=True).compile().executable


def held(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of memory that a program takes on a device, by what takes them."""
    memory = compiled.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return parts | {"sum": sum(parts.values())}


def counted(names: Iterable[str]) -> list[tuple[str, int]]:
    return sorted(collections.Counter(names).items())


def main(description: str, parts: dict[str, Callable[[], Iterator[dict]]]) -> None:
    """The command line of a cost script: which parts to compile, each a table under the first line of its docstring."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="|".join(parts), help="default: all")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, list[dict]] = {}
    for part in options.parts or parts:
        start = time.perf_counter()
        figures[part] = []
        for row in parts[part]():
            figures[part].append(row)
            timing.write(options.json, figures)
        note = f"{parts[part].__doc__.splitlines()[0]} ({time.perf_counter() - start:.0f} s)"
        sys.stdout.write(f"{note}\n{timing.table(figures[part])}\n\n")
        sys.stdout.flush()
