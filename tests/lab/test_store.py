"""The store: whatever workers do at the same time or leave behind, each run is made once."""

import concurrent.futures
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import pytest

import processes
from lab import store
from lab.store import Store

# compare.py on a machine of that name; a run's result comes from its name alone. The machine "lost" hangs in its third.
PROGRAM = """
import random, sys, time
import fake_outcomes
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
        value = round(random.Random(runs.name(trial)).random(), 4)
        return fake_outcomes.outcome(*[value] * trial.epochs, test=value if trial.part == "final" else None)

laboratory.Laboratory = Laboratory
import compare
sys.exit(compare.main())
"""
FLAGS = ["--optimizers", "gravity", "adam", "--rates", "3", "--widen", "1", "--search-seeds", "1", "--seeds", "2"]


def start(program, *flags):
    return processes.start(*flags, program=("-c", f"import sys; sys.path = {sys.path}\n{program}"))


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/runs.db"


def test_of_workers_that_claim_at_the_same_time_one_has_the_run_until_it_is_released_and_once_it_is_made(url):
    stores, barrier = [Store(url, "test") for _ in range(4)], threading.Barrier(4)

    def claim(one, name):
        barrier.wait(60)
        return one.claim(name)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for name in "abc":
            (won,) = filter(None, pool.map(claim, stores, [name] * 4))
            assert name in stores[0].running()
            with won:
                pass
            assert name not in stores[0].running() and not stores[0].failures()
            again = stores[1].claim(name)
            again.report(1, 0.25)
            assert again.finish(0.5, {"by": name}) and stores[2].claim(name) is None
    assert stores[3].outcomes() == {name: {"by": name} for name in "abc"}


def test_a_run_of_a_process_that_is_gone_is_free_at_once(url):
    gone = start(f"from lab.store import Store; import os; assert Store({url!r}, 'test').claim('a'); os._exit(1)")
    gone.communicate()
    assert Store(url, "test").claim("a")


def test_a_worker_without_a_sign_of_life_loses_its_run_and_one_that_lives_keeps_it(url, monkeypatch):
    monkeypatch.setattr(store, "_GRACE", 5)
    monkeypatch.setattr(store, "_HEARTBEAT", 1)
    one, other = Store(url, "test"), Store(url, "test")
    lost, kept = one.claim("a"), one.claim("b")
    lost._ended.set()  # its machine hangs
    assert other.claim("a") is None
    time.sleep(7)
    assert other.claim("a").finish(0.5, {"by": "other"})
    assert not lost.finish(0.25, {"by": "lost"})
    assert other.outcomes() == {"a": {"by": "other"}}
    assert other.claim("b") is None and kept.finish(0.5, {})


@pytest.fixture(params=["postgres", "mysql"])
def database(request):
    """The URL of an empty database of PostgreSQL or MariaDB, on a fresh server that listens in a folder alone."""
    # Not in pytest's folder, which is root's alone: the servers do not run as root.
    with tempfile.TemporaryDirectory() as folder:
        user = []
        if os.getuid() == 0:
            user = ["setpriv", f"--reuid={request.param}", f"--regid={request.param}", "--clear-groups"]
            shutil.chown(folder, request.param)
        run = lambda *words: subprocess.run([*user, *words], check=True, stdout=subprocess.DEVNULL)
        if request.param == "postgres":
            found = [*filter(None, [shutil.which("pg_ctl")]), *sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"))]
            assert found, "this test needs PostgreSQL: apt-get install postgresql"
            control = [found[-1], "-s", "-w", "-D", f"{folder}/data"]
            run(*control, "init", "-o", "-U lab -A trust")
            run(*control, "start", "-l", f"{folder}/log", "-o", f"-h '' -k {folder} -c fsync=off")
            yield f"postgresql+psycopg://lab@/postgres?host={folder}"
            run(*control, "stop", "-m", "fast")  # without waiting for its clients
        else:
            assert shutil.which("mariadbd"), "this test needs MariaDB: apt-get install mariadb-server"
            where, socket = f"--datadir={folder}/data", f"--socket={folder}/socket"
            run("mariadb-install-db", "--no-defaults", where, "--auth-root-authentication-method=normal")
            command = [*user, "mariadbd", "--no-defaults", where, socket, "--skip-networking"]
            server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            admin = ["mariadb-admin", "--no-defaults", socket, "--user=root", "--wait=60"]
            run(*admin, "create", "lab")
            yield f"mysql+pymysql://root@localhost/lab?unix_socket={folder}/socket"
            run(*admin, "shutdown")
            server.wait(60)


@pytest.mark.database
def test_every_run_is_made_once_though_a_machine_is_lost_and_they_are_those_of_one_worker(tmp_path, database):
    compare = lambda machine, *flags: start(PROGRAM, machine, "--workdir", tmp_path / machine, *FLAGS, *flags)
    alone = compare("alone")
    expected, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, expected
    lost = compare("lost", "--storage", database)
    before = "".join(iter(lost.stdout.readline, "hangs\n"))
    other = compare("other", "--storage", database)
    time.sleep(2)
    lost.kill()
    lost.communicate()
    said, _ = other.communicate(timeout=300)
    assert other.returncode == 0, said
    one, two = (sorted((tmp_path / name / "runs.csv").read_text().splitlines()) for name in ("alone", "other"))
    made = [line for line in (before + said).splitlines() if line.startswith("made ")]
    assert len(made) == len(set(made)) == len(one) - 1 == len(Store(database, "compare").outcomes()) >= 10
    assert one == two
