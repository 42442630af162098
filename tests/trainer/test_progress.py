"""Stopped and resumed runs, their event files, damaged checkpoints, full disks: in this process, compiled once."""

import dataclasses
import functools
import gc
import json
import os
import pathlib
import re
import resource
import shutil
import time
import types
import warnings

import jax
import numpy as np
import pytest

import processes
from processes import snapshot
from trainer import devices, loop, progress
from trainer.checkpoints import read_one
from trainer.config import SAME_RUN, Config, UserError

# 8 chunks of 2 steps an epoch: neither its end nor most stops are the end of an accumulation.
SMALL = {"model": "mlp", "width": 0.05, "limit": 128, "batch_size": 8, "epochs": 4, "watch": True}
RUN = Config(**SMALL, norm="group", accumulate=3, warmup_epochs=1.5, weight_decay=0.01, clip_norm=0.5)
CHUNKS, NEWEST = 8, "checkpoints/19"
FILES = ["checkpoints", "config.json", "gradients.csv", "gradients.png", "history.csv", "history.png"]
TRAINER = loop.Trainer
train = functools.partial(processes.train_here, RUN, devices=2)
pytestmark = pytest.mark.usefixtures("kept")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    rates = [row.learning_rate for row in train(workdir, keep=1)]
    assert rates == pytest.approx([0.1 * 5 / 8, 0.1, 0.1, 0.1])  # 5 updates an epoch, the first 8 are the warm-up
    assert processes.whole(workdir) == [4 * CHUNKS]
    return workdir


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
    """Resumed, the run has the same results, bit for bit."""
    history = train(workdir, resume=True, **flags)
    assert processes.differences(workdir, whole) == []
    assert (workdir / "gradients.csv").read_text() == (whole / "gradients.csv").read_text()
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


def write_a_third_epoch(run):
    """What is written before its checkpoint."""
    for name in ("history.csv", "gradients.csv"):
        text = (run / name).read_text()
        (run / name).write_text(f"{text}3{text.splitlines()[-1][1:]}\n")
    (run / ".history.csv.tmp").write_text("epo")


@pytest.mark.parametrize(
    ("leave", "rows", "says"),
    [
        (write_a_third_epoch, 2, ("resuming after epoch 2 and 3 chunks",)),
        (lambda run: truncate(run / "history.csv"), 2, ("resuming after epoch 2 and 3 chunks",)),
        (lambda run: shutil.rmtree(run / "checkpoints"), 0, ()),
        (lambda run: truncate(files(run / NEWEST / "arrays" / "d")[0]), 2, ("/19 is damaged", "epoch 2\n")),
        (lambda run: (run / NEWEST).rename(f"{run / NEWEST}.orbax-checkpoint-tmp"), 2, ("unfinished", "epoch 2\n")),
    ],
)
def test_what_a_killed_run_leaves_is_repaired_before_the_first_step(whole, halfway, caplog, leave, rows, says):
    leave(halfway)
    with pytest.raises(progress.Preempted):
        train(halfway, 0, resume=True)
    assert processes.rows(halfway) == rows and all(text in caplog.text for text in says)
    assert_ends_like(whole, halfway)


def test_a_finished_run_does_nothing_and_more_epochs_can_be_added(whole, tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=3)
    before = snapshot(tmp_path / "run" / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Trainer", None)
        for epochs in (3, 2):
            truncate(tmp_path / "run" / "history.csv")
            assert [row.epoch for row in train(tmp_path / "run", epochs=epochs, resume=True)] == [1, 2, 3]
            assert processes.rows(tmp_path / "run") == 3
    assert snapshot(tmp_path / "run" / "checkpoints") == before
    assert_ends_like(whole, tmp_path / "run")


def test_watching_may_be_turned_on_and_off_when_a_run_is_resumed_and_changes_no_bit_of_it(whole, tmp_path):
    train(tmp_path, watch=False, epochs=2)
    assert not list(tmp_path.glob("gradients.*"))
    train(tmp_path, resume=True, epochs=3)
    train(tmp_path, resume=True, watch=False)
    third = [row for row in processes.table(whole / "gradients.csv") if row["epoch"] == "3"]
    assert processes.table(tmp_path / "gradients.csv") == third
    assert json.loads((tmp_path / "config.json").read_text())["watch"] is False
    assert processes.differences(tmp_path, whole) == []


def test_another_number_of_devices_resumes_and_says_so(whole, halfway, caplog):
    train(halfway, devices=1, resume=True)
    assert "resuming on 1 x cpu, previously on 2 x cpu" in caplog.text
    (arrays, history), (expected, _) = processes.result(halfway), processes.result(whole)
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    for name, array in arrays.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-4)


