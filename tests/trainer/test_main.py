"""The command itself, as users meet it: in a pipe, on a terminal, interrupted, without output, on any platform."""

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

import pytest

import processes
from processes import MAIN

TGKILL = {"x86_64": 234, "aarch64": 131}[platform.machine()]  # a system call: a signal to one thread
SMALL = "--model softmax --limit 128 --batch-size 8"
ENVIRONMENT = {"XLA_FLAGS": "", "JAX_NUMPY_DTYPE_PROMOTION": "standard", "COLUMNS": "100"}


def shell(line, cwd, **variables):
    """Runs a line of bash, in which `main`, `evaluate` and `compare` are commands."""
    scripts = {name: MAIN.with_name(f"{name}.py") for name in ("main", "evaluate", "compare")}
    functions = [f'{name}() {{ "{sys.executable}" "{script}" "$@"; }}' for name, script in scripts.items()]
    options = {"capture_output": True, "text": True, "cwd": cwd, "env": os.environ | ENVIRONMENT | variables}
    return subprocess.run(["bash", "-c", "\n".join([*functions, line])], timeout=600, **options)


def test_help_answers_before_anything_heavy_is_imported(tmp_path):
    done = shell("main --help", tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--dataset", "--first-step", "--data-dir", "--precision"))
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "tyro" in imported and not {"jax", "numpy", "flax", "tensorflow_datasets", "matplotlib"} & imported


def test_in_a_pipe_there_is_a_line_per_epoch_and_no_progress_bar(tmp_path):
    out = shell(f"main {SMALL} --epochs 2", tmp_path)
    assert out.returncode == 0, out.stderr
    assert "\r" not in out.stdout + out.stderr
    *_, header, first, second, last = out.stdout.splitlines()
    assert header.split() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "images/s"]
    assert (first.split()[0], second.split()[0]) == ("1", "2")
    assert len(first) == len(second) == len(header), "not aligned"
    (folder,) = (tmp_path / "runs").iterdir()
    assert last == f"results are in runs/{folder.name}"
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "config.json", "history.csv", "history.png"}


@contextlib.contextmanager
def on_a_terminal(*flags):
    """The process and the terminal's other end; Ctrl-C must end it, with its exit code."""
    controller, terminal = pty.openpty()
    command = [sys.executable, str(MAIN), *map(str, flags)]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=os.environ | ENVIRONMENT)
    os.close(terminal)
    try:
        yield process, controller
        assert process.wait(600) == 130
    finally:
        process.kill()


def test_a_terminal_has_a_progress_bar_and_ctrl_c_ends_the_run_with_what_was_recorded(tmp_path):
    with on_a_terminal(*SMALL.split(), "--epochs", 100_000, "--workdir", tmp_path / "run") as (process, controller):
        text = b""
        while not re.search(rb"[\r\n] +2 +\d\.\d+ ", text):
            text += os.read(controller, 4096)  # an OSError if the process has ended
        assert re.search(rb"epoch 2/100000: .*\d+/16", text)
        process.send_signal(signal.SIGINT)
    assert processes.rows(tmp_path / "run") >= 2


def test_ctrl_c_ends_a_run_that_compiles_even_if_the_system_hands_it_to_another_thread(tmp_path):
    with on_a_terminal("--epochs", 500, "--workdir", tmp_path / "run") as (process, _):
        assert processes.wait_for(process, (tmp_path / "run").exists)
        time.sleep(2)
        others = [path for path in pathlib.Path(f"/proc/{process.pid}/task").iterdir() if path.name != str(process.pid)]
        # Jemalloc's own threads block all signals, so the system gives them none.
        blocked = lambda path: int(re.search(r"SigBlk:\s*(\w+)", (path / "status").read_text())[1], 16)
        other = next(int(path.name) for path in reversed(others) if not blocked(path) >> (signal.SIGINT - 1) & 1)
        ctypes.CDLL(None).syscall(TGKILL, process.pid, other, signal.SIGINT)


def test_a_run_does_not_depend_on_its_output(tmp_path):
    done = shell(f"set -o pipefail; main {SMALL} --epochs 2 --workdir run 2>&- | head -n 1", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3
    assert len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stdout


@pytest.mark.parametrize("where", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_invalid_flags_are_exit_code_2_with_any_output(tmp_path, where):
    done = shell(f"main --epochs x {where}; test $? = 2 || exit 3; compare --workdir R --list {where}", tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr


BROKEN = "from jax._src import xla_bridge; xla_bridge.register_plugin('broken', library_path='/gone.so')"


@pytest.mark.parametrize(
    ("command", "variables", "start", "says"),
    [
        ("evaluate run", {"JAX_PLATFORMS": "tpu"}, "pass", "JAX_PLATFORMS is tpu, which "),
        ("main", {"JAX_PLATFORMS": "", "JAX_PLATFORM_NAME": "no"}, "pass", "JAX_PLATFORM_NAME is no, which "),
        ("main", {"JAX_PLATFORMS": ""}, "raise RuntimeError('no driver')", "no driver"),
        ("main", {"JAX_PLATFORMS": "broken"}, BROKEN, "/gone.so"),
    ],
)
def test_a_platform_that_is_not_available_or_does_not_start_is_one_line(tmp_path, command, variables, start, says):
    plugin = tmp_path / "plugins" / "jax_plugins" / "broken"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(f"def initialize():\n    {start}\n")
    done = shell(command, tmp_path, PYTHONPATH=str(tmp_path / "plugins"), **variables)
    (line,) = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1 and line.startswith("error: JAX_PLATFORM") and says in line
    assert "platforms: cpu;" in line and "to one of them" in line
    assert [path.name for path in tmp_path.iterdir()] == ["plugins"]


@pytest.mark.slow
def test_debugging_settings_stop_no_command(tmp_path):
    options = "--model softmax --limit 40 --epochs 1 --optimizers sgd --rates 3 --widen 0 --search-seeds 1 --seeds 1"
    line = f"main {SMALL} --epochs 2 --workdir run && evaluate run && compare --workdir c {options}"
    done = shell(line, tmp_path, JAX_DISABLE_JIT="1", JAX_TRANSFER_GUARD="disallow")
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    assert done.stdout.count("JAX_DISABLE_JIT is set and has no effect here") == 3
    assert (tmp_path / "c" / "report.md").exists() and "accuracy" in done.stdout
