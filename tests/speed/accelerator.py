"""The library and the trainer on a GPU or TPU host: correctness, speed, and how long the paper's evaluation would take.

    python tests/speed/accelerator.py --out FOLDER

It needs jax (with its plugin for the accelerator), optax, flax and NumPy, and compares with PyTorch where that is
installed. It ends within ten minutes (or `--minutes N`): what it has no time for is named and skipped. FOLDER
gets `accelerator.json` and `accelerator.txt`, the tables, row by row. Times are medians of runs that end with the
device idle. `--tiny` goes through everything with small networks, on any machine, in a minute; its numbers say nothing.
"""

import argparse
import functools
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or PyTorch, and runs side by side, find no memory

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
import torch_peer

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the library need not be installed
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import programs

import oracle
from gravity_optax import gravity
from trainer import steps, vgg
from trainer.devices import Program, Replicas

# Dense products in bfloat16 a second, by a part of the device's name: the makers' data sheets.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "V5 lite": 197e12}
PEAKS |= {"v5e": 197e12, "v5p": 459e12, "v4": 275e12, "v6": 918e12, "B200": 2250e12}
TRAIN_SIZES = (60_000, 60_000, 50_000, 50_000, 50_000)  # the paper's five datasets; each has 10,000 test pictures
LAST_ROW = 80  # seconds: with less time left no row is begun
SHAPE, CLASSES = (32, 32, 3), 10
BLOCK = 20  # optimizer steps between two looks at the clock


class Setting:
    """What `--tiny` changes."""

    def __init__(self, tiny: bool, minutes: float):
        self.tiny = tiny
        self.models = {"vgg11": 1 / 16} if tiny else {"vgg16": 1.0, "vgg19": 1.0}  # name: width
        self.batch, self.chunk = (8, 2) if tiny else (128, 23)
        self.train, self.test = (64, 20) if tiny else (50_000, 10_000)
        self.repeats = 2 if tiny else 5
        self.trees = programs.trees() if not tiny else {"1 x 10K": [jax.ShapeDtypeStruct((10_000,), jnp.float32)]}
        self.trees.pop("1000 x 1000", None)
        self.beside = (1, 2) if tiny else (1, 2, 4)
        self.deadline = time.monotonic() + 60 * minutes - LAST_ROW


def blocked(run: Callable[[], object], repeats: int, inner: int = 1) -> float:
    """Median seconds of `run`, in blocks of `inner`, each block until the device is done; one block warms up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(inner):
            result = run()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start) / inner)
    return statistics.median(seconds[1:])


def correctness(setting: Setting, figures: dict) -> Iterator[dict]:
    """Gravity's 20 first updates beside float64 NumPy, on the device: the largest error over the largest parameter."""
    for dtype in ("float32", "bfloat16", "float16"):
        rng = np.random.default_rng(0)
        gradients = [jnp.asarray(rng.normal(size=(300, 70)), dtype) for _ in range(20)]
        params = jnp.zeros((300, 70), dtype)
        tx = gravity(0.1, key=0)
        state = tx.init(params)
        start = state[0].velocity
        update = jax.jit(lambda g, s, p, tx=tx: (lambda u, s: (optax.apply_updates(p, u), s))(*tx.update(g, s, p)))
        for g in gradients:
            params, state = update(g, state, params)
        _, exact = oracle.trajectory([np.float64(g) for g in gradients], np.float64(start), np.zeros((300, 70)), 0.1, 1)
        error = np.abs(np.float64(params) - exact[-1]).max() / np.abs(exact[-1]).max()
        bound = 40 * float(jnp.finfo(dtype).eps)
        yield {"dtype": dtype, "error": float(error), "bound": bound, "right": bool(error <= bound)}


def optimizer(setting: Setting, figures: dict) -> Iterator[dict]:
    """The optimizer step: milliseconds, and the arrays that it must move over the time."""
    for tree, leaves in setting.trees.items():
        candidates = {
            name: functools.partial(lambda tx, leaves: programs.running_step(tx, leaves)[0], tx, leaves)
            for name, tx in (programs.IN_PLACE | programs.OPTIMIZERS).items()
        }
        if device := torch_peer.device():
            shapes = [leaf.shape for leaf in leaves]
            for peer in ("Adam", "SGD"):
                make = functools.partial(torch_peer.optimizer_step, peer, shapes, device, BLOCK)
                candidates[f"PyTorch {peer}, fused"] = make
        for name, make in candidates.items():
            seconds = blocked(make(), setting.repeats, inner=BLOCK)
            speed = programs.arrays_moved(name) * 4 * programs.size(leaves) / seconds
            yield {"optimizer step": name, "leaves": tree, "ms": 1e3 * seconds, "GB/s": speed / 1e9}