def test_checkpoints_are_written_every_so_often_and_after_the_last_epoch_and_depend_on_the_seed(whole, tmp_path):
    train(tmp_path, checkpoint_every=3, keep=9, seed=1)
    assert processes.whole(tmp_path) == [3 * CHUNKS, 4 * CHUNKS]
    assert len(processes.differences(tmp_path, whole)) > 9


@pytest.mark.parametrize(
    ("recorded", "flags", "message"),
    [
        ({}, {"seed": 7, "batch_size": 4}, "another run: --batch-size was 8 and is 4; --seed was 0 and is 7. "),
        ({"norm": None}, {}, "--norm was none and is group"),  # an earlier version had no such flag
        ({"schedule": "linear", "final_learning_rate": 0.0}, {"schedule": "linear", "epochs": 5}, "--epochs was 4"),
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
                jax.tree.map(np.testing.assert_array_equal, found, arrays)
        path.write_bytes(content)
    assert len(noticed) >= 5


def test_a_digit_of_its_progress_that_changed_is_noticed(halfway):
    path = halfway / NEWEST / "progress" / "metadata"
    text, count = re.subn(r'("partial":\s*\[)3', r"\g<1>4", path.read_text())
    assert count == 1
    path.write_text(text)
    with pytest.raises(ValueError, match="the checksum of its progress is wrong"):
        read_one(halfway / "checkpoints", 19)


def test_without_room_for_the_kept_and_one_more_it_does_not_train(whole, tmp_path, monkeypatch):
    arrays, _ = processes.result(whole)
    needed, usage = 3 * sum(array.nbytes for array in arrays.values()), shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    with pytest.raises(UserError, match=r"MB are free and the checkpoints need 2 MB \(--keep is 2\)"):
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


ENDS = (2, 4, 5, 6, 7, 8, 9, 10)  # the steps of an epoch after which chunks end
LOGGED = Config(model="mlp", width=0.05, limit=150, batch_size=16, epochs=3, checkpoint_every=3, tensorboard=True)


def scalars(workdir):
    """What TensorBoard's own reader finds: tag -> its steps and its values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's own, at import
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(workdir / "tensorboard"))
        reader.Reload()
        tags = reader.Tags()["scalars"]
        found = {tag: np.transpose([(e.step, e.value) for e in reader.Scalars(tag)]) for tag in tags}
        del reader
        gc.collect()  # it leaves its files open
    return found


def test_a_resumed_run_adds_an_event_file_and_nothing_is_in_them_twice(tmp_path, monkeypatch):
    """Though the clock was set back: TensorBoard reads the files in the order of their names."""
    with pytest.raises(progress.Preempted):
        processes.train_here(LOGGED, tmp_path, chunks=len(ENDS) + 4)
    earlier = time.time() - 3600
    monkeypatch.setattr("trainer.records.time", types.SimpleNamespace(time=lambda: earlier))
    processes.train_here(LOGGED, tmp_path, resume=True)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    found = scalars(tmp_path)
    rows = processes.table(tmp_path / "history.csv")
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_second"):
        steps, values = found[f"epoch/{name}"]
        assert steps.tolist() == [10, 20, 30]
        np.testing.assert_allclose(values, [float(row[name]) for row in rows], rtol=1e-5)
    steps, losses = found["chunk/loss"]
    assert steps.tolist() == [10 * epoch + end for epoch in range(3) for end in ENDS]
    weights = np.array([32, 32, 16, 16, 16, 16, 16, 6])  # pictures of each chunk
    means = losses.reshape(3, len(ENDS)) @ weights / 150
    np.testing.assert_allclose(means, [float(row["loss"]) for row in rows], rtol=1e-5)
