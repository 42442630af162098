"""A comparison is worked through, stopped and resumed.

The trainer is not run here; something that answers at once stands in its place.
"""

import dataclasses
import os
import random
import signal
import threading

import pytest

import compare
from fake_outcomes import outcome
from lab import comparing, laboratory, page, runs, search
from lab.options import CompareOptions, comparisons
from lab.runs import Trial
from lab.store import Store
from trainer.config import UserError


class Stand:
    """In the laboratory's place: an accuracy that comes from the trial alone, and a count of the runs."""

    made: list[Trial] = []  # noqa: RUF012
    signal_at = None  # number of the run in which a signal comes
    number = signal.SIGTERM

    def __init__(self, comparison):
        self.comparison = comparison
        if comparison.config.dataset == "mnist":
            raise UserError("mnist is not prepared")

    def run(self, trial, stop, progress):
        if len(self.made) == self.signal_at:
            Stand.signal_at = None
            os.kill(os.getpid(), self.number)
            if stop():
                raise laboratory.Stopped
        self.made.append(trial)
        value = round(random.Random(repr(trial)).random(), 4)
        return outcome(*[value] * trial.epochs, test=value if trial.part == "final" else None)


@pytest.fixture
def stand(monkeypatch):
    monkeypatch.setattr(laboratory, "Laboratory", Stand)
    monkeypatch.setattr(Stand, "made", [])
    monkeypatch.setattr(Stand, "signal_at", None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Stand
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def no_report(monkeypatch):
    """Figures take most of the time."""
    monkeypatch.setattr(page, "write_comparison", lambda folder, outcomes: folder)


def options(tmp_path, **flags):
    few = {"optimizers": ("gravity", "adam"), "rates": 3, "search_seeds": 1, "seeds": 2}
    return CompareOptions(str(tmp_path), **few | flags)


def test_all_runs_are_made_once_and_reported(tmp_path, stand):
    assert compare.compare(options(tmp_path)) == 0
    count = len(stand.made)
    assert len(set(stand.made)) == count >= 2 * 3 + 4
    assert set(runs.read(tmp_path / "runs.csv")) == set(stand.made)
    (tmp_path / "report.md").unlink()
    assert compare.compare(options(tmp_path)) == 0
    assert len(stand.made) == count
    assert (tmp_path / "report.md").exists() and (tmp_path / "report" / "comparison.png").stat().st_size > 0


@pytest.mark.parametrize(("number", "code", "run"), [(signal.SIGTERM, 75, 8), (signal.SIGINT, 130, 0)])
def test_a_signal_ends_it_and_the_same_command_goes_on(tmp_path, stand, no_report, monkeypatch, number, code, run):
    assert compare.compare(options(tmp_path / "whole")) == 0
    whole = (tmp_path / "whole" / "runs.csv").read_text()
    stand.made.clear()
    monkeypatch.setattr(stand, "number", number)
    stand.signal_at = run
    assert compare.compare(options(tmp_path / "cut")) == code
    assert len(stand.made) == run
    assert compare.compare(options(tmp_path / "cut")) == 0
    assert (tmp_path / "cut" / "runs.csv").read_text() == whole


def test_an_unavailable_dataset_leaves_the_others_alone(tmp_path, stand, no_report):
    assert compare.compare(options(tmp_path, datasets=("mnist", "digits"))) == 1
    assert {trial.dataset for trial in stand.made} == {"digits"}


def test_runs_of_an_earlier_file_are_not_made_again(tmp_path, stand, no_report):
    compare.compare(options(tmp_path / "whole"))
    lines = (tmp_path / "whole" / "runs.csv").read_text().splitlines(keepends=True)
    stand.made.clear()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "runs.csv").write_text("".join(lines[:8]) + lines[8][:20])
    assert compare.compare(options(tmp_path / "old")) == 0
    assert len(stand.made) == len(lines) - 8
    assert (tmp_path / "old" / "runs.csv").read_text() == "".join(lines)


def test_a_run_that_another_worker_makes_is_left_to_it(tmp_path, stand, no_report):
    """It may be at the last run of the search, and the final runs come when that has its result."""
    storage = f"sqlite:///{tmp_path}/s.db"
    flags = options(tmp_path / "a", widen=0, storage=storage)
    (one,) = comparisons(flags)
    other = Store(storage, "compare")
    theirs = search.known(one, {})[3]
    claim = other.claim(runs.name(theirs))
    made = runs.texts(theirs, outcome(*[0.0] * 8))
    thread = threading.Timer(2, lambda: claim.finish(0.0, made))
    thread.start()
    assert compare.compare(flags) == 0
    thread.join()
    assert theirs not in stand.made and len(stand.made) == len(set(stand.made)) == 9
    assert len(runs.read(tmp_path / "a" / "runs.csv")) == 10


def test_the_list_says_what_is_done_and_to_do(tmp_path, stand, no_report, capsys):
    flags = options(tmp_path, widen=0)
    compare.compare(dataclasses.replace(flags, list_only=True))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(" search  to do") for line in lines) == 6
    assert sum(line.endswith("  final   to do, when the search has ended") for line in lines) == 4
    assert lines[-1] == "10 runs: 6 to do, 4 not known yet; 0 of 80 epochs; time left: not measured yet"
    stand.signal_at = 8
    compare.compare(flags)
    capsys.readouterr()
    compare.compare(dataclasses.replace(flags, list_only=True))
    lines = capsys.readouterr().out.splitlines()
    assert sum(" done: validation accuracy" in line for line in lines) == 8
    assert lines[-1] == "10 runs: 8 done, 2 to do; 64 of 80 epochs; time left: about 0:00:02"


def test_the_time_left_is_at_the_pace_of_the_same_dataset(tmp_path):
    flags = CompareOptions(str(tmp_path), datasets=("digits", "mnist"), optimizers=("adam",), widen=0)
    digits, mnist = comparisons(flags)
    first, other = search.known(digits, {})[0], search.known(mnist, {})[0]
    outcomes = {first: outcome(*[0.5] * 8, seconds=80.0), other: outcome(*[0.5] * 3, seconds=300.0)}
    runs.write(tmp_path / "runs.csv", {first: outcomes[first]})
    left = lambda *which: comparing.TrialWorker(tmp_path, None, which, write=False).listing().rpartition("left: ")[2]
    assert left(digits) == "about 0:25:20\n"  # 19 runs of 8 epochs, 10 s each
    assert left(digits, mnist) == "about 0:29:20\n"  # 8 more of 3 epochs, at the digits' pace as the only one
    runs.write(tmp_path / "runs.csv", outcomes)
    assert left(digits, mnist) == "about 1:00:20\n"  # 7 more, 300 s each
