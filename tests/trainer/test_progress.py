"""Stopped and resumed runs, damaged checkpoints, full disks: all in this process, with one compiled trainer."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import resource
import shutil
import time

import jax
import numpy as np
import pytest

import processes
import stop_after
from stop_after import snapshot
from trainer import devices, loop, progress
from trainer.checkpoints import read_one
from trainer.config import SAME_RUN, Config, UserError

RUN = Config(model="mlp", width=0.05, limit=128, batch_size=8, epochs=4)  # 8 chunks of 2 steps per epoch
CHUNKS, NEWEST = 8, "checkpoints/19"
FILES = ["checkpoints", "config.json", "history.csv", "history.png"]
TRAINER = loop.Trainer
train = functools.partial(stop_after.train, RUN, devices=2)
pytestmark = pytest.mark.usefixtures("kept")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    train(workdir, keep=1)
    assert processes.whole(workdir) == [4 * CHUNKS]
    arrays, history = processes.result(workdir)
    assert sum("velocity" in name for name in arrays) == sum("params" in name for name in arrays) == 6
    assert len(history) == 4
    return arrays, history


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The workdir of a run that was stopped in its third epoch; checkpoints: after two epochs, and 3 chunks later."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(progress.Preempted):
        train(workdir, chunks=2 * CHUNKS + 3)
    return workdir


@pytest.fixture
def halfway(stopped, tmp_path):
    """A copy of it."""
    return pathlib.Path(shutil.copytree(stopped, tmp_path / "run"))


def assert_ends_like(whole, workdir, **flags):
    """Resumed, the run has the same result, bit for bit."""
    history = train(workdir, resume=True, **flags)
    assert processes.differences(processes.result(workdir), whole) == []
    assert [row.epoch for row in history] == [1, 2, 3, 4]
    assert sorted(path.name for path in workdir.iterdir()) == FILES


@pytest.mark.parametrize(
    ("stops", "checkpoint_every"), [([0, CHUNKS, 3 * CHUNKS - 1], 1), ([1, CHUNKS + 4, 4, CHUNKS], 3)]
)
def test_a_stopped_run_resumes_bit_for_bit(whole, tmp_path, stops, checkpoint_every):
    for chunks in stops:
        with pytest.raises(progress.Preempted, match=r"stopped on SIGTERM after epoch \d, step \d+ of 16; .*--resume"):
            train(tmp_path / "run", chunks, resume=True, checkpoint_every=checkpoint_every)
    assert_ends_like(whole, tmp_path / "run", checkpoint_every=checkpoint_every)


def files(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def edit_history(workdir, change):
    (workdir / "history.csv").write_text(change((workdir / "history.csv").read_text()))
    (workdir / ".history.csv.tmp").write_text("epo")


@pytest.mark.parametrize(
    ("leave", "rows", "says"),
    [
        (lambda run: edit_history(run, lambda text: text + text.splitlines()[-1] + "\n"), 2, ("2 and 3 chunks",)),
        (lambda run: edit_history(run, lambda text: text[:-10]), 2, ("resuming after epoch 2 and 3 chunks",)),
        (lambda run: shutil.rmtree(run / "checkpoints"), 0, ()),
        (lambda run: truncate(files(run / NEWEST / "arrays" / "d")[0]), 2, ("/19 is damaged", "epoch 2\n")),
        (
            lambda run: (run / NEWEST).rename(f"{run / NEWEST}.orbax-checkpoint-tmp"),
            2,
            ("unfinished", "epoch 2\n"),
        ),
    ],
)
def test_what_a_killed_run_leaves_is_repaired_before_the_first_step(whole, halfway, caplog, leave, rows, says):
    leave(halfway)
    with pytest.raises(progress.Preempted):
        train(halfway, 0, resume=True)
    assert processes.rows(halfway) == rows and all(text in caplog.text for text in says)
    assert_ends_like(whole, halfway)


def test_a_finished_run_does_nothing_and_more_epochs_can_be_added(whole, tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=2)
    before = processes.result(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Trainer", None)
        for epochs in (2, 1):
            assert [row.epoch for row in train(tmp_path / "run", epochs=epochs, resume=True)] == [1, 2]
    assert processes.differences(processes.result(tmp_path / "run"), before) == []
    assert_ends_like(whole, tmp_path / "run")


def test_another_number_of_devices_resumes_and_says_so(whole, halfway, caplog):
    train(halfway, devices=1, resume=True)
    assert "resuming on 1 x cpu, previously on 2 x cpu" in caplog.text
    arrays, history = processes.result(halfway)
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    for name, array in arrays.items():
        np.testing.assert_allclose(array, whole[0][name], atol=1e-4)


def test_checkpoints_are_written_every_so_often_and_after_the_last_epoch_and_depend_on_the_seed(whole, tmp_path):
    train(tmp_path, checkpoint_every=3, keep=9, seed=1)
    assert processes.whole(tmp_path) == [3 * CHUNKS, 4 * CHUNKS]
    assert len(processes.differences(processes.result(tmp_path), whole)) > 9


@pytest.mark.parametrize(
    ("recorded", "flags", "message"),
    [
        ({}, {"seed": 7, "batch_size": 4}, "another run: --batch-size was 8 and is 4; --seed was 0 and is 7. "),
        ({"norm": None}, {"norm": "group"}, "--norm was none and is group"),  # an earlier version had no such flag
        ({"train_examples": 60}, {}, "a run on other data: train_examples was 60 and is 128"),
    ],
)
def test_another_run_is_refused(halfway, recorded, flags, message):
    config = json.loads((halfway / "config.json").read_text()) | recorded
    text = json.dumps({name: value for name, value in config.items() if name != "norm" or value})
    (halfway / "config.json").write_text(text)
    before = snapshot(halfway)
    with pytest.raises(UserError, match=message):
        train(halfway, resume=True, **flags)
    assert snapshot(halfway) == before


def test_rows_from_before_there_were_schedules_have_the_one_learning_rate(halfway, monkeypatch):
    older = lambda value, arrays: ((value[0], value[1] | {"rows": [row[:8] for row in value[1]["rows"]]}), arrays)
    monkeypatch.setattr(devices, "from_primary", older)
    assert [row.learning_rate for row in train(halfway, resume=True)] == pytest.approx([0.1] * 4)


def test_every_flag_is_either_compared_or_free():
    free = {"epochs", "data_dir", "workdir", "resume", "checkpoint_every", "keep"}
    free |= {"coordinator", "num_processes", "process_id", "profile", "tensorboard", "watch", "compilation_cache"}
    assert free | set(SAME_RUN) >= {field.name for field in dataclasses.fields(Config)}


def test_another_versions_state_is_refused(halfway, monkeypatch):
    monkeypatch.setattr(jax.tree_util, "keystr", lambda path: f"other{path}")
    with pytest.raises(UserError, match="holds other arrays than this version"):
        train(halfway, resume=True)


def test_damage_to_any_file_of_a_checkpoint_is_noticed_or_does_no_harm(halfway):
    """What is not noticed is not read: copies of metadata, for other readers."""
    arrays, noticed = read_one(halfway / "checkpoints", 19)[0], set()
    for path in files(halfway / NEWEST):
        content = path.read_bytes()
        for part in [None, *np.linspace(0.01, 0.99, 15 if "arrays/d/" in str(path) else 3)] if content else ():
            damaged = bytearray(content)
            if part is None:
                path.unlink()
            else:
                damaged[int(part * (len(content) - 1))] ^= 16
                path.write_bytes(damaged)
            try:
                found, _ = read_one(halfway / "checkpoints", 19)
            except Exception:  # from anywhere in Orbax, tensorstore or zlib
                noticed.add(path)
            else:
                assert processes.differences((found, []), (arrays, [])) == [], path
        path.write_bytes(content)
    assert len(noticed) >= 5


def test_a_digit_of_its_progress_that_changed_is_noticed(halfway):
    path = halfway / NEWEST / "progress" / "metadata"
    text, count = re.subn(r'("partial":\s*\[)3', r"\g<1>4", path.read_text())
    assert count == 1
    path.write_text(text)
    with pytest.raises(ValueError, match="the checksum of its progress is wrong"):
        read_one(halfway / "checkpoints", 19)


def test_if_none_can_be_read_it_says_so_and_deletes_nothing(halfway):
    for path in files(halfway / "checkpoints"):
        truncate(path)
    before = snapshot(halfway)
    with pytest.raises(UserError, match=f"none of the checkpoints in {halfway}/checkpoints can be read; nothing was"):
        train(halfway, resume=True)
    assert snapshot(halfway) == before


def test_without_room_for_the_kept_and_one_more_it_does_not_train(whole, tmp_path, monkeypatch):
    needed, usage = 3 * sum(array.nbytes for array in whole[0].values()), shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    with pytest.raises(UserError, match=r"MB are free and the checkpoints need 1 MB \(--keep is 2\)"):
        train(tmp_path / "run", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed))
    with pytest.raises(progress.Preempted):
        train(tmp_path / "run", 0)


@pytest.mark.parametrize("size", [20_000, 300])
def test_a_disk_that_is_full_ends_the_run_and_the_last_checkpoint_is_whole(whole, halfway, size):
    """A limit on the size of files stands for it: at first no array can be written, then not even history.csv."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(UserError, match=f"--workdir is {halfway}, where .* could not be written .*--resume") as e:
            train(halfway, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(e.value)
    before, now = None, []
    while now != before:  # the file system's writers may outlive the error; a new process would not meet them
        time.sleep(0.5)
        before, now = now, sorted((halfway / "checkpoints").rglob("*"))
    assert_ends_like(whole, halfway)


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(halfway, monkeypatch):
    """In the last step of an epoch: the loss, from before the step, is still finite."""
    spoilt = lambda x: np.full_like(x, np.nan) if np.issubdtype(x.dtype, np.floating) else np.array(x)
    advance = TRAINER.advance

    def poisoned(self, epoch, chunks):
        yield from advance(self, epoch, chunks)
        if epoch == 4:
            self.state = self.replicas.replicate(jax.tree.map(spoilt, self.state))

    monkeypatch.setattr(TRAINER, "advance", poisoned)
    with pytest.raises(progress.Diverged, match="not finite after epoch 4, step 16 of 16; try a smaller --learning"):
        train(halfway, resume=True)
    assert processes.whole(halfway) == [2 * CHUNKS + 3, 3 * CHUNKS]
