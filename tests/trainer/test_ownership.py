"""A run claims its folder for as long as its process lives; runs that start together get separate folders."""

import concurrent.futures
import fcntl
import re
import socket
import subprocess
import sys
import threading

import pytest

import processes
from processes import snapshot
from trainer import records
from trainer.config import Config, UserError, resolve
from trainer.ownership import Ownership, is_owned


def test_the_owner_is_named_nothing_is_touched_and_the_lock_ends_with_the_process(tmp_path):
    code = "import pathlib, sys; from trainer.ownership import Ownership; o = Ownership(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code + "; print('owned', flush=True); input()", str(tmp_path)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": processes.MAIN.parent}
    with subprocess.Popen(command, text=True, **options) as owner:
        assert owner.stdout.readline() == "owned\n" and is_owned(tmp_path)
        before = snapshot(tmp_path)
        message = rf"--workdir is {tmp_path}, which another run is using .host {re.escape(socket.gethostname())},"
        message += rf" process {owner.pid}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d .*another folder"
        for resume in (False, True):
            with pytest.raises(UserError, match=message):
                records.Workdir(resolve(Config(workdir=str(tmp_path), resume=resume)))
        assert snapshot(tmp_path) == before
        owner.kill()
        owner.wait(60)
    assert list(before) == [tmp_path / "lock"] and not is_owned(tmp_path)
    Ownership(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locks", [False, True])
def test_a_deleted_lock_is_taken_again_and_a_system_without_locks_warned_about(tmp_path, monkeypatch, caplog, locks):
    flock, calls = fcntl.flock, []

    def replaced(file, how):
        calls.append(how)
        if not locks:
            raise OSError(38, "Function not implemented")
        if len(calls) == 1:
            (tmp_path / "lock").unlink()
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", replaced)
    owner = Ownership(tmp_path)
    assert len(calls) == 1 + locks and (tmp_path / "lock").exists()
    assert ("this file system has no locks (Function not implemented)" in caplog.text) is not locks
    owner.release()
    assert not is_owned(tmp_path)


def test_runs_that_start_together_have_a_folder_each_and_one_that_fails_before_it_begins_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, barrier = resolve(Config()), threading.Barrier(4)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: (barrier.wait(300) and None) or records.Workdir(config), range(4)))
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 4 and all((folder / "config.json").exists() for folder in folders)
    for run in runs:
        run.close()
    assert not any(any(folder.iterdir()) for folder in folders)
