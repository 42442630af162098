"""The command itself, as users meet it: in a pipe, on a terminal, interrupted."""

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

TGKILL = {"x86_64": 234, "aarch64": 131}[platform.machine()]  # a system call: a signal to one thread
MAIN = pathlib.Path(__file__).parents[2] / "train" / "main.py"
SMALL = ["--model", "softmax", "--limit", "128", "--batch-size", "8"]
ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_DTYPE_PROMOTION": "standard"}


def run(*flags, cwd=None, **options):
    command = [sys.executable, str(MAIN), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=600, **options)


def test_help_answers_before_anything_heavy_is_imported():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['main.py', '--help']\n"
        f"try: runpy.run_path({str(MAIN)!r}, run_name='__main__')\n"
        "except SystemExit as e: assert e.code in (0, None), e.code\n"
        "assert not {'jax', 'numpy', 'flax', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules)\n"
    )
    path = os.pathsep.join([str(MAIN.parent), os.environ.get("PYTHONPATH", "")])
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert out.returncode == 0, out.stderr
    for flag in ("--dataset", "--first-step", "--data-dir", "--precision"):
        assert flag in out.stdout


def test_in_a_pipe_there_is_a_line_per_epoch_and_no_progress_bar(tmp_path):
    out = run(*SMALL, "--epochs", 2, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert "\r" not in out.stdout + out.stderr
    lines = out.stdout.splitlines()
    header, *epochs = lines[-4:-1]
    assert header.split() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "images/s"]
    assert [line.split()[0] for line in epochs] == ["1", "2"]
    assert {len(line) for line in epochs} == {len(header)}, "not aligned"
    (folder,) = (tmp_path / "runs").iterdir()
    assert lines[-1] == f"results are in runs/{folder.name}"
    names = ["checkpoints", "config.json", "history.csv", "history.png"]
    assert sorted(path.name for path in folder.iterdir()) == names


def start_on_a_terminal(*flags):
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(MAIN), *map(str, flags)],
        stdout=terminal,
        stderr=terminal,
        env={**ENVIRONMENT, "COLUMNS": "100"},
    )
    os.close(terminal)
    return process, controller


def read_until(controller, pattern, seconds=600):
    text = b""
    end = time.monotonic() + seconds
    while not re.search(pattern, text):
        assert time.monotonic() < end, text
        try:
            text += os.read(controller, 4096)
        except OSError:  # the other end is closed
            break
    assert re.search(pattern, text), text
    return text


def test_a_terminal_has_a_progress_bar_and_ctrl_c_ends_the_run_with_what_was_recorded(tmp_path):
    process, controller = start_on_a_terminal(*SMALL, "--epochs", 100_000, "--workdir", tmp_path / "run")
    try:
        text = read_until(controller, rb"[\r\n] +2 +\d\.\d+ ")
        assert re.search(rb"epoch 2/100000: .*\d+/16", text)
        process.send_signal(signal.SIGINT)
        assert process.wait(600) == 130
    finally:
        process.kill()
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) >= 3


def takes(pid, thread, number):
    """Whether a thread does not block a signal, as jemalloc's own threads do: the system gives them none."""
    status = pathlib.Path(f"/proc/{pid}/task/{thread}/status").read_text()
    (blocked,) = re.findall(r"^SigBlk:\s*(\w+)$", status, re.MULTILINE)
    return not int(blocked, 16) >> (number - 1) & 1


def test_ctrl_c_ends_a_run_that_compiles_even_if_the_system_hands_it_to_another_thread(tmp_path):
    process, _ = start_on_a_terminal("--epochs", 500, "--workdir", tmp_path / "run")
    try:
        assert processes.wait_for(process, (tmp_path / "run").exists)
        time.sleep(2)
        others = [int(thread) for thread in os.listdir(f"/proc/{process.pid}/task") if int(thread) != process.pid]
        other = next(thread for thread in reversed(others) if takes(process.pid, thread, signal.SIGINT))
        ctypes.CDLL(None).syscall(TGKILL, process.pid, other, signal.SIGINT)
        assert process.wait(600) == 130
    finally:
        process.kill()
