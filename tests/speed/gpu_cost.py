"""What the optimizer step and the trainer's step cost on a GPU, by programs compiled for an H100 and an A100.

    pip install -e ".[gpu-compile]" && python tests/speed/gpu_cost.py [optimizer] [chunk] [--json FILE]

It needs no GPU. Nothing is run or timed: the tables hold what XLA says of its programs, and what their text says
(`hlo.py`). Nothing is autotuned either, so the temporary memory is a lower bound: a convolution may ask for more. In an
environment of its own, with the compiler of NVIDIA's wheel and without its libraries. "arrays moved" is in units of the
parameters' size.
"""

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # else jax looks for a driver first

import hlo
import jax
import programs
from jax.experimental import topologies
from programs import MIB, OPTIMIZERS

from trainer import vgg


class Card(NamedTuple):
    """What tells one NVIDIA card from another: the numbers that its driver reports."""

    capability: str  # with `feature_extension` where kernels may use the architecture's own features
    cores: int  # streaming multiprocessors
    units: int  # float32 units of one
    clock: float  # GHz
    shared: int  # bytes of shared memory of one
    shared_of_block: int  # the most that a block of threads may ask for
    cache: int  # bytes of L2
    bandwidth: int  # bytes a second
    memory: int  # bytes


KIB = 2**10
CARDS = {
    "H100": Card(
        "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES",
        *(132, 128, 1.98, 228 * KIB, 227 * KIB, 50 * KIB**2, 3_352_320_000_000, 84_942_979_072),
    ),
    "A100": Card(
        "major: 8 minor: 0", *(108, 64, 1.41, 164 * KIB, 163 * KIB, 40 * KIB**2, 2_039_040_000_000, 85_100_068_864)
    ),
}


def target(card: Card) -> str:
    """The card as XLA wants it described: a GpuTargetConfigProto in text form."""
    return f"""
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }}
    gpu_device_info {{
      cuda_compute_capability {{ {card.capability} }}
      runtime_version: "12.9.0"
      core_count: {card.cores} fpus_per_core: {card.units} clock_rate_ghz: {card.clock}
      memory_bandwidth: {card.bandwidth} device_memory_size: {card.memory} l2_cache_size: {card.cache}
      shared_memory_per_block: {48 * 2**10} shared_memory_per_block_optin: {card.shared_of_block}
      shared_memory_per_core: {card.shared}
      registers_per_core_limit: {2**16} registers_per_block_limit: {2**16}
      threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      block_dim_limit_x: {2**31 - 1} block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
    }}"""


def devices(card: str, count: int) -> list:
    """Cards of one host, none of which need be present."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=target(CARDS[card]), topology=f"1x1x{count}")
    return list(topology.devices)


def step(tx, params, card: str = "H100") -> tuple[jax.stages.Compiled, hlo.Program]:
    """The optimizer step for one card."""
    sharding = jax.sharding.SingleDeviceSharding(devices(card, 1)[0])
    compiled = programs.compiled_step(tx, params, lambda _: sharding)
    return compiled, hlo.Program(compiled.as_text())


def arrays_moved(program: hlo.Program, params) -> float:
    """What a step reads from memory and writes to it, in units of the float32 parameters."""
    return program.memory_traffic() / (4 * programs.size(params))


def optimizer() -> Iterator[dict]:
    """The optimizer step on one card: arrays moved through memory, temporaries, kernels, compile time."""
    for card in CARDS:
        for tree, params in programs.trees().items():
            for name, tx in OPTIMIZERS.items():
                start = time.perf_counter()
                compiled, program = step(tx, params, card)
                yield {
                    "optimizer step": name,
                    "card": card,
                    "leaves": tree,
                    "arrays moved": f"{arrays_moved(program, params):.4f}",
                    "kernels": program.kernels(program.entry),
                    "temporary MiB": programs.held(compiled)["temporary"] / MIB,
                    "compile s": time.perf_counter() - start,
                }


def chunk() -> Iterator[dict]:
    """VGG16's chunk of steps, batch 128, CIFAR-10 on each card: memory, all-reduces, kernels and copies of a step."""
    for card in CARDS:
        for precision in ("float32", "bfloat16"):
            for count in (1, 8):
                for name in ("gravity", "optax.adam") if count == 1 else ("gravity",):
                    yield chunk_row(card, precision, count, name)


def chunk_row(card: str, precision: str, count: int, name: str) -> dict:
    model = vgg.build("vgg16", 1.0, 10, precision)
    start = time.perf_counter()
    compiled = programs.compiled_chunk(devices(card, count), model, 128, OPTIMIZERS[name])
    seconds = time.perf_counter() - start
    program = hlo.Program(compiled.as_text())
    held, copies = programs.held(compiled), program.copies(program.loop_body())
    collectives = [c["bytes"] for c in program.collectives() if c["in_loop"]]
    return {
        "VGG16's chunk": name,
        "cards": f"{count} x {card}",
        "--precision": precision,
        "held MiB": round(held["sum"] / MIB),
        "temporary MiB": round(held["temporary"] / MIB),
        "of a card": f"{held['sum'] / CARDS[card].memory:.1%}",
        "all-reduces": len(collectives),
        "their bytes / gradients'": f"{sum(collectives) / (4 * programs.size(programs.vgg_shapes(model))):.6f}",
        "kernels a step": program.kernels(program.loop_body()),
        "compile s": seconds,
        "copied a step": ", ".join(f"{n} {array}" for array, n in sorted(copies.items(), key=lambda kind: -kind[1])),
    }


if __name__ == "__main__":
    programs.main(__doc__, {"optimizer": optimizer, "chunk": chunk})
