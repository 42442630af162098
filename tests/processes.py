"""The trainer in separate processes, which can be killed, and what such a run leaves behind."""

import contextlib
import csv
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

MAIN = pathlib.Path(__file__).parent.parent / "train" / "main.py"
# Calls main.main(), but a signal ends the process at the `call`th call of a function, before its work or after it.
ENDING = """
import os, sys, time
sys.path.insert(0, {train!r})
from trainer import {module}
original, calls = {module}.{name}, []
def ending(*args):
    calls.append(args)
    result = original(*args) if {after} else None
    if len(calls) == {call}:
        os.kill(os.getpid(), {number})
        time.sleep(5)  # until the main thread has handled it
    return result if {after} else original(*args)
{module}.{name} = ending
import main
sys.exit(main.main())
"""
TIMES = ("seconds", "images_per_second", "val_seconds")


def ending(name, call, number, after=False):
    """The program for `start` that a signal ends; `name` is of a function, such as "loop.Trainer"."""
    module, _, name = name.partition(".")
    where = {"train": str(MAIN.parent), "module": module, "name": name}
    return "-c", ENDING.format(**where, call=call, number=int(number), after=after)


def start(*flags, devices=1, program=(str(MAIN),)):
    """A process of the trainer with `devices` virtual devices; its stdout has output and errors."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, *program, *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def start_together(count, *flags, devices):
    """`count` processes of one run, with `devices` each, that connect over loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = ("--coordinator", address, "--num-processes", count)
    return [start(*flags, *together, "--process-id", i, devices=devices) for i in range(count)]


def finish(process, code=0, seconds=900):
    """What it wrote, once it has ended with this exit code (or one of these)."""
    try:
        out, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode in (code if isinstance(code, tuple) else (code,)), (
        f"exit code {process.returncode}, not {code}:\n{out}"
    )
    return out


def wait_for(process, moment, seconds=900):
    """Until `moment()` is true; False if the process ended before."""
    end = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < end, "the moment never came"
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def finish_all(together, code=0, seconds=900):
    """What each of several processes wrote; all are gone then, whatever happens."""
    try:
        return [finish(process, code, seconds) for process in together]
    finally:
        for process in together:
            process.kill()
            process.communicate()


def kill_at(process, moment, seconds=900):
    """SIGKILL as soon as `moment()` is true; False if the process was faster."""
    if wait_for(process, moment, seconds):
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


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
    from trainer.checkpoints import Checkpoints

    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints", keep=100)
    arrays, _ = checkpoints.restore()
    checkpoints.close()
    with open(pathlib.Path(workdir) / "history.csv", newline="") as file:
        history = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    return arrays, history


def differences(one, other):
    """Where two results are not bit for bit the same: a list of names, empty if nowhere."""
    (arrays, history), (others, other_history) = one, other
    bits = lambda array: (array.dtype, array.shape, np.asarray(array).tobytes())
    wrong = [name for name in arrays | others if name not in arrays or name not in others]
    wrong += [name for name in arrays.keys() & others.keys() if bits(arrays[name]) != bits(others[name])]
    return wrong + ["history.csv"] * (history != other_history)
