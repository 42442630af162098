"""`compare.py`, with a stand-in for the laboratory: its flags, their runs, and what happens when it is stopped."""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import random
import re
import signal
import threading

import numpy as np
import pytest
from scipy.stats import qmc

import compare
from fake_outcomes import known, only, outcome, work_through
from lab import evidence, frames, laboratory, page, runs, search, spaces
from lab.options import CompareOptions
from lab.rules import RULES
from lab.store import Store
from trainer import optimizers
from trainer.config import TABLE_5, UserError, flag
from trainer.data import DATASETS

README = (pathlib.Path(__file__).parents[2] / "train" / "lab" / "README.md").read_text()
FEW = ("--optimizers", "gravity", "adam", "--rates", 3, "--search-seeds", 1, "--seeds", 2)


class Stand:
    """In the laboratory's place: an accuracy that comes from the trial alone, and a count of the runs."""

    def __init__(self, comparison):
        self.comparison = comparison
        if comparison.config.dataset == "mnist":
            raise UserError("mnist is not prepared")

    def run(self, trial, stop, progress):
        if len(self.made) == self.signal_at:
            type(self).signal_at = None
            os.kill(os.getpid(), self.number)
            if stop():
                raise laboratory.Stopped
        self.made.append(trial)
        value = round(random.Random(repr(trial)).random(), 4)
        return outcome(*[value] * trial.epochs, test=value if trial.part == "final" else None)


@pytest.fixture
def stand(monkeypatch):
    """Without a report, whose figures take most of the time."""
    stand = type("Fresh", (Stand,), {"made": [], "signal_at": None, "number": signal.SIGTERM})  # in which run, and what
    monkeypatch.setattr(laboratory, "Laboratory", stand)
    monkeypatch.setattr(page, "write_comparison", lambda folder, outcomes: folder)
    return stand


@pytest.fixture
def comp(run):
    """compare.py in that folder, with few runs."""
    return lambda folder, *flags: run(compare, "--workdir", folder, *FEW, *flags)


# Flags


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ("--rates 4", 2, "--rates is 4; it must be odd, between 3 and 21"),
        ("--ratse 5", 2, "Unrecognized options: --ratse"),
        ("--search-seeds 101", 2, "--search-seeds is 101; it must be between 1 and 100"),
        ("--datasets", 2, "--datasets and --optimizers need at least one name each"),
        ("--optimizers adamw", 2, "--optimizers has 'adamw', and 'adamw' is none of gravity"),
        ("--optimizers gravity:beta=x", 2, "--optimizers gravity:beta=x: beta is 'x'; it must be a number"),
        ("--optimizers gravity:learning_rate=1", 2, "--optimizers gravity:learning_rate=1: 'learning_rate=1' is not"),
        ("--optimizers gravity:beta=0.5,beta=0.6", 2, "--optimizers gravity:beta=0.5,beta=0.6: beta is given twice"),
        ("--optimizers gravity:beta=0.5 --settings beta=0.6", 2, "beta is both in --settings and in --optimizers"),
        ("--settings precision", 2, "--settings: 'precision' is not NAME=VALUE"),
        ("--sampler qmc --trials 0", 2, "--trials is 0; it must be between 1 and 1000"),
        ("--trials 5", 2, "--trials is 5, which --sampler grid does not use"),
        ("--sampler qmc --rates 7", 2, "--rates is 7, which --sampler qmc does not use"),
        ("--sampler qmc --optimizers adagrad", 2, "--optimizers has 'adagrad', and --sampler qmc has spaces for"),
        ("--sampler qmc --optimizers gravity:beta=0.5", 2, "beta is 0.5, but --sampler qmc searches it"),
        ("--sampler qmc --settings weight_decay=0", 2, "weight_decay is 0.0, but --sampler qmc searches it"),
        ("--study ablation --epochs 3", 2, "--epochs is 3, which --study ablation sets: leave one out"),
        ("--study width --datasets mnist", 2, "--datasets is mnist, on which --study width has nothing; it has digits"),
        ("--report", 2, "--workdir is "),
        ("--epochs abc", 2, "Error parsing --epochs: 'abc' is not INT. --help"),
        ("--limit 1", 2, "--limit is 1; it must be between 2 and"),
        ("--storage=", 2, "--storage is empty; leave it out"),
        ("--workdir /dev/null/folder", 1, "--workdir is /dev/null/folder, where nothing can be written"),
        ("--storage nosuch://:secret@host/R --list", 1, "--storage is host/R, which cannot be used"),
        ("--storage sqlite:////nowhere/R --list", 1, "--storage is sqlite:////nowhere/R, which cannot"),
    ],
)
def test_what_cannot_be_is_answered_in_one_line(run, tmp_path, monkeypatch, flags, code, said):
    monkeypatch.setattr("lab.store._SECONDS_BETWEEN", 0)
    got, _, error = run(compare, "--workdir", tmp_path / "R", *flags.split())
    assert got == code and error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_table_of_flags_in_the_readme_is_whole():
    table = "".join(line for line in README.splitlines() if line.startswith("| `--"))
    told = {"--workdir", "--list", "--data-dir", *re.findall(r"--[a-z-]+[a-z]", table)}
    assert told == {flag(field.name.removesuffix("_only")) for field in dataclasses.fields(CompareOptions)}


