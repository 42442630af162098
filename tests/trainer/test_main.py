"""The command itself, as users meet it: in a pipe, on a terminal, interrupted."""

import contextlib
import ctypes
import os
import pathlib
import platform
import pty
import re
import signal
import subprocess
import sys
import time

import processes
from processes import MAIN

TGKILL = {"x86_64": 234, "aarch64": 131}[platform.machine()]  # a system call: a signal to one thread
SMALL = ["--model", "softmax", "--limit", "128", "--batch-size", "8"]
ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_DTYPE_PROMOTION": "standard", "COLUMNS": "100"}


def run(*command, cwd):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done


def test_help_answers_before_anything_heavy_is_imported():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['main.py', '--help']\n"
        f"try: runpy.run_path({str(MAIN)!r}, run_name='__main__')\n"
        "except SystemExit as e: assert e.code in (0, None), e.code\n"
        "assert not {'jax', 'numpy', 'flax', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules)\n"
    )
    out = run("-c", code, cwd=MAIN.parent).stdout
    assert all(flag in out for flag in ("--dataset", "--first-step", "--data-dir", "--precision"))


def test_in_a_pipe_there_is_a_line_per_epoch_and_no_progress_bar(tmp_path):
    out = run(str(MAIN), *SMALL, "--epochs", "2", cwd=tmp_path)
    assert "\r" not in out.stdout + out.stderr
    *_, header, first, second, last = out.stdout.splitlines()
    assert header.split() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "images/s"]
    assert (first.split()[0], second.split()[0]) == ("1", "2")
    assert len(first) == len(second) == len(header), "not aligned"
    (folder,) = (tmp_path / "runs").iterdir()
    assert last == f"results are in runs/{folder.name}"
    names = ["checkpoints", "config.json", "history.csv", "history.png"]
    assert sorted(path.name for path in folder.iterdir()) == names


@contextlib.contextmanager
def on_a_terminal(*flags):
    """The process and the terminal's other end; Ctrl-C must end it, with its exit code."""
    controller, terminal = pty.openpty()
    command = [sys.executable, str(MAIN), *map(str, flags)]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=ENVIRONMENT)
    os.close(terminal)
    try:
        yield process, controller
        assert process.wait(600) == 130
    finally:
        process.kill()


def test_a_terminal_has_a_progress_bar_and_ctrl_c_ends_the_run_with_what_was_recorded(tmp_path):
    with on_a_terminal(*SMALL, "--epochs", 100_000, "--workdir", tmp_path / "run") as (process, controller):
        text = b""
        while not re.search(rb"[\r\n] +2 +\d\.\d+ ", text):
            text += os.read(controller, 4096)  # an OSError if the process has ended
        assert re.search(rb"epoch 2/100000: .*\d+/16", text)
        process.send_signal(signal.SIGINT)
    assert processes.rows(tmp_path / "run") >= 2


def takes(pid, thread, number):
    """Whether a thread does not block a signal, as jemalloc's own threads do: the system gives them none."""
    status = pathlib.Path(f"/proc/{pid}/task/{thread}/status").read_text()
    (blocked,) = re.findall(r"^SigBlk:\s*(\w+)$", status, re.MULTILINE)
    return not int(blocked, 16) >> (number - 1) & 1


def test_ctrl_c_ends_a_run_that_compiles_even_if_the_system_hands_it_to_another_thread(tmp_path):
    with on_a_terminal("--epochs", 500, "--workdir", tmp_path / "run") as (process, _):
        assert processes.wait_for(process, (tmp_path / "run").exists)
        time.sleep(2)
        others = [int(thread) for thread in os.listdir(f"/proc/{process.pid}/task") if int(thread) != process.pid]
        other = next(thread for thread in reversed(others) if takes(process.pid, thread, signal.SIGINT))
        ctypes.CDLL(None).syscall(TGKILL, process.pid, other, signal.SIGINT)
