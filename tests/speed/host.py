"""What the host costs: the start, the trainer's loop beside the bare chunks, 8 virtual devices, `--watch`, memory.

    pip install -e ".[train]" && python tests/speed/host.py [--data-dir DATA] [--json FILE]

**start**: seconds of processes of their own, from start to end: `--help`; `main.py` up to the moment in which the sums
of its first chunk of steps are back, with JAX's persistent compilation cache off, empty and filled; and the reading of
MNIST from DATA, where it must be prepared.

**steps**, of the default run: milliseconds per step of whole epochs. "loop" is what history.csv counts as training
(batches, chunks, sums, progress); "bare" is the same compiled chunks one after another on prepared batches.

**memory**: the largest resident size of a run of VGG16 on CIFAR-10 from DATA: 2 epochs of 1,280 pictures with
checkpoints, beside dataset + 4 x parameters + 1 GiB.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import timing

TRAIN = pathlib.Path(__file__).parents[2] / "train"
EPOCHS = 3
PICTURES = 1280
MODELS = {"default": [], "vgg16": ["--model", "vgg16", "--width", "1", "--batch-size", "128"]}
# The trainer, which ends when its first chunk is done.
FIRST_CHUNK = """
import os
import sys
from trainer import loop
import main
advance = loop.Trainer.advance
def first(trainer, epoch, chunks):
    next(advance(trainer, epoch, [0]))
    os._exit(0)
loop.Trainer.advance = first
sys.exit(main.main())
"""
READ_MNIST = "import sys; from trainer import data; assert len(data.load('mnist', sys.argv[1]).train_labels) == 60_000"


def run(*command: str, **variables: str) -> str:
    """A Python process in the trainer's folder; what it wrote is returned, and shown if it fails."""
    command = (sys.executable, *command)
    done = subprocess.run(command, cwd=TRAIN, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def start(data_dir: str | None, rounds: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:

        def first_chunk(model: str, cache: str) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                where = {"off": {}, "empty": {"JAX_COMPILATION_CACHE_DIR": f"{fresh}/cache"}}
                variables = where.get(cache, {"JAX_COMPILATION_CACHE_DIR": f"{folder}/{model}"})
                setting = ["--compilation-cache", "on" if variables else "off", "--workdir", f"{fresh}/run"]
                run("-c", FIRST_CHUNK, *MODELS[model], *setting, **variables)

        candidates = {"--help": lambda: run("main.py", "--help")}
        for model in MODELS:
            for cache in ("off", "empty", "filled"):
                name = f"{model}, first chunk, cache {cache}"
                candidates[name] = lambda model=model, cache=cache: first_chunk(model, cache)
        if data_dir:
            candidates["MNIST, 60,000 + 10,000 pictures"] = lambda: run("-c", READ_MNIST, data_dir)
        times = timing.interleaved(candidates, rounds, warmup=1)  # which fills the caches
    return [{"from start to end": name, **timing.summary(seconds)} for name, seconds in times.items()]


def child() -> None:
    """Times epochs of the default run in this process, and writes {name: seconds per step of each epoch}."""
    sys.path.insert(0, str(TRAIN))
    import jax
    import numpy as np

    from trainer import data, loop, steps
    from trainer.config import Config, resolve

    config = resolve(Config())
    trainer = loop.Trainer(config, data.load(config.dataset, None, None))
    batches = steps.in_batches(np.arange(trainer.train_size), trainer.steps_per_epoch, config.batch_size)
    parts = np.split(batches, np.cumsum(trainer.lengths)[:-1])
    ready = [jax.device_put(trainer.replicas.split(part)) for part in parts]

    def bare():
        for length, batches in zip(trainer.lengths, ready, strict=True):
            trainer.state, sums = trainer.built.chunks[length](trainer.state, trainer.built.train_set, batches)
        jax.block_until_ready(sums)

    times = timing.interleaved({"loop": lambda: trainer.train_epoch(1), "bare": bare}, EPOCHS, warmup=1)
    steps_of = trainer.steps_per_epoch
    sys.stdout.write(json.dumps({name: [s / steps_of for s in seconds] for name, seconds in times.items()}))


def steps(rounds: int) -> list[dict]:
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for devices in (1, 8):
            flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
            for name, seconds in json.loads(run(__file__, "--child", XLA_FLAGS=flags, JAX_PLATFORMS="cpu")).items():
                times.setdefault(f"{name}, {devices} device{'s' * (devices > 1)}", []).extend(seconds)
    rows = [{"a step of the default run": name, **timing.summary(seconds)} for name, seconds in times.items()]
    return [row | {"loop, 1 device / this": rows[0]["median_ms"] / row["median_ms"]} for row in rows]


def watch(rounds: int) -> dict[str, list[dict]]:
    """What `--watch` costs: to compile at the start, in seconds of the clock and of all cores; and once per epoch.

    A measurement is a forward and a backward pass on one batch, and reading the numbers back.
    """
    sys.path.insert(0, str(TRAIN))
    from trainer import data, jax_setup, loop
    from trainer.config import Config, resolve

    jax_setup.work_around()
    digits = data.load("digits", None, None)
    starts = []
    for on in (False, False, True):  # the first one also compiles what all of them share
        start, processor = time.perf_counter(), time.process_time()
        trainer = loop.Trainer(resolve(Config(watch=on)), digits)
        taken = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
        starts.append({"start": "with --watch" if on else "without", **taken})
    runs = {"an epoch": lambda: trainer.train_epoch(1), "a measurement": lambda: trainer.watch(1)}
    times = timing.interleaved(runs, rounds)
    return {"starts": starts[1:], "epochs": [{"--watch": name, **timing.summary(s)} for name, s in times.items()]}


def memory(data_dir: str) -> dict[str, float]:
    """Peak resident GiB of a short run and the limit."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--dataset cifar10 --model vgg16 --limit {PICTURES} --epochs 2 --workdir {folder}/run".split()
        run("main.py", *flags, "--data-dir", data_dir)
        parameters = json.loads(pathlib.Path(folder, "run", "config.json").read_text())["parameters"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    limit = 2 * PICTURES * 32 * 32 * 3 + 4 * 4 * parameters + 2**30
    return {"peak GiB": peak / 2**30, "limit GiB": limit / 2**30}


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        child()
        return
    options = timing.arguments(__doc__, rounds=5, data_dir="folder with MNIST and CIFAR-10 prepared")
    data_dir = options.data_dir and os.path.abspath(options.data_dir)
    figures = {"memory": [memory(data_dir)]} if data_dir else {}  # first, before other children
    figures |= {"start": start(data_dir, options.rounds), "steps": steps(options.rounds), **watch(options.rounds)}
    timing.report(options.json, figures)


if __name__ == "__main__":
    main()
