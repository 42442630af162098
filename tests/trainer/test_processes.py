"""The trainer in separate processes: killed, asked to stop, watched for long, and several together over loopback."""

import contextlib
import os
import random
import re
import statistics
import time
from signal import SIGABRT, SIGKILL, SIGTERM

import numpy as np
import psutil
import pytest

import processes
from trainer.checkpoints import ReadCheckpoints

pytestmark = pytest.mark.slow

SMALL = ("--model", "mlp", "--width", 0.05, "--limit", 128, "--batch-size", 8, "--epochs", 6, "--resume")
STEPS = ("--limit", 19 * 32 + 13, "--resume", "--keep", 99, "--watch")  # 20 an epoch, the last one partial
DENSE = (*STEPS, "--model", "mlp", "--width", 0.05)  # each process compiles it, in seconds: no cache serves several
EPOCHS = 8
TRIES = 6  # a process that waits for another longer than the 30 s that Gloo allows is started again, as by a supervisor


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    processes.finish(processes.start(*SMALL, "--workdir", workdir))
    return workdir


# How far its folder is when a run gets the signal, SIGKILL up to so many seconds later.
MOMENTS = [
    (lambda folder: (folder / "config.json").exists(), 5.0),  # data are read, programs compile, the first steps run
    (processes.rows, 0.1),
    (lambda folder: any(folder.glob("checkpoints/*tmp*")), 0.01),  # a checkpoint is being written
]


@pytest.mark.parametrize("number", range(int(os.environ.get("KILLS", 6))))
def test_a_run_that_a_signal_ends_resumes_bit_for_bit(tmp_path, whole, number):
    signal, (moment, later) = (SIGTERM, SIGKILL)[number % 2], MOMENTS[number // 2 % 3]
    flags = (*SMALL, "--workdir", tmp_path)
    process = processes.start(*flags)
    processes.wait_for(process, lambda: moment(tmp_path))
    time.sleep(random.uniform(0, later) if signal == SIGKILL else 0)
    process.send_signal(signal)
    out = processes.finish(process, codes=(75 if signal == SIGTERM else -SIGKILL, 0))  # 0: it was faster
    if process.returncode == 75:
        says = r"stopped on SIGTERM (before training; start again|after epoch \d, step \d+ of 16)"
        assert re.search(says, out) and "Traceback" not in out
    left = f"rows {processes.rows(tmp_path)}, checkpoints {processes.whole(tmp_path)}"
    processes.finish(processes.start(*flags))
    assert processes.differences(tmp_path, whole) == [], left


def test_a_long_run_takes_no_more_memory_and_files_at_its_end(tmp_path):
    """The epochs from 20 to 60, after the warm-up, beside the last 40."""
    epochs = int(os.environ.get("EPOCHS", 200))
    process = processes.start("--width", 0.01, "--epochs", epochs, "--workdir", tmp_path)
    watched, windows = psutil.Process(process.pid), {range(20, 60): [], range(epochs - 40, epochs): []}
    with contextlib.suppress(psutil.Error):  # it has just ended
        while process.poll() is None:
            row, sample = processes.rows(tmp_path), (watched.memory_info().rss, watched.num_fds())
            for window, samples in windows.items():
                samples += [sample] * (row in window)
            time.sleep(0.1)
    processes.finish(process)
    (memory, files), (memory_later, files_later) = (zip(*samples, strict=True) for samples in windows.values())
    assert statistics.median(memory_later) < 1.05 * statistics.median(memory)
    assert min(files_later) <= min(files)  # more are open while a checkpoint is written


def finish_together(workdir):
    """The output of two processes at the end of the run."""
    for _ in range(TRIES):
        pair = processes.start_together(2, *DENSE, "--epochs", EPOCHS, "--workdir", workdir, devices=4)
        out = processes.finish_all(pair, codes=(0, 75, -SIGABRT))
        if all(process.returncode == 0 for process in pair):
            return out
    raise AssertionError(f"the run never ended: {out}")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The workdir of an uninterrupted run by two processes of four devices each."""
    workdir = tmp_path_factory.mktemp("two")
    out = finish_together(workdir)
    assert "results are in" in out[0] and "results are in" not in out[1]
    return workdir


def test_two_processes_train_as_one_does(two, tmp_path):
    """As eight devices of one process do: 20 steps."""
    processes.finish(processes.start(*DENSE, "--epochs", 1, "--workdir", tmp_path, devices=8))
    # After the first epoch, which is 10 chunks of two steps.
    arrays, others = (ReadCheckpoints(folder / "checkpoints").read(10)[1] for folder in (tmp_path, two))
    tables = [processes.table(folder / "gradients.csv") for folder in (tmp_path, two)]
    for kind, tolerance in {"params": 1e-4, "velocity": 1e-3}.items():
        names = [name for name in arrays if kind in name]
        assert names
        for name in names:
            assert np.max(np.abs(arrays[name] - others[name])) <= tolerance * np.max(np.abs(arrays[name])), name
    for row, other in zip(*tables, strict=False):  # the second has more epochs
        assert row.pop("leaf") == other.pop("leaf")
        np.testing.assert_allclose([*map(float, row.values())], [*map(float, other.values())], rtol=0.01)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_resumes_bit_for_bit(two, tmp_path, victim):
    for _ in range(TRIES):
        pair = processes.start_together(2, *DENSE, "--epochs", EPOCHS, "--workdir", tmp_path, devices=4)
        processes.wait_for(pair[victim], lambda: processes.rows(tmp_path) > 1)
        pair[victim].kill()
        pair[victim].communicate()
        killed = pair[victim].returncode == -SIGKILL
        # The trainer reports a broken exchange of gradients. Jax's own service may be faster, with abort().
        (out,) = processes.finish_all([pair[1 - victim]], codes=(75, -SIGABRT))
        if killed:
            break
    assert killed, out
    assert processes.rows(tmp_path) < EPOCHS
    ours = "error: another process of this run has ended or cannot be reached; start all of them again"
    assert ours in out or "another task died" in out
    finish_together(tmp_path)
    assert processes.differences(tmp_path, two) == []


def test_sigterm_to_one_of_four_processes_stops_them_all_with_a_checkpoint(tmp_path):
    for _ in range(TRIES):
        four = processes.start_together(4, *DENSE, "--epochs", 500, "--workdir", tmp_path, devices=2)
        if running := processes.wait_for(four[2], lambda: processes.rows(tmp_path) > 1):
            four[2].send_signal(SIGTERM)
        out = processes.finish_all(four, codes=(75,) if running else (75, -SIGABRT))
        if running:
            break
    assert all("stopped on SIGTERM after epoch" in text for text in out), out
    # One process, with another number of devices, resumes where the four stopped.
    last = processes.rows(tmp_path) + 1
    out = processes.finish(processes.start(*DENSE, "--epochs", last, "--workdir", tmp_path, devices=2))
    assert "resuming on 2 x cpu, previously on 8 x cpu" in out and f"resuming after epoch {last - 1}" in out
    assert processes.rows(tmp_path) == last