class Training:
    """A run of the trainer on random pictures that lie on the devices, with its own compiled programs."""

    def __init__(self, setting: Setting, model: str, precision: str):
        self.setting, self.replicas = setting, Replicas()
        network = vgg.build(model, setting.models[model], CLASSES, precision)
        tx = gravity(0.1, key=0)
        params = vgg.init(network, jax.random.key(0), SHAPE)
        self.state = self.replicas.replicate(steps.TrainState(params, tx.init(params)))
        rng = np.random.default_rng(0)
        self.train_set, self.test_set = (
            self.replicas.replicate(
                steps.Split(
                    rng.integers(0, 256, (n, math.prod(SHAPE)), np.uint8), np.arange(n, dtype=np.int32) % CLASSES
                )
            )
            for n in (setting.train, setting.test)
        )
        apply = steps.on_flat(network.apply, SHAPE)
        self.test_batches = self.batches(np.arange(setting.test), -(-setting.test // setting.batch))
        train, evaluate = functools.partial(steps.train_chunk, apply, tx), functools.partial(steps.evaluate, apply)
        empty = self.batches(np.arange(0), setting.chunk)
        start = time.perf_counter()
        self.chunk = Program(self.replicas, train, self.state, self.train_set, empty, donate_first=True).compile()
        self.compile_seconds = time.perf_counter() - start
        self.evaluate = Program(self.replicas, evaluate, self.state.params, self.test_set, self.test_batches)

    def batches(self, order: np.ndarray, count: int) -> np.ndarray:
        return self.replicas.split(steps.in_batches(order, count, self.setting.batch))

    def run(self) -> object:
        """One chunk of full batches."""
        batches = self.batches(
            np.arange(self.setting.chunk * self.setting.batch) % self.setting.train, self.setting.chunk
        )
        self.state, sums = self.chunk(self.state, self.train_set, batches)
        return sums

    def epoch(self, evaluate: Callable) -> object:
        """All training pictures in a new order, then all test pictures."""
        order = np.random.default_rng(1).permutation(self.setting.train)
        pictures = self.setting.chunk * self.setting.batch
        for start in range(0, self.setting.train, pictures):
            batches = self.batches(order[start:], self.setting.chunk)
            self.state, sums = self.chunk(self.state, self.train_set, batches)
        return sums, evaluate(self.state.params, self.test_set, self.test_batches)


def scaled(width: float, features: int) -> int:
    return max(1, round(width * features))


def operations(model: str, width: float) -> float:
    """Of the products that a training step makes for one picture: the forward pass, and twice that backward."""
    size, previous, total = SHAPE[0], SHAPE[2], 0
    for count, features in zip(vgg.CONVOLUTIONS[model], [scaled(width, c) for c in vgg.CHANNELS], strict=True):
        for _ in range(count):
            total += 9 * previous * features * size**2
            previous = features
        size //= 2
    for features in (scaled(width, vgg.DENSE), scaled(width, vgg.DENSE), CLASSES):
        total += previous * features
        previous = features
    return 3 * 2.0 * total


def training(setting: Setting, figures: dict) -> Iterator[dict]:
    """The training step: images/s, the share of the bfloat16 peak, PyTorch's images/s in turn, an epoch's seconds."""
    device = jax.devices()[0]
    peak = next((value for name, value in PEAKS.items() if name.lower() in device.device_kind.lower()), math.nan)
    for model, width in setting.models.items():
        for precision in ("float32", "default", "bfloat16"):
            run = Training(setting, model, precision)
            seconds = blocked(run.run, setting.repeats)
            speed = setting.chunk * setting.batch / seconds
            evaluate = run.evaluate.compile()
            epoch = blocked(functools.partial(run.epoch, evaluate), 1 if setting.tiny else 2)
            yield {
                "training step": f"{model}, {precision}",
                "images/s": speed,
                "of the peak": speed * operations(model, width) / (peak * len(jax.devices())),
                "PyTorch images/s": torch_speed(setting, model, width, precision),
                "epoch s": epoch,
                "compile s": run.compile_seconds,
            }


def torch_speed(setting: Setting, model: str, width: float, precision: str) -> float:
    """PyTorch's images/s; nan where it is not installed or fails: the rest is still worth having."""
    if not (device := torch_peer.device()):
        return math.nan
    try:
        channels, dense = [scaled(width, c) for c in vgg.CHANNELS], scaled(width, vgg.DENSE)
        network = torch_peer.vgg(vgg.CONVOLUTIONS[model], channels, dense, CLASSES)
        # Compiling needs a C compiler, and gains nothing in a tiny run.
        run = torch_peer.training_steps(network, setting.batch, setting.chunk, precision, device, not setting.tiny)
        return setting.chunk * setting.batch / blocked(run, setting.repeats)
    except Exception as error:
        sys.stderr.write(f"PyTorch is left out: {type(error).__name__}: {error}\n")
        return math.nan


def side_by_side(setting: Setting, figures: dict) -> Iterator[dict]:
    """Processes that train the first model at once on one GPU: images/s of all together."""
    if jax.default_backend() == "tpu":
        return  # a TPU belongs to one process
    for count in setting.beside:
        command = [sys.executable, __file__, "--child", *(["--tiny"] if setting.tiny else [])]
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        try:
            for c in children:
                if c.stdout.readline().strip() != "ready":
                    raise RuntimeError("a process side by side did not start; see its message above")
            for c in children:
                c.stdin.write("go\n")
                c.stdin.flush()
            speeds = [float(c.stdout.readline()) for c in children]
        finally:
            for c in children:
                c.kill()
                c.communicate()
        yield {"runs at once": count, "images/s together": sum(speeds)}


def child(setting: Setting) -> None:
    """One of the processes side by side: says that it is ready, waits for a line, trains, says its speed."""
    run = Training(setting, next(iter(setting.models)), "default")
    jax.block_until_ready(run.run())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < (0.5 if setting.tiny else 8):
        jax.block_until_ready(run.run())
        images += setting.chunk * setting.batch
    sys.stdout.write(f"{images / elapsed}\n")
    sys.stdout.flush()


def evaluation(setting: Setting, figures: dict) -> Iterator[dict]:
    """The paper's 30 cells x 100 epochs on this machine, one after another and with the best number of runs at once."""
    together = {row["runs at once"]: row["images/s together"] for row in figures.get("side_by_side", [])}
    gain = max(together.values()) / together[1] if 1 in together else 1.0
    rows = figures.get("training", [])
    for precision in ("float32", "default", "bfloat16"):
        epochs = [row["epoch s"] for row in rows if row["training step"].endswith(f", {precision}")]
        if len(epochs) == len(setting.models):
            per_picture = statistics.mean(epochs) / setting.train
            hours = 100 * 3 * 2 * sum(TRAIN_SIZES) * per_picture / 3600  # three optimizers, two models
            yield {"30 cells x 100 epochs": precision, "hours": hours, "hours, several at once": hours / gain}


def rows_in_time(part: Callable, setting: Setting, figures: dict) -> Iterator[dict]:
    """The rows of a part; none is begun when the time is nearly over, but those that take no time."""
    rows = part(setting, figures)
    while part is evaluation or time.monotonic() < setting.deadline:
        if (row := next(rows, None)) is None:
            return
        yield row


def measure(setting: Setting, out: pathlib.Path) -> dict:
    """All parts in turn; each row is written to `out` once it is measured, each table shown once it is complete."""
    figures: dict = {"devices": [d.device_kind for d in jax.devices()]}
    tables = [", ".join(figures["devices"])]
    for part in (correctness, optimizer, training, side_by_side, evaluation):
        figures[part.__name__] = rows = []
        tables.append(f"{part.__doc__}\nnothing measured")
        for row in rows_in_time(part, setting, figures):
            rows.append(row)
            tables[-1] = f"{part.__doc__}\n{timing.table(rows)}"
            timing.write(out / "accelerator.json", figures)
            (out / "accelerator.txt").write_text("\n\n".join(tables) + "\n")
        if time.monotonic() >= setting.deadline:
            tables[-1] += "\n(the time was nearly over: no more was begun)"
        sys.stdout.write(tables[-1] + "\n\n")
        sys.stdout.flush()
    (out / "accelerator.txt").write_text("\n\n".join(tables) + "\n")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="folder for accelerator.json and accelerator.txt")
    parser.add_argument("--minutes", type=float, default=10, help="after which it has ended (default 10)")
    parser.add_argument("--tiny", action="store_true", help="small networks, on any machine, to try the script")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    setting = Setting(options.tiny, options.minutes)
    if options.child:
        child(setting)
        return
    if options.out is None:
        parser.error("--out FOLDER is missing: where the tables go.")
    if jax.default_backend() == "cpu" and not options.tiny:
        parser.error("jax sees no accelerator here; --tiny tries the script without one.")
    options.out.mkdir(parents=True, exist_ok=True)
    figures = measure(setting, options.out)
    if not all(row["right"] for row in figures["correctness"]):
        sys.exit("error: the library's updates on this device are wrong; see the first table.")


if __name__ == "__main__":
    main()
