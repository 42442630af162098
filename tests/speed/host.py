"""What the host costs: the trainer's loop beside the bare compiled chunks, 8 virtual devices beside 1, peak memory.

    pip install -e ".[train]" && python tests/speed/host.py [--data-dir DATA] [--json FILE]

The first two are on the default run (digits): milliseconds per step of whole epochs, in processes that take turns.
"loop" is what history.csv counts as training (batches, chunks, sums, progress); "bare" is the same compiled chunks one
after another on batches that lie ready. Memory is the largest resident size of a run of VGG16 on CIFAR-10, from DATA,
where it must lie prepared: 2 epochs of 1,280 pictures with checkpoints, beside dataset + 4 x parameters + 1 GiB.
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

    times: dict[str, list[float]] = {"loop": [], "bare": []}
    for epoch in range(EPOCHS + 1):
        for name, run in (("loop", lambda: trainer.train_epoch(1)), ("bare", bare)):
            start = time.perf_counter()
            run()
            if epoch > 0:
                times[name].append((time.perf_counter() - start) / trainer.steps_per_epoch)
    sys.stdout.write(json.dumps(times))


def run_child(devices: int) -> dict[str, list[float]]:
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "--child"]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def memory(data_dir: str) -> dict[str, float]:
    """Peak resident GiB of a short run and the limit."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--dataset cifar10 --model vgg16 --limit {PICTURES} --epochs 2".split()
        command = [
            sys.executable,
            "main.py",
            *flags,
            "--data-dir",
            os.path.abspath(data_dir),
            "--workdir",
            f"{folder}/run",
        ]
        subprocess.run(command, cwd=TRAIN, check=True, stdout=subprocess.DEVNULL)
        parameters = json.loads(pathlib.Path(folder, "run", "config.json").read_text())["parameters"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    limit = 2 * PICTURES * 32 * 32 * 3 + 4 * 4 * parameters + 2**30
    return {"peak GiB": peak / 2**30, "limit GiB": limit / 2**30}


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
    times = timing.interleaved(
        {"an epoch": lambda: trainer.train_epoch(1), "a measurement": lambda: trainer.watch(1)}, rounds
    )
    return {
        "starts": starts[1:],
        "epochs": [{"--watch": name, **timing.summary(seconds)} for name, seconds in times.items()],
    }


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        child()
        return
    options = timing.arguments(__doc__, rounds=3, data_dir="folder with CIFAR-10 prepared; without it, no memory")
    figures = {"memory": [memory(options.data_dir)]} if options.data_dir else {}  # first, before other children
    times: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for devices in (1, 8):
            for name, seconds in run_child(devices).items():
                times.setdefault(f"{name}, {devices} device{'s' * (devices > 1)}", []).extend(seconds)
    rows = [{"a step of the default run": name, **timing.summary(seconds)} for name, seconds in times.items()]
    for row in rows:
        row["loop, 1 device / this"] = rows[0]["median_ms"] / row["median_ms"]
    figures |= {"steps": rows, **watch(options.rounds)}
    timing.report(options.json, figures)


if __name__ == "__main__":
    main()