def test_every_dataset_has_a_rule_and_the_papers_have_the_same_but_for_the_epochs():
    assert set(RULES) == set(DATASETS) and [RULES[dataset].epochs for dataset in TABLE_5] == [3, 3, 3, 5, 5]
    assert len({dataclasses.replace(RULES[dataset], target=0.0, epochs=0) for dataset in TABLE_5}) == 1


def test_an_entrant_may_have_settings_of_its_own_and_all_may_share_some():
    one = only(optimizers=("gravity", "gravity:beta=0.99,alpha=0.1", "nadam"), settings=("precision=bfloat16",))
    assert list(one.entrants) == ["gravity", "gravity, alpha 0.1, beta 0.99", "nadam"]
    plain, other, nadam = one.entrants.values()
    assert (plain.alpha, plain.beta, other.alpha, other.beta, nadam.optimizer) == (0.01, 0.9, 0.1, 0.99, "nadam")
    assert {config.precision for config in one.entrants.values()} == {"bfloat16"}
    assert known(one)[0].settings == "precision=bfloat16"


# The search over learning rates


def peaked_at(**rates):
    """An accuracy that is highest at that learning rate of each optimizer."""
    return lambda trial: 1 / (1 + abs(math.log10(trial.learning_rate / rates[trial.optimizer])))


def part_of(made, optimizer, part):
    return [trial for trial in made if (trial.optimizer, trial.part) == (optimizer, part)]


PEAKS = [(0.1, 2, [0, -1, 1]), (0.3162, 2, [0, -1, 1, 2]), (1e3, 2, [0, -1, 1, 2, 3])]
PEAKS += [(1e-3, 2, [0, -1, 1, -2, -3]), (1e3, 0, [0, -1, 1])]


@pytest.mark.parametrize(("peak", "widen", "steps"), PEAKS)
def test_rates_are_half_a_decade_apart_from_the_trainers_outwards_and_more_are_tried_beyond_an_edge(peak, widen, steps):
    one = only(optimizers=("gravity",), rates=3, widen=widen, search_seeds=1)
    made, _ = work_through(one, peaked_at(gravity=peak))
    rates = {step: float(f"{0.1 * 10 ** (step / 2):.4g}") for step in steps}
    assert [trial.learning_rate for trial in part_of(made, "gravity", "search")] == [*rates.values()]
    chosen = min(rates.values(), key=lambda rate: abs(math.log(rate / peak)))
    assert {trial.learning_rate for trial in part_of(made, "gravity", "final")} == {chosen}


def test_of_equal_rates_the_one_nearest_to_the_trainers_is_best_then_the_lower():
    assert search.best({-1: 0.5, 0: 0.5, 1: 0.5}) == 0 and search.best({-1: 0.5, 0: 0.4, 1: 0.5}) == -1
    assert search.best({-2: 0.6, 0: 0.5, 1: 0.6}) == 1


