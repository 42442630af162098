"""The library and the trainer on a GPU or TPU host: correctness, speed, and how long the paper's evaluation would take.

    python tests/speed/accelerator.py --out FOLDER

It needs jax (with its plugin for the accelerator), optax, flax and NumPy, and compares with PyTorch if that is
installed. It ends within ten minutes (or `--minutes N`); what it has no time for is named and skipped. FOLDER gets the
tables, row by row: `accelerator.json` and `accelerator.txt`. Times are medians. `--tiny` tries everything with small
networks, on any machine, in a minute; its numbers say nothing.
"""

import concurrent.futures
import functools
import itertools
import math
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or PyTorch, and runs side by side, find no memory
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import programs
import timing
import torch_peer

import oracle
from gravity_optax import gravity
from trainer import vgg

# Dense products in bfloat16 a second, by a part of the device's name: the makers' data sheets.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "V5 lite": 197e12}
PEAKS |= {"v5e": 197e12, "v5p": 459e12, "v4": 275e12, "v6": 918e12, "B200": 2250e12}
TRAIN_SIZES = (60_000, 60_000, 50_000, 50_000, 50_000)  # the paper's five datasets; each has 10,000 test pictures
START, LAST_ROW = time.monotonic(), 80  # seconds: with less time left no row is begun
PRECISIONS = ("float32", "default", "bfloat16")
BLOCK = 20  # optimizer steps between two looks at the clock


def sizes(tiny: bool) -> dict:
    """The networks (name and width), batch, steps in a chunk, training and test pictures."""
    if tiny:
        return {"models": {"vgg11": 1 / 16}, "batch": 8, "count": 2, "images": 64, "test": 20}
    return {"models": {"vgg16": 1.0, "vgg19": 1.0}, "batch": 128, "count": 23, "images": 50_000, "test": 10_000}


def in_time(part: Callable) -> Callable:
    """The rows of a part; none is begun when the time is nearly over."""

    @functools.wraps(part)
    def rows(options):
        measured = part(options)
        while time.monotonic() < START + 60 * options.minutes - LAST_ROW:
            if (row := next(measured, None)) is None:
                return
            yield row
        sys.stderr.write(f"{part.__name__}: the time was nearly over, and no more of it was begun\n")

    return rows


def seconds_of(run: Callable[[], object], tiny: bool) -> float:
    """The median of several runs, each until the device is done; the first is not counted."""
    (seconds,) = timing.interleaved({"": lambda: jax.block_until_ready(run())}, 2 if tiny else 5, warmup=1).values()
    return statistics.median(seconds)


@in_time
def correctness(options) -> Iterator[dict]:
    """Gravity's 20 first updates beside float64 NumPy, on the device: the largest error over the largest parameter."""
    for dtype in ("float32", "bfloat16", "float16"):
        rng = np.random.default_rng(0)
        gradients = [jnp.asarray(rng.normal(size=(300, 70)), dtype) for _ in range(20)]
        params, tx = jnp.zeros((300, 70), dtype), gravity(0.1, key=0)
        state = tx.init(params)
        start = np.float64(state[0].velocity)
        update = jax.jit(lambda g, s, p, tx=tx: (lambda u, s: (optax.apply_updates(p, u), s))(*tx.update(g, s, p)))
        for g in gradients:
            params, state = update(g, state, params)
        _, exact = oracle.trajectory([np.float64(g) for g in gradients], start, np.zeros((300, 70)), 0.1, 1)
        error = np.abs(np.float64(params) - exact[-1]).max() / np.abs(exact[-1]).max()
        bound = 40 * float(jnp.finfo(dtype).eps)
        yield {"dtype": dtype, "error": float(error), "bound": bound, "right": bool(error <= bound)}


@in_time
def optimizer(options) -> Iterator[dict]:
    """The optimizer step: milliseconds, and GB/s of the arrays that it must move."""
    trees = {"1 x 10K": [jax.ShapeDtypeStruct((10_000,), jnp.float32)]} if options.tiny else programs.trees()
    trees.pop("1000 x 1000", None)
    device = torch_peer.device()
    peers = {"PyTorch Adam, fused": "Adam", "PyTorch SGD, fused": "SGD"} if device else {}
    for tree, leaves in trees.items():
        for name, what in (programs.IN_PLACE | programs.OPTIMIZERS | peers).items():
            if name in peers:
                run = torch_peer.optimizer_step(what, [leaf.shape for leaf in leaves], device, BLOCK)
            else:
                run, _ = programs.running_step(what, leaves, BLOCK)
            seconds = seconds_of(run, options.tiny) / BLOCK
            gigabytes = programs.gigabytes(name, leaves)
            yield {"optimizer step": name, "leaves": tree, "ms": 1e3 * seconds, "GB/s": gigabytes / seconds}


