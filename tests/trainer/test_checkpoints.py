"""Checkpoints in folders of any name, and one that is replaced while it is read."""

import shutil
import threading

import numpy as np
import pytest

from trainer import checkpoints
from trainer.checkpoints import Checkpoints, ReadCheckpoints
from trainer.config import UsageError, UserError


def save(folder, numbers, keep=1, size=5):
    written = Checkpoints(folder, keep)
    for number in numbers:
        written.save(number, {"a": np.full(size, number, np.float32)}, {"rows": [number], "partial": []})
    written.close()


def is_whole(found, number):
    arrays, progress = found
    return progress["rows"] == [number] and np.all(arrays["a"] == number)


@pytest.mark.parametrize("name", ["x [lr=0.1]", "a*b?[!a]", "x\\..\\[y]*", "%5B{a,b}#'\"$HOME ~\t\né中"])
def test_a_folder_may_have_any_name(tmp_path, name):
    folder = tmp_path / name / "run" / "checkpoints"
    save(folder, [3])
    again = Checkpoints(folder, keep=1)
    assert is_whole(again.restore(), 3)
    again.save(4, {"a": np.full(5, 4, np.float32)}, {"rows": [4], "partial": []})
    again.close()
    number, *found = ReadCheckpoints(folder).read(None)
    assert number == 4 and is_whole(found, 4)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in folder.iterdir()] == ["4"]


@pytest.mark.parametrize("name", ["x [lr=0.1]", "a\\b"])
def test_what_earlier_versions_left_in_such_a_folder_is_read(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    save(folder, [3])
    arrays = folder / "3" / "arrays"
    (arrays / "manifest.ocdbt").unlink()
    shutil.rmtree(arrays / "d")
    if "\\" in name:  # tensorstore took the backslash for a slash, and the checkpoint was given its name without it
        elsewhere = tmp_path / "a" / "b" / "checkpoints" / "3.orbax-checkpoint-tmp" / "arrays.orbax-checkpoint-tmp"
        elsewhere.mkdir(parents=True)
        (arrays / "ocdbt.process_0").rename(elsewhere / "ocdbt.process_0")
    assert is_whole(ReadCheckpoints(folder).read(None)[1:], 3)
    found = Checkpoints(folder, keep=1)
    assert is_whole(found.restore(), 3)
    found.close()


def test_where_such_a_folder_cannot_be_written_it_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_OPEN_FILES", "/nowhere")
    with pytest.raises(UsageError, match=r"--workdir is .*a\[b, .* the path has \[; choose another folder\.$"):
        Checkpoints(tmp_path / "a[b" / "checkpoints", keep=1)
    save(tmp_path / "plain", [3])
    assert is_whole(ReadCheckpoints(tmp_path / "plain").read(None)[1:], 3)


def test_a_temporary_folder_may_have_any_name_too(tmp_path, monkeypatch):
    save(tmp_path / "run", [3])
    (tmp_path / "job[1]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "job[1]"))
    assert is_whole(ReadCheckpoints(tmp_path / "run").read(None)[1:], 3)
    assert list((tmp_path / "job[1]").iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no temporary folder .*set TMPDIR"):
        ReadCheckpoints(tmp_path / "run").read(None)


def test_one_that_is_deleted_while_it_is_read_is_read_to_its_end(tmp_path, monkeypatch):
    save(tmp_path, [1])
    restore = checkpoints.ocp.CheckpointManager.restore

    def after_deletion(*arguments, **options):
        shutil.rmtree(tmp_path / "1", ignore_errors=True)
        return restore(*arguments, **options)

    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "restore", after_deletion)
    assert is_whole(ReadCheckpoints(tmp_path).read(None)[1:], 1)


def test_one_that_was_half_deleted_is_left_for_the_next(tmp_path, monkeypatch):
    save(tmp_path, [1, 2], keep=2)
    (tmp_path / "2" / "progress" / "metadata").unlink()
    monkeypatch.setattr(checkpoints, "_SECONDS_TO_REPLACE", 60.0)
    timer = threading.Timer(0.3, lambda: shutil.rmtree(tmp_path / "2"))
    timer.start()
    assert ReadCheckpoints(tmp_path).read(None)[0] == 1
    timer.join()


def test_a_checkpoint_that_cannot_be_written_names_the_cause(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints", keep=1)
    for cause, fix in (("No space left on device", "Free some space"), ("Permission denied", "Fix the cause")):
        message = str(kept._unwritten(OSError(cause)))
        assert cause in message and fix in message
    (tmp_path / "checkpoints").rmdir()
    assert f"the folder {tmp_path / 'checkpoints'} is gone" in str(kept._unwritten(ValueError("NOT_FOUND")))
