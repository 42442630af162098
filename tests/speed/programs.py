"""The optimizer step and the trainer's chunk of steps, to be timed or counted.

For counting they are compiled from shapes alone, for devices that need not be present.
"""

import collections
import functools
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the library need not be installed
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "train"))
from gravity_optax import gravity
from trainer import steps, vgg
from trainer.devices import Program, Replicas

MIB = 2**20
IMAGES, SHAPE, CLASSES = 50_000, (32, 32, 3), 10  # CIFAR-10's training set
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


def vgg_shapes(model: vgg.VGG) -> dict:
    return jax.eval_shape(lambda key: vgg.init(model, key, SHAPE), jax.random.key(0))


def trees() -> dict[str, list[jax.ShapeDtypeStruct]]:
    """Trees of float32 leaves."""
    leaves = lambda count, size: [jax.ShapeDtypeStruct((size,), jnp.float32)] * count
    return {
        "VGG16": jax.tree.leaves(vgg_shapes(vgg.build("vgg16", 1.0, CLASSES, "float32"))),
        "1000 x 1000": leaves(1000, 1000),
        "1 x 100M": leaves(1, 100_000_000),
    }


def size(tree) -> int:
    """Number of elements."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def along_the_longest_axis(devices: Sequence) -> Callable:
    """The sharding of a leaf that is split along its longest axis that divides by the number of devices."""
    mesh = jax.sharding.Mesh(np.array(devices), ("devices",))

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

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    shardings = jax.tree.map(sharding_of, (params, jax.eval_shape(tx.init, params)))
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    params, state = jax.tree.map(place, (params, jax.eval_shape(tx.init, params)), shardings)
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings).lower(params, state, params).compile()


def running_step(
    tx: optax.GradientTransformation, shapes: Sequence, block: int = 1
) -> tuple[Callable[[], object], float]:
    """A function that starts `block` compiled steps on given gradients, and the seconds that the compilation took."""
    gradients = [0.01 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(shapes)]
    params = [jnp.zeros_like(g) for g in gradients]
    start = time.perf_counter()
    program = compiled_step(tx, params, lambda x: SingleDeviceSharding(jax.devices()[0]))
    seconds = time.perf_counter() - start
    state = [params, tx.init(params)]

    def run():
        for _ in range(block):
            state[:] = program(*state, gradients)
        return state

    return run, seconds


def gigabytes(name: str, leaves: Sequence) -> float:
    """What the step of an optimizer of this name must move at least."""
    return 4e-9 * size(leaves) * next(count for part, count in ARRAYS.items() if part in name.lower())


def counted_step(tx: optax.GradientTransformation, params, on: jax.Device) -> tuple[jax.stages.Compiled, hlo.Program]:
    """The step compiled for one device, and what its text says."""
    compiled = compiled_step(tx, params, lambda _: SingleDeviceSharding(on))
    return compiled, hlo.Program(compiled.as_text())


def arrays_moved(program: hlo.Program, params) -> float:
    """What a step reads from memory and writes to it, in units of the float32 parameters."""
    return program.memory_traffic() / (4 * size(params))


def step_costs(devices: dict[str, jax.Device]) -> Iterator[dict]:
    """A row for each optimizer, tree and device."""
    for device, (tree, params), name in itertools.product(devices, trees().items(), OPTIMIZERS):
        start = time.perf_counter()
        compiled, program = counted_step(OPTIMIZERS[name], params, devices[device])
        yield {
            "optimizer step": name,
            "on": device,
            "leaves": tree,
            "arrays moved": f"{arrays_moved(program, params):.4f}",
            "kernels": program.kernels(program.entry),
            "temporary MiB": held(compiled)["temporary"] / MIB,
            "compile s": time.perf_counter() - start,
        }


def chunk(
    replicas: Replicas, model: vgg.VGG, tx: optax.GradientTransformation, batch: int, images: int, count: int
) -> Program:
    """The trainer's program for so many steps, compiled from shapes, with the dataset on each of the devices."""
    params = vgg_shapes(model)
    state = steps.TrainState(params, jax.eval_shape(tx.init, params))
    pictures = [jax.ShapeDtypeStruct((images, math.prod(SHAPE)), jnp.uint8), jax.ShapeDtypeStruct((images,), jnp.int32)]
    train = functools.partial(steps.train_chunk, steps.on_flat(model.apply, SHAPE), tx)
    batches = replicas.split(np.zeros((count, batch), np.int32))
    return Program(replicas, train, state, steps.Split(*pictures), batches, donate_first=True).compile()


