"""Stopped and resumed runs, damaged checkpoints, full disks: all in this process, with one compiled trainer."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import resource
import shutil

import jax
import numpy as np
import pytest

import processes
import stop_after
from kept_trainers import kept_trainers
from stop_after import snapshot
from trainer import loop, progress
from trainer.checkpoints import Checkpoints, read_one
from trainer.config import SAME_RUN, Config, UserError

RUN = Config(model="mlp", width=0.05, limit=128, batch_size=8, epochs=4)  # 8 chunks of 2 steps per epoch
CHUNKS = 8
TRAINER = loop.Trainer
train = functools.partial(stop_after.train, RUN, devices=2)


@pytest.fixture(scope="module", autouse=True)
def kept():
    with kept_trainers():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    train(workdir)
    return processes.result(workdir)


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


@pytest.fixture
def said(caplog):
    """Everything that was logged, as one text."""
    caplog.set_level(logging.INFO, "train")
    return lambda: caplog.text


# Resuming


@pytest.mark.parametrize(
    ("stops", "checkpoint_every"), [([0, CHUNKS, 3 * CHUNKS - 1], 1), ([1, CHUNKS + 4, 4, CHUNKS], 3)]
)
def test_a_stopped_run_resumes_bit_for_bit(whole, tmp_path, stops, checkpoint_every):
    flags = {"resume": True, "checkpoint_every": checkpoint_every}
    for chunks in stops:
        with pytest.raises(progress.Preempted, match=r"stopped on SIGTERM after epoch \d, step \d+ of 16; .*--resume"):
            train(tmp_path / "run", chunks, **flags)
    history = train(tmp_path / "run", **flags)
    assert processes.differences(processes.result(tmp_path / "run"), whole) == []
    assert [row.epoch for row in history] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "history.png").exists()


def test_what_is_compared_is_the_state_and_it_moves(whole, tmp_path):
    arrays, history = whole
    assert sum("velocity" in name for name in arrays) == sum("params" in name for name in arrays) == 6
    assert len(history) == 4
    train(tmp_path / "other", seed=1)
    assert len(processes.differences(processes.result(tmp_path / "other"), whole)) > 9


def test_a_run_that_was_killed_is_repaired(whole, halfway, tmp_path):
    """The history may be ahead of the checkpoints, behind them, or half a line."""
    text = (halfway / "history.csv").read_text()
    for number, history in enumerate([text + text.splitlines()[-1] + "\n", text[:-10]]):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(halfway, copy)
        (copy / "history.csv").write_text(history)
        (copy / ".history.csv.tmp").write_text("epo")
        train(copy, resume=True)
        assert processes.differences(processes.result(copy), whole) == []


@pytest.mark.parametrize("left", [[], ["config.json", "history.csv"]])
def test_without_a_checkpoint_it_starts(whole, halfway, left):
    for path in halfway.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(halfway, resume=True)
    assert processes.differences(processes.result(halfway), whole) == []


def test_a_finished_run_does_nothing_and_more_epochs_can_be_added(whole, tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=2)
    before = processes.result(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Trainer", None)
        history = train(tmp_path / "run", epochs=2, resume=True)
        assert [row.epoch for row in history] == [1, 2]
        assert len(train(tmp_path / "run", epochs=1, resume=True)) == 2
    assert processes.differences(processes.result(tmp_path / "run"), before) == []
    train(tmp_path / "run", resume=True)
    assert processes.differences(processes.result(tmp_path / "run"), whole) == []


def test_another_number_of_devices_resumes_and_says_so(whole, halfway, said):
    train(halfway, devices=1, resume=True)
    assert "resuming on 1 x cpu, previously on 2 x cpu" in said()
    arrays, history = processes.result(halfway)
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    for name, array in arrays.items():
        np.testing.assert_allclose(array, whole[0][name], atol=1e-4)


@pytest.mark.parametrize(("every", "keep", "left"), [(1, 1, [4]), (3, 9, [3, 4])])
def test_checkpoints_are_written_every_so_often_and_the_newest_kept(tmp_path, every, keep, left):
    train(tmp_path / "run", checkpoint_every=every, keep=keep)
    assert processes.whole(tmp_path / "run") == [CHUNKS * epoch for epoch in left]


# What is refused


def test_another_run_is_refused_with_each_field(halfway):
    flags = {"seed": 7, "batch_size": 4, "optimizer": "adam"}
    before = snapshot(halfway)
    with pytest.raises(UserError) as caught:
        train(halfway, resume=True, **flags)
    for text in ("--optimizer was gravity and is adam", "--seed was 0 and is 7", "--batch-size was 8 and is 4"):
        assert text in str(caught.value)
    assert "--width" not in str(caught.value)
    assert snapshot(halfway) == before


def test_a_flag_that_the_recorded_version_did_not_have_had_its_default(halfway):
    config = json.loads((halfway / "config.json").read_text())
    (halfway / "config.json").write_text(json.dumps({name: x for name, x in config.items() if name != "norm"}))
    with pytest.raises(UserError, match="--norm was none and is group"):
        train(halfway, resume=True, norm="group")
    assert len(train(halfway, resume=True)) == RUN.epochs


def test_every_flag_is_either_compared_or_free():
    free = {"epochs", "data_dir", "workdir", "resume", "checkpoint_every", "keep"}
    free |= {"coordinator", "num_processes", "process_id", "profile", "tensorboard", "watch", "compilation_cache"}
    assert free | set(SAME_RUN) >= {field.name for field in dataclasses.fields(Config)}


def test_other_data_are_refused(halfway):
    config = json.loads((halfway / "config.json").read_text())
    (halfway / "config.json").write_text(json.dumps(config | {"train_examples": 60}))
    with pytest.raises(UserError, match="a run on other data: train_examples was 60 and is 128"):
        train(halfway, resume=True)


def test_another_versions_state_is_refused(halfway, monkeypatch):
    monkeypatch.setattr(jax.tree_util, "keystr", lambda path: f"other{path}")
    with pytest.raises(UserError, match="holds other arrays than this version"):
        train(halfway, resume=True)


# Damage


def files(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path, part=0.5):
    content = bytearray(path.read_bytes())
    content[int(part * (len(content) - 1))] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, pathlib.Path.unlink])
def test_damage_to_any_file_of_the_newest_checkpoint_is_noticed_or_does_no_harm(stopped, tmp_path, caplog, damage):
    """What is not noticed is not read: copies of metadata, for other readers."""
    newest = processes.result(stopped)[0]
    before = read_one(stopped / "checkpoints", 2 * CHUNKS)[0]
    noticed = 0
    for number, path in enumerate(files(stopped / "checkpoints" / "19")):
        if path.stat().st_size:
            copy = shutil.copytree(stopped / "checkpoints", tmp_path / str(number))
            damage(copy / path.relative_to(stopped / "checkpoints"))
            caplog.clear()
            checkpoints = Checkpoints(copy, keep=2)
            arrays, _ = checkpoints.restore()
            checkpoints.close()
            fell_back = f"the checkpoint {copy}/19 is damaged" in caplog.text
            noticed += fell_back
            assert same(arrays, before if fell_back else newest), path
            assert (copy / "19").exists() != fell_back
    assert noticed >= 3


def same(arrays, others):
    return processes.differences((arrays, []), (others, [])) == []


@pytest.mark.parametrize(("name", "why"), [("19", "is damaged"), ("19.orbax-checkpoint-tmp", "is unfinished")])
def test_a_damaged_or_unfinished_checkpoint_is_left_out(whole, halfway, said, name, why):
    newest = (halfway / "checkpoints" / "19").rename(halfway / "checkpoints" / name)
    truncate(max(files(newest), key=lambda path: path.stat().st_size))
    train(halfway, resume=True)
    assert f"{newest} {why}" in said() and "resuming after epoch 2\n" in said()
    assert processes.differences(processes.result(halfway), whole) == []


def test_a_flipped_bit_anywhere_in_the_arrays_is_noticed(halfway, tmp_path):
    for path in files(halfway / "checkpoints" / "19" / "arrays" / "d"):
        content = path.read_bytes()
        for part in np.linspace(0.01, 0.99, 40):
            flip(path, part)
            try:
                read_one(halfway / "checkpoints", 19)
            except Exception:
                pass
            else:
                raise AssertionError(f"{path} with another byte at {part:.2f} of it was taken")
            path.write_bytes(content)
    read_one(halfway / "checkpoints", 19)


def test_if_none_can_be_read_it_says_so_and_deletes_nothing(halfway):
    for number in processes.whole(halfway):
        for path in files(halfway / "checkpoints" / str(number)):
            truncate(path)
    before = snapshot(halfway)
    with pytest.raises(UserError, match=f"none of the checkpoints in {halfway}/checkpoints can be read; nothing was"):
        train(halfway, resume=True)
    assert snapshot(halfway) == before


# A disk that is full, a loss that is not finite


def test_too_little_room_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))
    with pytest.raises(UserError, match=r"0 MB are free and the checkpoints need 1 MB \(--keep is 2\)"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "history.csv").exists()


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
    train(halfway, resume=True)
    assert processes.differences(processes.result(halfway), whole) == []


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(halfway, monkeypatch):
    """In the last step of an epoch: the loss, from before the step, is still finite."""
    spoilt = lambda x: np.full_like(x, np.nan) if np.issubdtype(x.dtype, np.floating) else np.array(x)
    advance = TRAINER.advance

    def poisoned(self, epoch, chunks):
        yield from advance(self, epoch, chunks)
        if epoch == 4:
            self.state = self.replicas.replicate(jax.tree.map(spoilt, self.state))

    monkeypatch.setattr(TRAINER, "advance", poisoned)
    with pytest.raises(
        progress.Diverged, match="is not finite after epoch 4, step 16 of 16; try a smaller --learning-rate"
    ):
        train(halfway, resume=True)
    assert processes.whole(halfway) == [2 * CHUNKS + 3, 3 * CHUNKS]
