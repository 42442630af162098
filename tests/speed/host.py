"""What the host costs: the start, the trainer's loop beside the bare chunks, 8 virtual devices, `--watch`, memory.

    pip install -e ".[train]" && python tests/speed/host.py [memory] [start] [steps] [watch] [--data-dir DATA]

Memory, and how long reading MNIST takes, need DATA, a folder with MNIST and CIFAR-10 prepared.
"""

import functools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import timing

TRAIN = pathlib.Path(__file__).parents[2] / "train"
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


def run(*command: str, **variables: str) -> None:
    """A Python process in the trainer's folder; what it wrote is shown if it fails."""
    command = (sys.executable, *command)
    done = subprocess.run(command, cwd=TRAIN, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def memory(options):
    """The largest resident size of a run of VGG16 on CIFAR-10: 2 epochs of 1,280 pictures with checkpoints."""
    if not options.data_dir:
        return
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--dataset cifar10 --model vgg16 --limit {PICTURES} --epochs 2 --workdir {folder}/run".split()
        run("main.py", *flags, "--data-dir", options.data_dir)
        parameters = json.loads(pathlib.Path(folder, "run", "config.json").read_text())["parameters"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    limit = 2 * PICTURES * 32 * 32 * 3 + 4 * 4 * parameters + 2**30
    yield {"peak GiB": peak / 2**30, "dataset + 4 x parameters + 1 GiB": limit / 2**30}


def start(options):
    """Processes from start to end: the trainer until its first chunk is done, with JAX's compilation cache; MNIST."""
    with tempfile.TemporaryDirectory() as folder:

        def first_chunk(model: str, cache: str) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                flags = ["--compilation-cache", "off" if cache == "off" else "on", "--workdir", f"{fresh}/run"]
                where = "" if cache == "off" else f"{folder if cache == 'filled' else fresh}/{model}"
                run("-c", FIRST_CHUNK, *MODELS[model], *flags, JAX_COMPILATION_CACHE_DIR=where)

        runs = {"--help": lambda: run("main.py", "--help")}
        for model in MODELS:
            for cache in ("off", "empty", "filled"):
                runs[f"{model}, first chunk, cache {cache}"] = functools.partial(first_chunk, model, cache)
        if options.data_dir:
            runs["MNIST, 60,000 + 10,000 pictures"] = lambda: run("-c", READ_MNIST, options.data_dir)
        times = timing.interleaved(runs, options.rounds, warmup=1)  # which fills the caches
    for name, seconds in times.items():
        yield {"from start to end": name, **timing.summary(seconds)}


def digits(**flags):
    """A trainer of the default run."""
    sys.path.insert(0, str(TRAIN))
    from trainer import data, jax_setup, loop
    from trainer.config import Config, resolve

    jax_setup.work_around()
    return loop.Trainer(resolve(Config(**flags)), data.load("digits", None, None))


def epochs(devices: int) -> tuple[timing.Runs, dict[str, int]]:
    """Epochs of the default run on so many devices, and the number of their steps."""
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    os.environ |= {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    trainer = digits()
    import jax
    import numpy as np

    from trainer import steps

    batches = steps.in_batches(np.arange(trainer.train_size), trainer.steps_per_epoch, trainer.config.batch_size)
    parts = np.split(batches, np.cumsum(trainer.lengths)[:-1])
    ready = [jax.device_put(trainer.replicas.split(part)) for part in parts]

    def bare():
        for length, batches in zip(trainer.lengths, ready, strict=True):
            trainer.state, sums = trainer.built.chunks[length](trainer.state, trainer.built.train_set, batches)
        jax.block_until_ready(sums)

    runs = {f"loop, devices: {devices}": lambda: trainer.train_epoch(1), f"bare, devices: {devices}": bare}
    return runs, dict.fromkeys(runs, trainer.steps_per_epoch)


def steps(options):
    """A step of the default run: as history.csv counts it (batches, chunks, sums), and the bare compiled chunks."""
    frameworks = [functools.partial(epochs, devices) for devices in (1, 8)]
    times, steps_of = timing.in_processes(frameworks, options.rounds, warmup=1)
    for name, seconds in times.items():
        yield {"a step of the default run": name, **timing.summary(seconds, steps_of[name])}


def watch(options):
    """What `--watch` costs: a start, at which its program is compiled; a forward and a backward pass each epoch."""
    digits()  # compiles what both starts share
    for on in (False, True):
        start, processor = time.perf_counter(), time.process_time()
        trainer = digits(watch=on)
        taken = {"s": time.perf_counter() - start, "s of all cores": time.process_time() - processor}
        yield {"--watch": "a start with it" if on else "a start without", **taken}
    runs = {"an epoch": lambda: trainer.train_epoch(1), "a measurement": lambda: trainer.watch(1)}
    for name, seconds in timing.interleaved(runs, options.rounds).items():
        yield {"--watch": name, "s": statistics.median(seconds), "s of all cores": ""}


if __name__ == "__main__":
    data_dir = {"type": os.path.abspath, "help": "folder with MNIST and CIFAR-10 prepared"}
    # Memory comes first, before other children.
    timing.main(__doc__, memory, start, steps, watch, rounds=5, data_dir=data_dir)
