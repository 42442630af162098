"""What the optimizer step and the trainer's step cost on a TPU, by programs compiled for v4 and v5e. It needs no TPU.

    pip install -e ".[tpu]" && python tests/speed/tpu_cost.py [optimizer] [memory] [precision] [--json FILE]

Nothing is run or timed: the tables hold what XLA says of its programs, and what their text says (`hlo.py`). In an
environment of its own, because libtpu slows every start of jax. About nine minutes on two cores; six of them for
`memory`, because products in float32 compile slowly.
"""

import math
import os
import time
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to ask

import hlo
import jax
import programs
from jax.experimental import topologies
from programs import MIB, OPTIMIZERS, compiled_chunk, compiled_step, counted, held, trees, vgg_shapes

from trainer import vgg

EIGHT_CHIPS = {"v4": (2, 2, 2), "v5e": (2, 4)}
MEMORY = {"v4": 32e9, "v5e": 16e9}  # bytes of HBM on a chip; v4 has 32 GiB, v5e 16 GB


def devices(chip: str, grid: tuple[int, ...]) -> list:
    """The chips of a slice, all on one host; none need be present. On v4 both cores of a chip are one device."""
    options = {"chip_config_name": "megacore"} if chip == "v4" else {}
    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{chip}:{'x'.join(map(str, grid))}",
        chips_per_host_bounds=(*grid, 1, 1)[:3],
        **options,
    )
    assert len(topology.devices) == math.prod(grid)
    return topology.devices


def optimizer() -> Iterator[dict]:
    """One chip: bytes accessed, as cost_analysis() has them and as they go through memory; temporaries; kernels."""
    for chip, grid in EIGHT_CHIPS.items():
        sharding = jax.sharding.SingleDeviceSharding(devices(chip, grid)[0])
        for tree, params in trees().items():
            if chip == "v4" and tree == "1000 x 1000":
                continue  # a minute, for what v5e shows as well
            size = 4 * programs.size(params)
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
            "4 x parameters": 4 * programs.size(vgg_shapes(model)),
            "after the loop": sum(not c["in_loop"] for c in collectives),
        }


def precision() -> Iterator[dict]:
    """What the convolutions and dense layers of a small VGG11 are handed under each --precision, on eight v5e chips."""
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
            }


if __name__ == "__main__":
    parts = (optimizer, memory, precision)
    programs.main(__doc__, {part.__name__: part for part in parts})
