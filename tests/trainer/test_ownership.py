"""A run claims its folder for as long as its process lives; runs that start together get folders of their own."""

import concurrent.futures
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

import processes
from trainer import records
from trainer.config import Config, UserError, resolve
from trainer.ownership import Ownership, is_owned


def test_the_owner_is_named_and_nothing_is_touched(tmp_path):
    owner = Ownership(tmp_path)
    before = (tmp_path / "lock").read_bytes()
    message = (
        f"--workdir is {tmp_path}, which another run is using .host {re.escape(socket.gethostname())},"
        rf" process {os.getpid()}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d .*another folder"
    )
    for resume in (False, True):
        with pytest.raises(UserError, match=message):
            records.Workdir(resolve(Config(workdir=str(tmp_path), resume=resume)))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"] and (tmp_path / "lock").read_bytes() == before
    assert is_owned(tmp_path)
    owner.release()
    assert not is_owned(tmp_path) and list(tmp_path.iterdir()) == []
    Ownership(tmp_path).release()


def test_it_ends_with_the_process_and_asking_does_not_take_it(tmp_path):
    code = "import pathlib, sys; from trainer.ownership import Ownership; o = Ownership(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code + "; print('owned', flush=True); input()", str(tmp_path)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": processes.MAIN.parent}
    with subprocess.Popen(command, text=True, **options) as owner:
        assert owner.stdout.readline() == "owned\n"
        assert is_owned(tmp_path)
        with pytest.raises(UserError, match=f"process {owner.pid},"):
            Ownership(tmp_path)
        owner.kill()
        owner.wait(60)
    assert (tmp_path / "lock").exists() and not is_owned(tmp_path)
    Ownership(tmp_path).release()


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    Ownership(tmp_path).release()
    assert "this file system has no locks (Function not implemented)" in caplog.text
    assert not is_owned(tmp_path)


def test_a_lock_on_a_file_that_its_owner_has_just_deleted_is_taken_again(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def after_its_release(file, how):
        if not calls:
            (tmp_path / "lock").unlink()
        calls.append(how)
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", after_its_release)
    owner = Ownership(tmp_path)
    assert len(calls) == 2 and (tmp_path / "lock").exists()
    owner.release()


def test_runs_that_start_at_the_same_moment_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, barrier = resolve(Config()), threading.Barrier(4)

    def begin(_):
        barrier.wait(300)
        return records.Workdir(config)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(begin, range(4)))
    paths = [str(run.path) for run in runs]
    assert len(set(paths)) == 4 and all((tmp_path / path / "config.json").exists() for path in paths), paths
    for run in runs:
        run.close()


def test_a_run_that_fails_before_it_begins_leaves_nothing_behind(tmp_path):
    config = resolve(Config(workdir=str(tmp_path)))
    workdir = records.Workdir(config)
    assert (tmp_path / "config.json").exists()
    workdir.close()
    assert list(tmp_path.iterdir()) == []
