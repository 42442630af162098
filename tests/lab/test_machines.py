"""Two machines with one PostgreSQL database: what one leaves undone when it is killed, the other does."""

import csv
import glob
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

import compare
from lab.store import Store

TRAIN = pathlib.Path(compare.__file__).parent
# compare.py on a machine of that name; a run's result comes from its name alone. The machine "lost" hangs in its third.
PROGRAM = """
import hashlib, sys, time
from lab import laboratory, runs, store
store._HEARTBEAT, store._GRACE = 1, 4
machine, made = sys.argv.pop(1), []
store._worker = lambda: [machine, "1"]

class Laboratory:
    def __init__(self, comparison):
        self.comparison = comparison

    def run(self, trial, stop, progress):
        time.sleep(0.2)
        made.append(trial)
        if machine == "lost" and len(made) == 3:
            print("hangs", flush=True)
            time.sleep(600)
        print("made", runs.name(trial), flush=True)
        value = int(hashlib.sha256(runs.name(trial).encode()).hexdigest()[:4], 16) / 2**16
        test = value if trial.part == "final" else None
        return runs.Outcome(10, 900, 100, 200, (2.0,) * trial.epochs, (value,) * trial.epochs, test, 1.0)

laboratory.Laboratory = Laboratory
import compare
sys.exit(compare.main())
"""
FLAGS = ["--optimizers", "gravity", "adam", "--rates", "3", "--widen", "1", "--search-seeds", "1", "--seeds", "2"]


@pytest.fixture(scope="module")
def database():
    """The URL of a fresh PostgreSQL server's database, on loopback."""
    found = [*sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")), *filter(None, [shutil.which("initdb")])]
    assert found, "this test needs PostgreSQL: apt-get install postgresql"
    programs = pathlib.Path(found[0]).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Not in pytest's folder, which is root's alone: the server does not run as root.
    with tempfile.TemporaryDirectory() as folder:
        user = []
        if os.getuid() == 0:
            user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres")
        make = [*user, programs / "initdb", "-D", f"{folder}/data", "-U", "lab", "-A", "trust"]
        subprocess.run(make, check=True, capture_output=True)
        options = ["-D", f"{folder}/data", "-p", port, "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"]
        server = subprocess.Popen([*user, programs / "postgres", *options], stderr=subprocess.DEVNULL)
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", port]
        while subprocess.run(ready, capture_output=True).returncode:
            assert server.poll() is None
            time.sleep(0.5)
        yield f"postgresql+psycopg://lab@127.0.0.1:{port}/postgres"
        server.send_signal(signal.SIGINT)  # without waiting for its clients
        server.wait(60)


def start(machine, folder, *flags):
    command = [sys.executable, "-c", PROGRAM, machine, "--workdir", str(folder), *FLAGS, *flags]
    path = os.pathsep.join(filter(None, [str(TRAIN), *sys.path]))
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def rows(folder):
    with open(folder / "runs.csv", newline="") as file:
        return sorted(tuple(row.items()) for row in csv.DictReader(file))


@pytest.mark.postgresql
def test_every_run_is_made_once_though_a_machine_is_lost_and_the_table_is_that_of_one_worker(tmp_path, database):
    alone = start("alone", tmp_path / "alone")
    expected, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, expected
    lost = start("lost", tmp_path / "lost", "--storage", database)
    before = "".join(iter(lost.stdout.readline, "hangs\n"))
    other = start("other", tmp_path / "other", "--storage", database)
    time.sleep(2)
    lost.kill()
    lost.communicate()
    said, _ = other.communicate(timeout=300)
    assert other.returncode == 0, said
    count = len(rows(tmp_path / "alone"))
    assert len(Store(database, "compare").outcomes()) == count >= 2 * 3 + 2 * 2
    made = [line for line in (before + said).splitlines() if line.startswith("made ")]
    assert len(made) == len(set(made)) == count
    assert rows(tmp_path / "other") == rows(tmp_path / "alone")
    tables = [(tmp_path / name / "report" / "standings.csv").read_text() for name in ("alone", "other")]
    assert tables[0] == tables[1]