def test_all_have_the_same_budget_the_search_comes_first_and_a_comparison_cut_off_anywhere_makes_the_same_runs():
    one, accuracy = only(optimizers=("gravity", "adam"), search_seeds=2, seeds=3), peaked_at(gravity=0.1, adam=7.9e-5)
    whole, outcomes = work_through(one, accuracy)
    for name, chosen in (("gravity", 0.1), ("adam", 7.906e-5)):
        assert len({*part_of(whole, name, "search")}) == 5 * 2
        finals = [(trial.learning_rate, trial.seed) for trial in part_of(whole, name, "final")]
        assert finals == [(chosen, 100), (chosen, 101), (chosen, 102)]
    assert [trial.part for trial in whole] == ["search"] * 20 + ["final"] * 6
    for count in range(len(whole)):
        rest, _ = work_through(one, accuracy, {trial: outcomes[trial] for trial in whole[:count]})
        assert whole[:count] + rest == whole


def test_more_seeds_and_optimizers_extend_what_is_there():
    accuracy = peaked_at(gravity=0.1, adam=2.5e-4, nadam=0.001)
    before, outcomes = work_through(only(optimizers=("gravity", "adam"), seeds=2), accuracy)
    more = only(optimizers=("gravity", "adam", "nadam"), seeds=3)
    made, _ = work_through(more, accuracy, outcomes)
    assert not set(made) & set(before)
    added = {("gravity", 102), ("adam", 102), *itertools.product(["nadam"], (100, 101, 102))}
    assert {(trial.optimizer, trial.seed) for trial in made if trial.part == "final"} == added


# The search over points of a space


def points(optimizer, count, rate=0.1, epochs=8):
    found = [spaces.point(optimizer, rate, epochs, index) for index in range(count)]
    return [{"learning_rate": rate} | spaces.settings_of(text) for rate, text in found]


def little_decay(trial):
    """Highest at 0.2 with little weight decay."""
    return 1 / (1 + abs(math.log10(trial.learning_rate / 0.2))) - spaces.settings_of(trial.point)["weight_decay"]


