"""Checkpoints in folders of any name, and one that is replaced while it is read."""

import shutil
import threading

import numpy as np
import pytest

from trainer import checkpoints
from trainer.checkpoints import Checkpoints, ReadCheckpoints
from trainer.config import UsageError, UserError


def save(folder, *numbers):
    written = Checkpoints(folder, keep=2)
    for number in numbers:
        written.save(number, {"a": np.full(5, number, np.float32)}, {"rows": [number], "partial": []})
    written.close()


def read(folder):
    """The number of the newest checkpoint, which must be whole."""
    number, arrays, progress = ReadCheckpoints(folder).read(None)
    assert progress["rows"] == [number] and np.all(arrays["a"] == number)
    return number


def restored(folder):
    """The same, as a run that is resumed reads it."""
    found = Checkpoints(folder, keep=2)
    arrays, progress = found.restore()
    found.close()
    assert np.all(arrays["a"] == progress["rows"][0])
    return progress["rows"][0]


@pytest.mark.parametrize(
    "name", ["x [lr=0.1]/run/checkpoints", "a*b?[!a]", "x\\..\\[y]*", "%5B{a,b}#'\"$HOME ~\t\né中/run"]
)
def test_a_folder_may_have_any_name(tmp_path, name):
    folder = tmp_path / name
    save(folder, 3)
    assert restored(folder) == 3
    save(folder, 4)
    assert read(folder) == 4
    assert [path.name for path in tmp_path.iterdir()] == [name.split("/")[0]]
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4"]


def test_where_such_a_folder_cannot_be_written_it_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_OPEN_FILES", "/nowhere")
    with pytest.raises(UsageError, match=r"--workdir is .*a\[b, .* the path has \[; choose another folder\.$"):
        Checkpoints(tmp_path / "a[b" / "checkpoints", keep=1)
    save(tmp_path / "plain", 3)
    assert read(tmp_path / "plain") == 3


def test_a_temporary_folder_may_have_any_name_too(tmp_path, monkeypatch):
    save(tmp_path / "run", 3)
    (tmp_path / "job[1]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "job[1]"))
    assert read(tmp_path / "run") == 3 and list((tmp_path / "job[1]").iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no temporary folder .*set TMPDIR"):
        read(tmp_path / "run")


def test_one_that_is_deleted_while_it_is_read_is_read_to_its_end(tmp_path, monkeypatch):
    save(tmp_path, 1)
    restore = checkpoints.ocp.CheckpointManager.restore
    deleting = lambda *arguments, **options: shutil.rmtree(tmp_path / "1") or restore(*arguments, **options)
    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "restore", deleting)
    assert read(tmp_path) == 1


def test_one_that_was_half_deleted_is_left_for_the_next(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    (tmp_path / "2" / "progress" / "metadata").unlink()
    monkeypatch.setattr(checkpoints, "_SECONDS_TO_REPLACE", 60.0)
    timer = threading.Timer(0.3, lambda: shutil.rmtree(tmp_path / "2"))
    timer.start()
    assert read(tmp_path) == 1
    timer.join()
