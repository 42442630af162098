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

os.environ["JAX_PLATFORMS"] = "cpu"  # else jax looks for a driver first

import programs
import timing
from jax.experimental import topologies

from trainer import vgg

MEMORY = {"H100": 84_942_979_072, "A100": 85_100_068_864}  # bytes
# What tells one card from another, as XLA wants it described: fields of a GpuDeviceInfoProto.
CARDS = {
    "H100": """cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
      core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
      memory_bandwidth: 3352320000000 device_memory_size: 84942979072
      shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472""",
    "A100": """cuda_compute_capability { major: 8 minor: 0 }
      core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41 l2_cache_size: 41943040
      memory_bandwidth: 2039040000000 device_memory_size: 85100068864
      shared_memory_per_block_optin: 166912 shared_memory_per_core: 167936""",
}


def devices(name: str, count: int) -> list:
    """Cards of one host, none of which need be present."""
    target = f"""
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }}
    gpu_device_info {{
      {CARDS[name]}
      runtime_version: "12.9.0" shared_memory_per_block: {48 << 10}
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
        yield row | programs.chunk_cost(devices(card, count), MEMORY[card], model, 128, name)


if __name__ == "__main__":
    timing.main(__doc__, optimizer, chunk)