def test_the_sequence_is_scipys_and_the_first_points_are_these():
    """By hand: halves of three decades of the rate, thirds of two of 1 - beta, fifths of three of the weight decay."""
    expected = qmc.Halton(len(spaces.BASES), scramble=False).random(50)
    found = [[spaces.radical_inverse(index, base) for base in spaces.BASES] for index in range(50)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    expected = [
        (0.1, 1 - 0.005 * 100 ** (1 / 3), 1e-4 * 1000 ** (1 / 5), 0),
        (0.1 / 30 * 900 ** (3 / 4), 1 - 0.005 * 100 ** (1 / 9), 1e-4 * 1000 ** (3 / 5), 0.05 * 8),
    ]
    names = ("learning_rate", "beta", "weight_decay", "warmup_epochs")
    for found, values in zip(points("gravity", 3)[::2], expected, strict=True):
        assert found == pytest.approx(dict(zip(names, values, strict=True)), rel=1e-3)


@pytest.mark.parametrize("optimizer", spaces.SPACES)
def test_points_lie_in_the_space_of_the_readme_and_are_what_the_optimizer_takes(optimizer):
    space, found = spaces.SPACES[optimizer], points(optimizer, 105)
    ends = {"learning_rate": (0.1 / 30, 3.0), "weight_decay": space.weight_decay, "warmup_epochs": (0, 1.6)}
    if space.beta:
        ends |= {space.beta: sorted(1 - end for end in space.one_minus_beta)}
    assert {point["warmup_epochs"] for point in found} == {0, 0.4, 1.6}
    for point in found:
        assert point.keys() == ends.keys() and all(low <= point[name] <= high for name, (low, high) in ends.items())
    if space.beta not in (None, "beta"):
        optimizers.make(optimizer, 0.1, **{space.beta: found[0][space.beta]})
    low, high = space.one_minus_beta
    average = f"{low:g} to {high:g} (`{space.beta}`)" if space.beta else "none"
    assert f"| {optimizer} | {average} | {space.weight_decay[0]:g} to {space.weight_decay[1]:g} |\n" in README


def test_every_optimizer_has_as_many_points_and_is_measured_at_its_best_and_more_trials_extend_that():
    flags = {"optimizers": ("gravity", "adam"), "sampler": "qmc", "search_seeds": 2, "seeds": 3}
    made, outcomes = work_through(only(**flags, trials=6), little_decay)
    assert len(made) == 2 * 6 * 2 + 2 * 3 and {trial.settings for trial in made} == {"sampler=qmc"}
    for name, centre in (("gravity", 0.1), ("adam", 2.5e-4)):
        searched = part_of(made, name, "search")
        expected = [spaces.point(name, centre, 8, index) for index in range(6)]
        assert [(t.learning_rate, t.point) for t in searched] == [point for point in expected for _ in range(2)]
        best = max(searched, key=little_decay)
        finals = {(t.learning_rate, t.point) for t in part_of(made, name, "final")}
        assert finals == {(best.learning_rate, best.point)}
    more, _ = work_through(only(**flags, trials=9), little_decay, outcomes)
    assert not set(more) & set(made) and len([trial for trial in more if trial.part == "search"]) == 2 * 3 * 2


def test_the_listing_and_the_report_show_points_and_keep_both_kinds_of_search_apart(run, tmp_path):
    flags = {"optimizers": ("gravity", "adam"), "search_seeds": 1, "seeds": 2}
    rates = work_through(only(**flags), lambda trial: 0.5)[1]
    both = rates | work_through(only(**flags, sampler="qmc", trials=3), little_decay)[1]
    runs.write(tmp_path / "runs.csv", both)
    searched = ("--optimizers", "gravity", "adam", "--search-seeds", 1, "--seeds", 2, "--sampler", "qmc", "--trials", 3)
    _, listed, _ = run(compare, "--workdir", tmp_path, *searched, "--list")
    first = "gravity 0.1 beta=0.976792 warmup_epochs=0 weight_decay=0.000398107 0 search done: validation accuracy"
    assert first in " ".join(listed.split()) and "10 runs: 10 done;" in listed
    assert run(compare, "--workdir", tmp_path, "--report")[0] == 0
    text, standings = (tmp_path / "report.html").read_text(), evidence.standings(frames.of_comparison(both))
    assert "or over quasi-random points of the space in train/lab/spaces.py" in text and "beta=0.976792" in text
    assert [*standings["network"].str.endswith("sampler=qmc")] == [False, False, True, True]
    assert [*standings["point"].astype(bool)] == [False, False, True, True]
    assert len(evidence.plateaus(frames.of_comparison(both))) == 2


# The command


@pytest.mark.parametrize(("number", "code", "at"), [(signal.SIGTERM, 75, 8), (signal.SIGINT, 130, 0)])
def test_a_signal_ends_it_and_the_same_command_goes_on(comp, tmp_path, stand, number, code, at):
    assert comp(tmp_path / "whole")[0] == 0
    assert {*runs.read(tmp_path / "whole" / "runs.csv")} == {*stand.made} and len({*stand.made}) == len(stand.made)
    stand.made.clear()
    stand.number, stand.signal_at = number, at
    assert comp(tmp_path / "cut")[0] == code and len(stand.made) == at
    assert comp(tmp_path / "cut")[0] == 0
    assert (tmp_path / "cut" / "runs.csv").read_text() == (tmp_path / "whole" / "runs.csv").read_text()


def test_an_unavailable_dataset_leaves_the_others_alone(comp, tmp_path, stand):
    code, out, _ = comp(tmp_path, "--datasets", "mnist", "digits")
    assert code == 1 and "error: mnist is not prepared" in out
    assert {trial.dataset for trial in stand.made} == {"digits"}


def test_runs_of_an_earlier_file_are_not_made_again(comp, tmp_path, stand):
    comp(tmp_path / "whole")
    lines = (tmp_path / "whole" / "runs.csv").read_text().splitlines(keepends=True)
    stand.made.clear()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "runs.csv").write_text("".join(lines[:8]) + lines[8][:20])
    assert comp(tmp_path / "old")[0] == 0
    assert len(stand.made) == len(lines) - 8
    assert (tmp_path / "old" / "runs.csv").read_text() == "".join(lines)
    assert len(Store(f"sqlite:///{tmp_path}/old/runs.db", "compare").outcomes()) == len(lines) - 1  # for other workers


