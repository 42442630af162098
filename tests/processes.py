"""The trainer in separate processes, which can be killed, or in this one, stopped; and what a run leaves behind."""

import contextlib
import csv
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from trainer import loop
from trainer.checkpoints import ReadCheckpoints
from trainer.config import resolve
from trainer.preemption import StopRequest

MAIN = pathlib.Path(__file__).parent.parent / "train" / "main.py"


def start(*flags, devices=1, program=(str(MAIN),)):
    """A process of the trainer, or of another program, with `devices` virtual devices; its stdout has errors too."""
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    settings["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": {**os.environ, **settings}}
    return subprocess.Popen([sys.executable, *program, *map(str, flags)], **options)


def start_together(count, *flags, devices):
    """`count` processes of one run, with `devices` each, that connect over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = ("--coordinator", address, "--num-processes", count)
    return [start(*flags, *together, "--process-id", i, devices=devices) for i in range(count)]


def finish(process, codes=(0,)):
    """What it wrote, once it has ended with one of these exit codes."""
    try:
        out, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode in codes, f"exit code {process.returncode}, not one of {codes}:\n{out}"
    return out


def finish_all(together, codes=(0,)):
    """What each of several processes wrote; all are gone then, whatever happens."""
    try:
        return [finish(process, codes) for process in together]
    finally:
        for process in together:
            process.kill()
            process.communicate()


def wait_for(process, moment, seconds=900):
    """Until `moment()` is true; False if the process ended before."""
    end = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < end, "the moment never came"
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def rows(workdir):
    """How many epochs history.csv has."""
    with contextlib.suppress(FileNotFoundError):
        return max(0, (pathlib.Path(workdir) / "history.csv").read_text().count("\n") - 1)
    return 0


def whole(workdir):
    """The numbers of the checkpoints that are written."""
    return sorted(int(path.name) for path in (pathlib.Path(workdir) / "checkpoints").glob("*") if path.name.isdecimal())


def result(workdir):
    """The arrays of the newest checkpoint, and history.csv without the columns that are times."""
    workdir, times = pathlib.Path(workdir), ("seconds", "images_per_second", "val_seconds")
    _, arrays, _ = ReadCheckpoints(workdir / "checkpoints").read(None)
    history = [{k: v for k, v in row.items() if k not in times} for row in table(workdir / "history.csv")]
    return arrays, history


def differences(workdir, other):
    """Where the results of two runs are not bit for bit the same: a list of names, empty if nowhere."""
    (arrays, history), (others, other_history) = result(workdir), result(other)
    bits = lambda name, of: name in of and (of[name].dtype, of[name].shape, np.asarray(of[name]).tobytes())
    wrong = [name for name in arrays | others if bits(name, arrays) != bits(name, others)]
    return wrong + ["history.csv"] * (history != other_history)


class StopAfter(StopRequest):
    """Asks to stop once `chunks` chunks have begun."""

    def __init__(self, chunks):
        self.left = chunks

    @property
    def given(self):
        self.left -= 1
        return self.left < 0


def train_here(config, workdir, chunks=None, devices=1, **flags):
    """`loop.train` of the configuration with other flags, on `devices` devices; stopped after `chunks` chunks."""
    config = resolve(dataclasses.replace(config, workdir=str(workdir), **flags))
    with jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        return loop.train(config, jax.devices()[:devices], None if chunks is None else StopAfter(chunks))


def table(path):
    """The rows of a CSV file, as dictionaries."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder):
    """Every file below a folder with its content."""
    return {path: path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}
