"""How step time, memory and collectives grow with chips and parameters: the formulae of SCALING.md and their figure.

    pip install -e ".[train]" && python tests/speed/scaling.py            writes notebooks/figures/scaling.png
    pip install -e ".[tpu]" && python tests/speed/scaling.py --check      formulae beside compiled programs

The second needs libtpu and no TPU, and takes about two minutes on two cores. All times are a model, none is measured.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

import hlo
import jax
import timing
import tpu_cost
from tpu_cost import programs, vgg

FIGURE = pathlib.Path(__file__).parents[2] / "notebooks" / "figures" / "scaling.png"
FLOAT = 4  # bytes
# Arrays of the parameters' size that an optimizer step reads or writes at least, and those it keeps beside them.
TRAFFIC = {"gravity": 6, "adam": 7}
STATE = {"gravity": 1, "adam": 2}
HOP = 1e-6  # seconds from chip to chip for the first byte
# Of VGG19: floating-point operations of a training step, per picture and parameter.
WORK = 51
PICTURES = 128  # per chip


class Chip(NamedTuple):
    """Google's figures for a chip: cloud.google.com/tpu/docs/v4 and /v5e, read in 2026."""

    peak: float  # bfloat16 operations a second
    memory: float  # bytes of HBM
    bandwidth: float  # of HBM, bytes a second
    link: float  # one ICI link, one way, bytes a second: 2,400 Gbit/s over 6 links (v4), 1,600 over 4 (v5e)
    axes: int  # of the torus
    largest: int  # chips in a pod
    network: float  # between pods, bytes a second for each chip (v5e: 6.4 Tbit/s for 256 chips)


CHIPS = {
    "v4": Chip(275e12, 32e9, 1200e9, 50e9, 3, 4096, 0.0),
    "v5e": Chip(197e12, 16e9, 819e9, 50e9, 2, 256, 6.4e12 / 8 / 256),
}