def operations(model: str, width: float) -> float:
    """Of the products that a training step makes for one picture: the forward pass, and twice that backward."""
    previous, dense = programs.SHAPE[2], vgg.scaled(vgg.DENSE, width)
    total = 0
    for block, count in enumerate(vgg.CONVOLUTIONS[model]):
        features = vgg.scaled(vgg.CHANNELS[block], width)
        total += 9 * (previous + (count - 1) * features) * features * (vgg.SIZE >> block) ** 2
        previous = features
    return 3 * 2.0 * (total + previous * dense + dense * dense + dense * programs.CLASSES)


@in_time
def training(options) -> Iterator[dict]:
    """The training step: images/s, the share of the bfloat16 peak, PyTorch's images/s in turn, an epoch's seconds."""
    kind, size = jax.devices()[0].device_kind.lower(), sizes(options.tiny)
    peak = next((value for name, value in PEAKS.items() if name.lower() in kind), math.nan) * len(jax.devices())
    for (model, width), precision in itertools.product(size["models"].items(), PRECISIONS):
        run = programs.Training(model, width, precision, size["batch"], size["count"], size["images"])
        speed = run.pictures / seconds_of(run.run, options.tiny)
        yield {
            "training step": f"{model}, {precision}",
            "images/s": speed,
            "of the peak": speed * operations(model, width) / peak,
            "PyTorch images/s": torch_speed(model, width, precision, size, options.tiny),
            "epoch s": seconds_of(run.epoch(size["test"]), tiny=True),
            "compile s": run.compile_seconds,
        }


def torch_speed(model: str, width: float, precision: str, size: dict, tiny: bool) -> float:
    """PyTorch's images/s; nan where it is not installed or fails: the rest is still worth having."""
    if not (device := torch_peer.device()):
        return math.nan
    try:
        # Compiling needs a C compiler, and gains nothing in a tiny run.
        shape = (model, width, programs.CLASSES, size["batch"], size["count"])
        run = torch_peer.training_steps(*shape, precision, device, compiled=not tiny)
        return size["count"] * size["batch"] / seconds_of(run, tiny)
    except Exception as error:
        sys.stderr.write(f"PyTorch is left out: {type(error).__name__}: {error}\n")
        return math.nan


@in_time
def side_by_side(options) -> Iterator[dict]:
    """Processes that train the first model at once on one GPU: images/s of all together."""
    if jax.default_backend() == "tpu":
        return  # a TPU belongs to one process
    context = multiprocessing.get_context("spawn")
    for count in (1, 2) if options.tiny else (1, 2, 4):
        with context.Manager() as manager, concurrent.futures.ProcessPoolExecutor(count, context) as pool:
            ready = manager.Barrier(count, timeout=180)
            speeds = list(pool.map(train_beside, [options.tiny] * count, [ready] * count))
        yield {"runs at once": count, "images/s together": sum(speeds)}


def train_beside(tiny: bool, ready) -> float:
    """Images/s of one of the processes side by side, from the moment in which all are ready."""
    size, images = sizes(tiny), 0
    (model, width), *_ = size["models"].items()
    run = programs.Training(model, width, "default", size["batch"], size["count"], size["images"])
    jax.block_until_ready(run.run())
    ready.wait()
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < (0.5 if tiny else 8):
        jax.block_until_ready(run.run())
        images += run.pictures
    return images / elapsed


def evaluation(options) -> Iterator[dict]:
    """The paper's 30 cells x 100 epochs on this machine, one after another and with the best number of runs at once."""
    together = [row["images/s together"] for row in options.figures.get("side_by_side", [])]
    gain, size = max(together) / together[0] if together else 1.0, sizes(options.tiny)
    for precision in PRECISIONS:
        rows = [row for row in options.figures.get("training", []) if row["training step"].endswith(f", {precision}")]
        if len(rows) == len(size["models"]):
            per_picture = statistics.mean(row["epoch s"] for row in rows) / size["images"]
            hours = 100 * 3 * 2 * sum(TRAIN_SIZES) * per_picture / 3600  # three optimizers, two models
            yield {"30 cells x 100 epochs": precision, "hours": hours, "hours, several at once": hours / gain}


def checked(options) -> Iterator[dict]:
    """The devices."""
    if jax.default_backend() == "cpu" and not options.tiny:
        sys.exit("error: jax sees no accelerator here; --tiny tries the script without one.")
    yield {"devices": ", ".join(d.device_kind for d in jax.devices())}


if __name__ == "__main__":
    tiny = {"action": "store_true", "help": "small networks, on any machine, to try the script"}
    parts = (checked, correctness, optimizer, training, side_by_side, evaluation)
    figures = timing.main(__doc__, *parts, minutes=10.0, tiny=tiny)
    if not all(row["right"] for row in figures.get("correctness", [])):
        sys.exit("error: the library's updates on this device are wrong; see the first table.")
