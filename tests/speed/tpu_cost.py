"""What the optimizer step and the trainer's step cost on a TPU, by programs compiled for v4 and v5e. It needs no TPU.

    pip install -e ".[tpu]" && python tests/speed/tpu_cost.py [optimizer] [memory] [precision] [--json FILE]

Nothing is run or timed: the tables hold what XLA says of its programs, and what their text says (`hlo.py`). In an
environment of its own, because libtpu slows every start of jax. About nine minutes on two cores with nothing else to
do, by the processor time of its parts; six of them for `memory`, because products in float32 compile slowly.
"""

import argparse
import collections
import functools
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to ask

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from jax.experimental import topologies

from gravity_optax import gravity

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "train"))
from trainer import steps, vgg
from trainer.devices import Replicas

MIB = 2**20
IMAGES, SHAPE = 50_000, (32, 32, 3)  # CIFAR-10's training set
# An epoch of 49 steps is dispatched in chunks of 7 and 6 (loop.chunk_lengths); the length changes nothing below.
STEPS = 7
EIGHT_CHIPS = {"v4": (2, 2, 2), "v5e": (2, 4)}
MEMORY = {"v4": 32e9, "v5e": 16e9}  # bytes of HBM on a chip; v4 has 32 GiB, v5e 16 GB
OPTIMIZERS = {
    "gravity": gravity(0.1, key=0),
    "optax.adam": optax.adam(1e-3),
    "optax.sgd, momentum": optax.sgd(0.1, momentum=0.9),
}


def devices(chip: str, grid: tuple[int, ...]) -> list:
    """The chips of a slice that is not there, all on one host. On v4 both cores of a chip are one device."""
    options = {"chip_config_name": "megacore"} if chip == "v4" else {}
    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{chip}:{'x'.join(map(str, grid))}",
        chips_per_host_bounds=(*grid, 1, 1)[:3],
        **options,
    )
    assert len(topology.devices) == math.prod(grid)
    return topology.devices


def vgg_shapes(model: vgg.VGG) -> dict:
    return jax.eval_shape(lambda key: vgg.init(model, key, SHAPE), jax.random.key(0))


def trees() -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the leaves, as in optimizer_step.py."""
    model = vgg.build("vgg16", 1.0, 10, "float32")
    return {
        "VGG16": [leaf.shape for leaf in jax.tree.leaves(vgg_shapes(model))],
        "1000 x 1000": [(1000,)] * 1000,
        "1 x 100M": [(100_000_000,)],
    }


def compiled_step(tx: optax.GradientTransformation, params, sharding_of) -> jax.stages.Compiled:
    """Update and apply, state and parameters donated, for float32 parameters of these shapes."""

    def abstract(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x)), tree)

    def step(gradients, params, state):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = abstract(params), abstract(jax.eval_shape(tx.init, params))
    shardings = jax.tree.map(lambda x: x.sharding, (params, state))
    return jax.jit(step, donate_argnums=(1, 2), out_shardings=shardings).lower(params, params, state).compile()


def compiled_chunk(on: list, model: vgg.VGG, batch: int) -> jax.stages.Compiled:
    """The trainer's program for a chunk of steps, with the dataset on each of the devices `on`."""
    replicas = Replicas(on)
    tx = OPTIMIZERS["gravity"]
    params = vgg_shapes(model)
    state = steps.TrainState(params, jax.eval_shape(tx.init, params))
    pictures = jax.eval_shape(
        lambda: steps.Split(steps.flat(jnp.zeros((IMAGES, *SHAPE), jnp.uint8)), jnp.zeros(IMAGES, jnp.int32))
    )
    chunk = functools.partial(steps.train_chunk, steps.on_flat(model.apply, SHAPE), tx)
    batches = replicas.split(np.zeros((STEPS, batch), np.int32))
    return replicas.run_everywhere(chunk, donate_first=True)(state, pictures, batches)()


