"""The store: whatever workers do at the same time or leave behind, each run is made once."""

import os
import subprocess
import sys
import threading
import time

import pytest

from lab import store
from lab.store import Store


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/runs.db"


def test_a_run_is_claimed_once_until_it_is_released_and_never_after_it_is_made(url):
    one, other = Store(url, "test"), Store(url, "test")
    claim = one.claim("a")
    assert other.claim("a") is None and other.running() == {"a"}
    with claim:
        pass
    assert not other.running() and not other.failures()
    claim = other.claim("a")
    claim.report(1, 0.25)
    assert claim.finish(0.5, {"x": "1"})
    assert one.claim("a") is None and one.outcomes() == {"a": {"x": "1"}}


def test_a_failure_is_known_until_the_run_is_tried_again(url):
    one = Store(url, "test")
    one.claim("a").fail("no memory")
    assert one.failures() == one.failures(since_start=True) == {"a": "no memory"}
    later = Store(url, "test")
    assert later.failures() == {"a": "no memory"} and not later.failures(since_start=True)
    later.claim("a")
    assert not one.failures()


def test_of_workers_that_claim_at_the_same_time_one_has_the_run(url):
    stores, won = [Store(url, "test") for _ in range(4)], []
    barrier = threading.Barrier(len(stores))

    def claim(one):
        for name in "abc":
            barrier.wait(60)
            won.append((name, one.claim(name) is not None))

    threads = [threading.Thread(target=claim, args=(one,)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, has in won if has) == ["a", "b", "c"] and len(won) == 12


def test_a_run_of_a_process_that_is_gone_is_free_at_once(url):
    code = f"from lab.store import Store; import os; assert Store({url!r}, 'test').claim('a'); os._exit(1)"
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    assert Store(url, "test").claim("a")


def test_a_worker_without_a_sign_of_life_loses_its_run_and_one_that_lives_keeps_it(url, monkeypatch):
    monkeypatch.setattr(store, "_GRACE", 5)
    monkeypatch.setattr(store, "_HEARTBEAT", 1)
    one, other = Store(url, "test"), Store(url, "test")
    lost, kept = one.claim("a"), one.claim("b")
    lost._ended.set()  # its machine hangs
    assert other.claim("a") is None
    time.sleep(7)
    claim = other.claim("a")
    assert claim.finish(0.5, {"by": "other"})
    assert not lost.finish(0.25, {"by": "lost"})
    assert other.outcomes() == {"a": {"by": "other"}}
    assert other.claim("b") is None and kept.finish(0.5, {})