def test_a_run_that_another_worker_makes_is_left_to_it(comp, tmp_path, stand):
    """It may be at the last run of the search, and the final runs come when that has its result."""
    storage = f"sqlite:///{tmp_path}/s.db"
    one = only(optimizers=("gravity", "adam"), rates=3, search_seeds=1, seeds=2, widen=0)
    theirs = known(one)[3]
    claim = Store(storage, "compare").claim(runs.name(theirs))
    thread = threading.Timer(2, lambda: claim.finish(0.0, runs.texts(theirs, outcome(*[0.0] * 8))))
    thread.start()
    assert comp(tmp_path / "a", "--widen", 0, "--storage", storage)[0] == 0
    thread.join()
    assert theirs not in stand.made and len(stand.made) == len(set(stand.made)) == 9
    assert len(runs.read(tmp_path / "a" / "runs.csv")) == 10
    comp(tmp_path / "b", "--widen", 0, "--storage", storage)
    assert len({(tmp_path / folder / "runs.csv").read_text() for folder in "ab"}) == 1


def test_the_list_says_what_is_done_and_to_do_also_where_nothing_can_be_written(comp, tmp_path, stand, monkeypatch):
    listed = functools.partial(comp, tmp_path, "--widen", 0, "--list")
    lines = listed()[1].splitlines()
    assert sum(line.endswith(" search  to do") for line in lines) == 6
    assert sum(line.endswith("  final   to do, when the search has ended") for line in lines) == 4
    assert lines[-1] == "10 runs: 6 to do, 4 not known yet; 0 of 80 epochs; time left: not measured yet"
    stand.signal_at = 8
    comp(tmp_path, "--widen", 0)
    lines = listed()[1].splitlines()
    assert sum(" done: validation accuracy" in line for line in lines) == 8
    assert lines[-1] == "10 runs: 8 done, 2 to do; 64 of 80 epochs; time left: about 0:00:02"
    (tmp_path / "runs.db").write_text("damaged")
    code, _, error = listed()
    assert code == 1 and re.search(r"runs\.db cannot be used \(.*delete it: it is written again", error)
    monkeypatch.setattr(os, "access", lambda *_: False)  # a folder that is only read
    assert listed()[1].splitlines() == lines


def test_the_time_left_is_at_the_pace_of_the_same_dataset(run, tmp_path):
    digits, mnist = (known(only(datasets=(dataset,), optimizers=("adam",)))[0] for dataset in ("digits", "mnist"))
    outcomes = {digits: outcome(*[0.5] * 8, seconds=80.0), mnist: outcome(*[0.5] * 3, seconds=300.0)}
    flags = ("--workdir", tmp_path, "--optimizers", "adam", "--widen", 0, "--list", "--datasets", "digits", "mnist")
    # 19 runs of 8 epochs, 10 s each, and of 3 epochs 8 at the same pace, which is the only one, or 7 of 300 s.
    for known_runs, left in ((1, "0:29:20"), (2, "1:00:20")):
        runs.write(tmp_path / "runs.csv", dict([*outcomes.items()][:known_runs]))
        assert run(compare, *flags)[1].endswith(f"time left: about {left}\n")


# The file of runs


def test_the_file_gives_back_what_was_written(tmp_path):
    file = tmp_path / "runs.csv"
    assert runs.read(file) == {}
    one = only(optimizers=("gravity:beta=0.99,alpha=0.1", "adam"), limit=300, settings=("precision=default",), epochs=2)
    first, second = known(one)[:2]
    expected = {
        first: outcome(0.25, 0.5),
        second: outcome(0.25, 0.125, losses=(2.5, math.inf), seconds=None),
        second._replace(part="final"): outcome(0.25, 0.125, test=0.75),
        second._replace(limit=None, settings="", width=0.123456789, point="beta=0.5"): outcome(1.0, 0.0),
    }
    runs.write(file, expected)
    assert runs.read(file) == expected
    lines = file.read_text().splitlines()
    file.write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))  # times may be cut off
    assert {outcome.seconds for outcome in runs.read(file).values()} == {None}
    assert "point" not in runs.name(first)  # as it was before there were points


@pytest.mark.parametrize("changed", [{"classes": 0}, {"validation_pictures": 0}, {"loss_by_epoch": (1.0,)}, {}])
def test_a_line_that_is_no_run_is_named(tmp_path, changed):
    trial = known(only(epochs=2))[0]._replace(dataset="digits" if changed else "unknown")
    runs.write(tmp_path / "runs.csv", {trial: dataclasses.replace(outcome(0.5, 0.5), **changed)})
    with pytest.raises(UserError, match=r"runs\.csv, line 2 "):
        runs.read(tmp_path / "runs.csv")
    assert frames.of_comparison({}).empty and "chosen" in frames.of_comparison({})
