"""What the optimizer step and the trainer's step cost on a GPU, by programs compiled for an H100 and an A100.

    pip install -e ".[gpu-compile]" && python tests/speed/gpu_cost.py [optimizer] [chunk] [--out FOLDER]

It needs no GPU. Nothing is run or timed: the tables hold what XLA says of its programs, and what their text says
(`hlo.py`). Nothing is autotuned either, so the temporary memory is a lower bound: a convolution may ask for more. In a
separate environment, with the compiler of NVIDIA's wheel and without its libraries. "arrays moved" is in units of the
parameters' size.
"""

import itertools
import os
from collections.abc import Iterator
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # else jax looks for a driver first

import programs
import timing
from jax.experimental import topologies

from trainer import vgg


class Card(NamedTuple):
    """What tells one NVIDIA card from another: the numbers that its driver reports."""

    capability: str  # with `feature_extension` where kernels may use the architecture's own features
    cores: int  # streaming multiprocessors
    units: int  # float32 units of one
    clock: float  # GHz
    shared: int  # bytes of shared memory of one; a block of threads may ask for 1 KiB less
    cache: int  # bytes of L2
    bandwidth: int  # bytes a second
    memory: int  # bytes


HOPPER, AMPERE = "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES", "major: 8 minor: 0"
CARDS = {
    "H100": Card(HOPPER, 132, 128, 1.98, 228 << 10, 50 << 20, 3_352_320_000_000, 84_942_979_072),
    "A100": Card(AMPERE, 108, 64, 1.41, 164 << 10, 40 << 20, 2_039_040_000_000, 85_100_068_864),
}


def devices(name: str, count: int) -> list:
    """Cards of one host, none of which need be present."""
    card = CARDS[name]
    # As XLA wants them described: a GpuTargetConfigProto in text form.
    target = f"""
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }}
    gpu_device_info {{
      cuda_compute_capability {{ {card.capability} }}
      runtime_version: "12.9.0"
      core_count: {card.cores} fpus_per_core: {card.units} clock_rate_ghz: {card.clock}
      memory_bandwidth: {card.bandwidth} device_memory_size: {card.memory} l2_cache_size: {card.cache}
      shared_memory_per_block: {48 << 10} shared_memory_per_block_optin: {card.shared - 1024}
      shared_memory_per_core: {card.shared}
      registers_per_core_limit: {2**16} registers_per_block_limit: {2**16}
      threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      block_dim_limit_x: {2**31 - 1} block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
    }}"""
    return topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x1x{count}").devices


def optimizer(options) -> Iterator[dict]:
    """The optimizer step on one card: arrays moved through memory, temporaries, kernels, compile time."""
    return programs.step_costs({card: devices(card, 1)[0] for card in CARDS})


def chunk(options) -> Iterator[dict]:
    """VGG16's chunk of steps, batch 128, CIFAR-10 on each card: memory, all-reduces, kernels and copies of a step."""
    runs = [("gravity", 1), ("optax.adam", 1), ("gravity", 8)]
    for card, precision, (name, count) in itertools.product(CARDS, ("float32", "bfloat16"), runs):
        row = {"VGG16's chunk": name, "cards": f"{count} x {card}", "--precision": precision}
        model = vgg.build("vgg16", 1.0, 10, precision)
        yield row | programs.chunk_cost(devices(card, count), CARDS[card].memory, model, 128, name)


if __name__ == "__main__":
    timing.main(__doc__, optimizer, chunk)
