"""The trainer in processes of its own: killed, asked to end, and several of them together over loopback."""

import shutil
import signal
import time

import numpy as np
import pytest

import processes
from trainer.checkpoints import ReadCheckpoints

pytestmark = pytest.mark.slow

SMALL = ("--width", 0.05, "--limit", 128, "--batch-size", 8, "--epochs", 12, "--resume")
LEARNED = 30  # epochs after which the network has learned
DIGITS = ("--width", 0.125, "--limit", 19 * 32 + 13, "--resume", "--keep", 99)  # 20 steps, the last one partial


# One process


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    processes.finish(processes.start(*SMALL, "--workdir", workdir))
    return processes.result(workdir)


@pytest.mark.parametrize(
    "moment",
    [
        lambda workdir: processes.rows(workdir) >= 3 and processes.unfinished(workdir),
        lambda workdir: processes.rows(workdir) >= 4 and 8 * processes.rows(workdir) > max(processes.whole(workdir)),
        lambda workdir: processes.rows(workdir) == 8,
    ],
    ids=["while a checkpoint is written", "between history and checkpoint", "anywhere"],
)
def test_a_killed_run_resumes_bit_for_bit(tmp_path, whole, moment):
    flags = (*SMALL, "--workdir", tmp_path)
    assert processes.kill_at(processes.start(*flags), lambda: moment(tmp_path)), "it was faster"
    assert processes.rows(tmp_path) <= 9
    processes.finish(processes.start(*flags))
    assert processes.differences(processes.result(tmp_path), whole) == []


def test_sigterm_writes_a_checkpoint_and_the_run_resumes(tmp_path):
    """On the default model, in the middle of an epoch."""
    flags = ("--epochs", 4, "--workdir", tmp_path, "--resume")
    process = processes.start(*flags)
    assert processes.wait_for(process, lambda: processes.rows(tmp_path) >= 2)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out = processes.finish(process, code=75)
    assert "stopped on SIGTERM after epoch 3, step" in out and "Traceback" not in out
    out = processes.finish(processes.start(*flags))
    assert "resuming after epoch 2 and" in out
    assert processes.rows(tmp_path) == 4


def test_sigterm_before_training_ends_at_once(tmp_path):
    process = processes.start("--workdir", tmp_path / "run")
    assert processes.wait_for(process, (tmp_path / "run").exists)
    process.send_signal(signal.SIGTERM)
    out = processes.finish(process, code=75)
    assert "stopped on SIGTERM before training" in out and "Traceback" not in out


# Several


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The workdir of a run that has learned, on 8 devices of one process: before that, all runs agree."""
    workdir = tmp_path_factory.mktemp("learned") / "run"
    out = processes.finish(processes.start(*DIGITS, "--epochs", LEARNED, "--workdir", workdir, devices=8))
    last = [line for line in out.splitlines() if line.strip().startswith(f"{LEARNED} ")]
    assert float(last[0].split()[2]) > 0.9, out
    return workdir


def together(workdir, epochs, count=2):
    flags = (*DIGITS, "--epochs", epochs, "--workdir", workdir, "--watch")
    return processes.start_together(count, *flags, devices=8 // count)


def finish_together(workdir, epochs):
    """The output of two processes at the end of the run.

    On a busy machine one may wait for the other longer than the 30 s that Gloo allows; then they are started again, as
    a supervisor would.
    """
    for _ in range(6):
        pair = together(workdir, epochs)
        out = processes.finish_all(pair, code=(0, 75, -signal.SIGABRT))
        if all(process.returncode == 0 for process in pair):
            return out
    raise AssertionError(f"the run never ended: {out}")


@pytest.fixture(scope="module")
def two(learned):
    """That run, resumed for three epochs by two processes of 4 devices each."""
    workdir = shutil.copytree(learned, learned.parent / "two")
    out = finish_together(workdir, LEARNED + 3)
    assert "results are in" in out[0] and "results are in" not in out[1]
    return workdir


def state(workdir, epoch):
    """The arrays after this epoch; an epoch of 20 steps has 10 chunks."""
    _, arrays, progress = ReadCheckpoints(workdir / "checkpoints").read(10 * epoch)
    assert len(progress["rows"]) == epoch
    return arrays


def watched(workdir):
    """The rows of gradients.csv."""
    return [line.split(",") for line in (workdir / "gradients.csv").read_text().splitlines()[1:]]


def test_two_processes_train_as_one_does(learned, two):
    """As eight devices train as one does: 20 steps, from a state that has learned."""
    workdir = shutil.copytree(learned, learned.parent / "one")
    processes.finish(processes.start(*DIGITS, "--epochs", LEARNED + 1, "--workdir", workdir, "--watch", devices=8))
    before, one, other = state(learned, LEARNED), state(workdir, LEARNED + 1), state(two, LEARNED + 1)
    relative = lambda a, b: np.max(np.abs(a - b)) / np.max(np.abs(a))
    kinds = {"params": 1e-4, "velocity": 1e-3}
    for kind, tolerance in kinds.items():
        names = [name for name in one if kind in name]
        assert max(relative(one[name], before[name]) for name in names) > 10 * tolerance, "nothing was learned"
        assert max(relative(one[name], other[name]) for name in names) <= tolerance
    for row, other_row in zip(watched(workdir), watched(two)[: len(watched(workdir))], strict=True):
        assert row[:2] == other_row[:2]
        np.testing.assert_allclose([*map(float, row[2:])], [*map(float, other_row[2:])], rtol=0.01)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_resumes_bit_for_bit(learned, two, tmp_path, victim):
    workdir = shutil.copytree(learned, tmp_path / "run")
    killed = False
    for _ in range(6):  # see finish_together
        pair = together(workdir, LEARNED + 3)
        killed = processes.kill_at(pair[victim], lambda: processes.rows(workdir) > LEARNED)
        # The trainer reports a broken exchange of gradients. Jax's own service may be faster, with abort().
        (out,) = processes.finish_all([pair[1 - victim]], code=(75, -signal.SIGABRT))
        if killed:
            break
    assert killed, out
    ours = "error: another process of this run has ended or cannot be reached; start all of them again"
    assert ours in out or "another task died" in out
    finish_together(workdir, LEARNED + 3)
    assert processes.differences(processes.result(workdir), processes.result(two)) == []


def test_sigterm_to_one_of_four_processes_stops_them_all_with_a_checkpoint(learned, tmp_path):
    workdir = shutil.copytree(learned, tmp_path / "run")
    for _ in range(6):  # see finish_together
        four = together(workdir, LEARNED + 20, count=4)
        if running := processes.wait_for(four[2], lambda: processes.rows(workdir) > LEARNED):
            four[2].send_signal(signal.SIGTERM)
        out = processes.finish_all(four, code=75 if running else (75, -signal.SIGABRT))
        if running:
            break
    assert all("stopped on SIGTERM after epoch" in text for text in out), out
    # One process, with another number of devices, resumes where the four stopped.
    last = processes.rows(workdir) + 1
    out = processes.finish(processes.start(*DIGITS, "--epochs", last, "--workdir", workdir, devices=2))
    assert "resuming on 2 x cpu, previously on 8 x cpu" in out and f"resuming after epoch {last - 1}" in out
    assert processes.rows(workdir) == last