def held(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of memory that a program takes on a chip, by what takes them."""
    memory = compiled.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return parts | {"sum": sum(parts.values())}


def optimizer() -> Iterator[dict]:
    """One chip: bytes accessed, as cost_analysis() has them and as they go through memory; temporaries; kernels."""
    for chip, grid in EIGHT_CHIPS.items():
        sharding = jax.sharding.SingleDeviceSharding(devices(chip, grid)[0])
        for tree, shapes in trees().items():
            if chip == "v4" and tree == "1000 x 1000":
                continue  # a minute, for what v5e shows as well
            params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
            size = sum(4 * math.prod(shape) for shape in shapes)
            rows = []
            for name, tx in OPTIMIZERS.items():
                start = time.perf_counter()
                compiled = compiled_step(tx, params, lambda _, sharding=sharding: sharding)
                program = hlo.Program(compiled.as_text())
                rows.append(
                    {
                        "optimizer step": name,
                        "chip": chip,
                        "leaves": tree,
                        "bytes accessed": compiled.cost_analysis()["bytes accessed"] / size,
                        "memory traffic": program.memory_traffic() / size,
                        "temporary MiB": held(compiled)["temporary"] / MIB,
                        "largest, bytes": program.largest_temporary(),
                        "kernels": program.fusions(),
                        "compile s": time.perf_counter() - start,
                    }
                )
            for what in ("bytes accessed", "memory traffic"):
                adam = rows[1][what]
                for row in rows:
                    row[f"{what} / adam"] = row[what] / adam
            yield from rows


def memory() -> Iterator[dict]:
    """VGG19 at a global batch of 1,024 on eight chips, --precision float32, the training set on each."""
    model = vgg.build("vgg19", 1.0, 10, "float32")
    for chip, grid in EIGHT_CHIPS.items():
        compiled = compiled_chunk(devices(chip, grid), model, 1024)
        parts = held(compiled)
        collectives = hlo.Program(compiled.as_text()).collectives()
        in_loop = [c for c in collectives if c["in_loop"]]
        yield {
            "VGG19, MiB a chip": f"8 x {chip}",
            **{name: round(size / MIB, 1) for name, size in parts.items()},
            "of a chip": f"{parts['sum'] / MEMORY[chip]:.1%}",
            "collectives a step": ", ".join(f"{n} {kind}" for kind, n in counted(c["kind"] for c in in_loop)),
            "bytes a step": sum(c["bytes"] for c in in_loop),
            "4 x parameters": 4 * sum(leaf.size for leaf in jax.tree.leaves(vgg_shapes(model))),
            "after the loop": sum(not c["in_loop"] for c in collectives),
        }


def precision() -> Iterator[dict]:
    """What the convolutions and dense layers of a small VGG11 are handed under each --precision, on eight v5e chips.

    The cycles are XLA's estimate for the kernels with a product in them, a step.
    """
    for name in ("float32", "default", "bfloat16"):
        model = vgg.build("vgg11", 0.25, 10, name)
        program = hlo.Program(compiled_chunk(devices("v5e", EIGHT_CHIPS["v5e"]), model, 128).as_text())
        for (layer, direction, dtypes, result, asked), number in sorted(program.convolutions().items()):
            yield {
                "--precision": name,
                "layer": layer,
                "pass": direction,
                "number": number,
                "operands": dtypes,
                "result": result,
                "operand_precision": asked,
                "cycles of all": program.convolution_cycles(),
            }


def counted(names) -> list[tuple[str, int]]:
    return sorted(collections.Counter(names).items())


PARTS = {"optimizer": optimizer, "memory": memory, "precision": precision}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"what to compile, of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.")
    figures: dict[str, list[dict]] = {}
    for part in options.parts or PARTS:
        start = time.perf_counter()
        figures[part] = []
        for row in PARTS[part]():
            figures[part].append(row)
            timing.write(options.json, figures)
        note = f"{PARTS[part].__doc__.splitlines()[0]} ({time.perf_counter() - start:.0f} s)"
        sys.stdout.write(f"{note}\n{timing.table(figures[part])}\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
