"""What the optimizer step and the trainer's step cost on a TPU, by programs compiled for v4 and v5e. It needs no TPU.

    pip install -e ".[tpu]" && python tests/speed/tpu_cost.py [optimizer] [memory] [--out FOLDER]

Nothing is run or timed: the tables hold what XLA says of its programs, and what their text says (`hlo.py`). In a
separate environment, because libtpu slows every start of jax. About ten minutes on two cores; six of them for
`memory`, because products in float32 compile slowly.
"""

import os
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to ask

import programs
import timing
from jax.experimental import topologies

from trainer import vgg

EIGHT_CHIPS = {"v4": (2, 2, 2), "v5e": (2, 4)}
MEMORY = {"v4": 32e9, "v5e": 16e9}  # bytes of HBM on a chip; v4 has 32 GiB, v5e 16 GB


def devices(chip: str, grid: tuple[int, ...]) -> list:
    """The chips of a slice, all on one host; none need be present. On v4 both cores of a chip are one device."""
    options = {"chip_config_name": "megacore"} if chip == "v4" else {}
    name, bounds = f"{chip}:{'x'.join(map(str, grid))}", (*grid, 1, 1)[:3]
    return topologies.get_topology_desc(name, "tpu", chips_per_host_bounds=bounds, **options).devices


def optimizer(options) -> Iterator[dict]:
    """The optimizer step on one chip: arrays moved through memory, kernels, temporaries, compile time."""
    return programs.step_costs({chip: devices(chip, grid)[0] for chip, grid in EIGHT_CHIPS.items()})


def memory(options) -> Iterator[dict]:
    """VGG19 at a global batch of 1,024 on eight chips, --precision float32, the training set on each."""
    model = vgg.build("vgg19", 1.0, 10, "float32")
    for chip, grid in EIGHT_CHIPS.items():
        yield {"chips": f"8 x {chip}"} | programs.chunk_cost(devices(chip, grid), MEMORY[chip], model, 1024)


if __name__ == "__main__":
    timing.main(__doc__, optimizer, memory)