def compiled_chunk(
    on: Sequence, model: vgg.VGG, batch: int, tx: optax.GradientTransformation = OPTIMIZERS["gravity"]
) -> jax.stages.Compiled:
    """The trainer's program for a chunk of steps, with CIFAR-10 on each of the devices `on`."""
    return chunk(Replicas(on), model, tx, batch, IMAGES, STEPS).executable


def chunk_cost(on: Sequence, memory: float, model: vgg.VGG, batch: int, name: str = "gravity") -> dict:
    """What a device of so much memory holds, and what a step sends and starts."""
    start = time.perf_counter()
    compiled = compiled_chunk(on, model, batch, OPTIMIZERS[name])
    seconds = time.perf_counter() - start
    program, bytes_held = hlo.Program(compiled.as_text()), held(compiled)
    collectives = [c for c in program.collectives() if c["in_loop"]]
    sent = sum(c["bytes"] for c in collectives) / (4 * size(vgg_shapes(model)))
    text = lambda numbers: ", ".join(f"{n} {what}" for what, n in numbers.items()) or "none"
    return {
        "held MiB": round(bytes_held["sum"] / MIB),
        "temporary MiB": round(bytes_held["temporary"] / MIB),
        "of its memory": f"{bytes_held['sum'] / memory:.1%}",
        "collectives": text(collections.Counter(c["kind"] for c in collectives)),
        "their bytes / gradients'": f"{sent:.6f}",
        "kernels a step": program.kernels(program.loop_body()),
        "compile s": seconds,
        "copied a step": text(program.copies(program.loop_body())),
    }


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


class Training:
    """A run of the trainer, in chunks of `count` steps, on random pictures that lie on the devices."""

    def __init__(self, model: str, width: float, precision: str, batch: int, count: int, images: int):
        self.replicas, self.batch, self.images, self.pictures = Replicas(), batch, images, batch * count
        network, tx = vgg.build(model, width, CLASSES, precision), OPTIMIZERS["gravity"]
        start = time.perf_counter()
        self.chunk = chunk(self.replicas, network, tx, batch, images, count)
        self.compile_seconds = time.perf_counter() - start
        params = vgg.init(network, jax.random.key(0), SHAPE)
        self.state = self.replicas.replicate(steps.TrainState(params, tx.init(params)))
        self.apply, self.train_set = steps.on_flat(network.apply, SHAPE), self.random_pictures(images)

    def random_pictures(self, count: int) -> steps.Split:
        images = np.random.default_rng(0).integers(0, 256, (count, math.prod(SHAPE)), np.uint8)
        return self.replicas.replicate(steps.Split(images, np.arange(count, dtype=np.int32) % CLASSES))

    def batches(self, order: np.ndarray, pictures: int) -> np.ndarray:
        return self.replicas.split(steps.in_batches(order, -(-pictures // self.batch), self.batch))

    def run(self, order: np.ndarray | None = None) -> steps.Sums:
        """Trains one chunk, on the first pictures of this order; by default full batches."""
        order = np.arange(self.pictures) % self.images if order is None else order
        self.state, sums = self.chunk(self.state, self.train_set, self.batches(order, self.pictures))
        return sums

    def epoch(self, test_size: int) -> Callable[[], object]:
        """A function that trains all pictures in a new order, and evaluates so many others; it is compiled here."""
        test_set, batches = self.random_pictures(test_size), self.batches(np.arange(test_size), test_size)
        evaluate = functools.partial(steps.evaluate, self.apply)
        evaluate = Program(self.replicas, evaluate, self.state.params, test_set, batches).compile()
        order = np.random.default_rng(1).permutation(self.images)

        def run():
            sums = [self.run(order[start:]) for start in range(0, self.images, self.pictures)]
            return sums, evaluate(self.state.params, test_set, batches)

        return run