def grid(chip: Chip, chips: int) -> tuple[int, ...]:
    """Sides of a slice, as equal as powers of two allow."""
    exponent, sides = round(math.log2(chips)), []
    for left in range(chip.axes, 0, -1):
        sides.append(2 ** (exponent // left))
        exponent -= exponent // left
    return tuple(sides)


def closed(chip: Chip, sides: tuple[int, ...], side: int) -> bool:
    """Whether an axis is a ring: on v4 where all sides are multiples of 4, on v5e at 16."""
    return all(s % 4 == 0 for s in sides) if chip.axes == 3 else side == 16


def all_reduce_seconds(chip: Chip, chips: int, size: float) -> float:
    """Sum of `size` bytes over `chips`: a reduce-scatter and an all-gather along all axes at once."""
    inside = min(chips, chip.largest)
    sides = grid(chip, inside)
    ways = sum((2 if closed(chip, sides, s) else 1) for s in sides if s > 1)
    hops = sum(s // 2 if closed(chip, sides, s) else s - 1 for s in sides)
    seconds = 2 * size * (inside - 1) / inside / (ways * chip.link) + 2 * hops * HOP if inside > 1 else 0.0
    pods = chips // inside
    if pods > 1:  # each chip sums its part with its counterparts in the other pods
        seconds += 2 * size / inside * (pods - 1) / pods / chip.network
    return seconds


def optimizer_seconds(chip: Chip, parameters: float, optimizer: str = "gravity", shards: int = 1) -> float:
    """Time to move what an optimizer step must move, with parameters, state and gradients split among `shards`."""
    return TRAFFIC[optimizer] * FLOAT * parameters / shards / chip.bandwidth


def compute_seconds(chip: Chip, parameters: float) -> float:
    """A VGG's products at the chip's bfloat16 peak, 128 pictures a chip."""
    return WORK * PICTURES * parameters / chip.peak


def held_bytes(parameters: float, optimizer: str, shards: int = 1, what: str = "none") -> float:
    """Bytes on a chip for parameters, state and gradient; `what` is split: none, state or all."""
    state = STATE[optimizer] * FLOAT * parameters
    others = 2 * FLOAT * parameters  # parameters and gradient
    return {"none": state + others, "state": state / shards + others, "all": (state + others) / shards}[what]


def draw() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((13, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    *times, memory = figure.subplots(1, 3)
    counts = [2**n for n in range(13)]
    sizes = (("tab:blue", "30 M", 3e7), ("tab:orange", "500 M", 5e8), ("tab:green", "10 B", 1e10))
    for axes, (name, chip) in zip(times, CHIPS.items(), strict=True):
        for colour, label, parameters in sizes:
            sums = [all_reduce_seconds(chip, n, FLOAT * parameters) for n in counts]
            fixed = compute_seconds(chip, parameters) + optimizer_seconds(chip, parameters)
            split = [optimizer_seconds(chip, parameters, shards=n) for n in counts]
            axes.plot(counts, [1e3 * (fixed + s) for s in sums], "-", color=colour, label=f"{label} parameters")
            axes.plot(counts[1:], [1e3 * s for s in sums[1:]], "--", color=colour)
            axes.plot(counts, [1e3 * s for s in split], ":", color=colour)
        maxima = [1e3 * all_reduce_seconds(chip, n, FLOAT * 32) for n in counts[1:]]
        axes.plot(counts[1:], maxima, "-", color="tab:gray", label="all-reduce of 32 maxima (split only)")
        axes.plot([], [], "k-", label="step, everything replicated")
        axes.plot([], [], "k--", label="of it all-reduce of the gradient")
        axes.plot([], [], "k:", label="Gravity's step, split among all")
        axes.set(xscale="log", yscale="log", xlabel="chips", ylabel="ms (a model)", title=f"TPU {name}")
        axes.set(ylim=(1e-4, 3e4))
        axes.set_xscale("log", base=2)
    figure.legend(*times[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    sizes = [3e7 * (1e10 / 3e7) ** (i / 40) for i in range(41)]
    for label, optimizer, shards, what, style in (
        ("Adam, replicated", "adam", 1, "none", "k--"),
        ("Gravity, replicated", "gravity", 1, "none", "k-"),
        ("Gravity, V split among 64", "gravity", 64, "state", "b-."),
        ("Gravity, all split among 8", "gravity", 8, "all", "g-"),
        ("Gravity, all split among 64", "gravity", 64, "all", "g:"),
    ):
        memory.plot(sizes, [held_bytes(p, optimizer, shards, what) / 1e9 for p in sizes], style, label=label)
    for name, chip in CHIPS.items():
        memory.axhline(chip.memory / 1e9, color="tab:red", linewidth=0.8)
        memory.text(3e7, chip.memory / 1e9 * 1.06, f"{name}'s memory", color="tab:red", fontsize=8)
    memory.set(xscale="log", yscale="log", xlabel="parameters", ylabel="GB on a chip, without activations")
    memory.set_title("Parameters, gradient and state")
    memory.legend(fontsize=7, loc="lower right")
    figure.savefig(FIGURE, dpi=90)
    sys.stdout.write(f"wrote {FIGURE.name}\n")


def check_trainer() -> Iterator[dict]:
    """The trainer's step of a VGG11, 16 pictures a chip, everything replicated. Formula / compiled, bytes on a chip."""
    dataset = programs.IMAGES * (math.prod(programs.SHAPE) + 4)
    on = [("v5e", (2, 2), 0.25), ("v5e", (4, 8), 0.25), ("v4", (4, 4, 4), 0.25)]
    for chip, sides, width in (*on, *(("v5e", (2, 4), width) for width in (0.5, 1.0, 2.0))):
        chips = math.prod(sides)
        model = vgg.build("vgg11", width, 10, "default")
        parameters = programs.size(programs.vgg_shapes(model))
        compiled = programs.compiled_chunk(tpu_cost.devices(chip, sides), model, 16 * chips)
        held = programs.held(compiled)
        reduced = sum(c["bytes"] for c in hlo.Program(compiled.as_text()).collectives() if c["in_loop"])
        yield {
            "trainer's step": f"{chips} x {chip}",
            "parameters": parameters,
            "parameters, V, dataset": both(2 * FLOAT * parameters + dataset, held["arguments"]),
            "all-reduced": both(FLOAT * parameters, reduced),
            "temporary / 4 P": held["temporary"] / (FLOAT * parameters),
        }


def check_split() -> Iterator[dict]:
    """The optimizer's step of VGG16, all arrays split among the chips. Formula / compiled, bytes on a chip."""
    params = programs.vgg_shapes(vgg.build("vgg16", 1.0, 10, "float32"))
    parameters, leaves = programs.size(params), len(jax.tree.leaves(params))
    for chip, sides in (("v5e", (2, 2)), ("v5e", (4, 4)), ("v5e", (8, 8)), ("v4", (4, 4, 4))):
        chips = math.prod(sides)
        longest = programs.along_the_longest_axis(tpu_cost.devices(chip, sides))
        for name, tx in (("gravity", "gravity"), ("adam", "optax.adam")):
            compiled = programs.compiled_step(programs.OPTIMIZERS[tx], params, longest)
            program = hlo.Program(compiled.as_text())
            collectives = program.collectives()
            yield {
                "optimizer's step, split": name,
                "chips": f"{chips} x {chip}",
                "held": both(held_bytes(parameters, name, chips, "all"), programs.held(compiled)["arguments"]),
                "through memory": both(TRAFFIC[name] * FLOAT * parameters / chips, program.memory_traffic()),
                "collectives": ", ".join(f"{n} {kind}" for kind, n in programs.counted(c["kind"] for c in collectives)),
                "their bytes": both(FLOAT * leaves * (name == "gravity"), sum(c["bytes"] for c in collectives)),
            }


def both(formula: float, count: int) -> str:
    return f"{formula:,.0f} / {count:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with compiled programs (needs libtpu)")
    if parser.parse_args().check:
        timing.report(None, {"trainer": [*check_trainer()], "split": [*check_split()]})
    else:
        draw()


if __name__ == "__main__":
    main()
