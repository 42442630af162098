"""The comparison's flags, its search, its file of runs, and what it does when it is stopped or something is wrong.

The trainer is not run here; something that answers at once stands in its place.
"""

import dataclasses
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading

import pytest

import compare
from lab import comparing, laboratory, runs, search, worker
from lab.options import CompareOptions, comparisons
from lab.rules import RULES
from lab.runs import Outcome, Trial
from lab.store import Store
from trainer.config import TABLE_5, UsageError, UserError
from trainer.data import DATASETS

SCRIPT = pathlib.Path(compare.__file__)


def outcome(*accuracies, test=None, losses=None, seconds=1.0):
    return Outcome(10, 900, 100, 200, losses or (2.0,) * len(accuracies), accuracies, test, seconds)


def only(**flags):
    """The comparison that these flags make."""
    (one,) = comparisons(CompareOptions("unused", **flags))
    return one


def work_through(comparison, accuracy, outcomes=None):
    """Makes all runs, with `accuracy(trial)` as their result; the runs in the order in which they were made."""
    outcomes, made = dict(outcomes or {}), []
    while todo := [trial for trial in search.known(comparison, outcomes) if trial not in outcomes]:
        made.append(todo[0])
        value = accuracy(todo[0])
        outcomes[todo[0]] = outcome(*[value] * todo[0].epochs, test=value if todo[0].part == "final" else None)
    return made, outcomes


def peaked_at(rates):
    """An accuracy that is highest at that learning rate of each optimizer."""
    return lambda trial: 1 / (1 + abs(math.log10(trial.learning_rate / rates[trial.optimizer])))


# Flags


def test_without_flags_it_is_the_four_optimizers_on_the_digits():
    one = only()
    assert (one.config.dataset, one.config.model) == ("digits", "vgg11")
    assert {name: config.learning_rate for name, config in one.entrants.items()} == {
        "gravity": 0.1,
        "adam": 2.5e-4,
        "rmsprop": 1e-4,
        "momentum": 0.01,
    }


def test_every_dataset_has_a_rule_and_is_centred_on_the_papers_learning_rates():
    assert set(RULES) == set(DATASETS)
    for one in comparisons(CompareOptions("unused", datasets=tuple(TABLE_5))):
        dataset = one.config.dataset
        assert one.config.model == "vgg16"
        assert [one.entrants[name].learning_rate for name in ("adam", "rmsprop")] == list(TABLE_5[dataset][:2])
        assert (one.config.epochs, one.config.width) == (RULES[dataset].epochs, RULES[dataset].width)


def test_one_rule_holds_for_all_datasets_of_the_paper_but_for_the_epochs():
    rules = [dataclasses.replace(RULES[dataset], target=0.0, epochs=0) for dataset in TABLE_5]
    assert len(set(rules)) == 1
    assert {dataset: RULES[dataset].epochs for dataset in TABLE_5} == {
        **dict.fromkeys(("mnist", "fashion_mnist", "cifar10"), 3),
        **dict.fromkeys(("cifar100_coarse", "cifar100_fine"), 5),
    }


def test_an_entrant_may_have_settings_of_its_own_and_all_may_share_some():
    one = only(optimizers=("gravity", "gravity:beta=0.99,alpha=0.1", "nadam"), settings=("precision=bfloat16",))
    assert list(one.entrants) == ["gravity", "gravity, alpha 0.1, beta 0.99", "nadam"]
    plain, other, nadam = one.entrants.values()
    assert (plain.alpha, plain.beta, other.alpha, other.beta, nadam.optimizer) == (0.01, 0.9, 0.1, 0.99, "nadam")
    assert {config.precision for config in one.entrants.values()} == {"bfloat16"}
    assert search.known(one, {})[0].settings == "precision=bfloat16"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"rates": 4}, "--rates is 4"),
        ({"rates": 1}, "--rates is 1"),
        ({"widen": -1}, "--widen is -1"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"search_seeds": 101}, "--search-seeds is 101"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"width": 0.0}, "--width is 0.0"),
        ({"limit": 0}, "--limit is 0"),
        ({"datasets": ()}, "--datasets"),
        ({"optimizers": ("adamw",)}, "'adamw' is none of gravity"),
        ({"optimizers": ("adam:beta=0.5",)}, "--beta is 0.5"),
        ({"optimizers": ("gravity:beta=2",)}, "--beta is 2"),
        ({"optimizers": ("gravity:beta=x",)}, "'x'; it must be a number"),
        ({"optimizers": ("gravity:first_step=0.5",)}, "'0.5'; it must be a whole number"),
        ({"optimizers": ("gravity:velocity=uniform",)}, "must be one of normal"),
        ({"optimizers": ("gravity:learning_rate=1",)}, "'learning_rate=1' is no NAME=VALUE"),
        ({"optimizers": ("gravity:beta=0.5,beta=0.6",)}, "beta is there twice"),
        ({"optimizers": ("gravity:beta=0.5",), "settings": ("beta=0.6",)}, "beta is both in --settings"),
        ({"settings": ("precision",)}, "'precision' is no NAME=VALUE"),
    ],
)
def test_an_invalid_flag_is_named(flags, named):
    with pytest.raises(UsageError, match=named):
        comparisons(CompareOptions("unused", **flags))


def start(*flags):
    environment = {**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": "standard", "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, flags)], capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--rates", 4), "error: --rates is 4"),
        (("--rates", "x"), "error: Error parsing --rates: invalid literal for int() with base 10: 'x'"),
        (("--ratse", 5), "error: Unrecognized options: --ratse"),
        (("--datasets", "digit"), "error: invalid choice 'digit' for argument '--datasets'"),
    ],
)
def test_the_command_answers_an_invalid_flag_in_one_line(tmp_path, flags, said):
    done = start("--workdir", tmp_path, *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(said)
    assert not list(tmp_path.iterdir())


def test_help_takes_no_time_and_nothing_heavy():
    command = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import compare; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"
    assert "Compares optimizers" in start("--help").stdout


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = start("--workdir", tmp_path / "file" / "folder")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert str(tmp_path) in done.stderr


def test_a_report_on_nothing_is_one_line(tmp_path):
    done = start("--workdir", tmp_path / "none", "--report")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


# Search


def test_the_rates_are_half_a_decade_apart_around_the_middle():
    assert [search.learning_rate(0.1, step) for step in (-2, -1, 0, 1, 2)] == [0.01, 0.03162, 0.1, 0.3162, 1.0]
    assert search.grid(5) == [0, -1, 1, -2, 2]


def test_of_equal_rates_the_one_nearest_to_the_trainers_is_best():
    assert search.best({-1: 0.5, 0: 0.5, 1: 0.5}) == 0
    assert search.best({-1: 0.5, 0: 0.4, 1: 0.5}) == -1
    assert search.best({-2: 0.6, 0: 0.5, 1: 0.6}) == 1


def test_a_search_is_widened_only_at_an_edge_and_so_often():
    assert search.wider({-1: 0.1, 0: 0.5, 1: 0.4}, 3, 2) is None
    assert search.wider({-1: 0.1, 0: 0.5, 1: 0.6}, 3, 2) == 2
    assert search.wider({-1: 0.7, 0: 0.5, 1: 0.6}, 3, 2) == -2
    assert search.wider({-1: 0.1, 0: 0.5, 1: 0.6, 2: 0.7}, 3, 2) == 3
    assert search.wider({-1: 0.1, 0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8}, 3, 2) is None
    assert search.wider({-1: 0.1, 0: 0.5, 1: 0.6}, 3, 0) is None


def test_all_entrants_have_the_same_budget_and_the_best_rates_are_chosen():
    one = only(optimizers=("gravity", "adam"), search_seeds=2, seeds=3)
    made, _ = work_through(one, peaked_at({"gravity": 0.1, "adam": 7.9e-5}))
    for name, chosen in (("gravity", 0.1), ("adam", 7.906e-5)):
        searched = [trial for trial in made if (trial.optimizer, trial.part) == (name, "search")]
        assert len(searched) == len(set(searched)) == 5 * 2
        finals = [trial for trial in made if (trial.optimizer, trial.part) == (name, "final")]
        assert {trial.learning_rate for trial in finals} == {chosen}
        assert [trial.seed for trial in finals] == [100, 101, 102]
        assert not {trial.seed for trial in finals} & {trial.seed for trial in searched}
    parts = [trial.part for trial in made]
    assert parts == sorted(parts, reverse=True)  # the search first


def test_a_best_rate_far_off_is_approached_up_to_the_cap():
    one = only(optimizers=("gravity", "adam"), search_seeds=1)
    made, _ = work_through(one, peaked_at({"gravity": 1e3, "adam": 2.5e-4}))
    rates = lambda name: [t.learning_rate for t in made if (t.optimizer, t.part) == (name, "search")]
    assert rates("gravity") == [0.1, 0.03162, 0.3162, 0.01, 1.0, 3.162, 10.0]
    assert len(rates("adam")) == 5
    assert made[-1].learning_rate == 2.5e-4 and made[-2].learning_rate == 10.0


def test_a_comparison_that_is_cut_off_anywhere_makes_the_same_runs():
    one = only(optimizers=("gravity", "adam"), search_seeds=1, seeds=2)
    accuracy = peaked_at({"gravity": 1.0, "adam": 2.5e-4})
    whole, outcomes = work_through(one, accuracy)
    for count in range(len(whole)):
        rest, _ = work_through(one, accuracy, {trial: outcomes[trial] for trial in whole[:count]})
        assert whole[:count] + rest == whole


def test_more_seeds_and_optimizers_extend_what_is_there():
    accuracy = peaked_at({"gravity": 0.1, "adam": 2.5e-4, "nadam": 0.001})
    before, outcomes = work_through(only(optimizers=("gravity", "adam"), seeds=2), accuracy)
    made, _ = work_through(only(optimizers=("gravity", "adam", "nadam"), seeds=3), accuracy, outcomes)
    assert not set(made) & set(before)
    assert {(t.optimizer, t.seed) for t in made if t.part == "final"} == {
        *(("nadam", seed) for seed in (100, 101, 102)),
        ("gravity", 102),
        ("adam", 102),
    }


def test_what_is_not_known_yet_is_counted():
    one = only(optimizers=("gravity", "adam"), search_seeds=2, seeds=3)
    assert search.unknown(one, {}) == (6, 2 * 2 * 2)
    made, outcomes = work_through(one, peaked_at({"gravity": 0.1, "adam": 2.5e-4}))
    assert search.unknown(one, outcomes) == (0, 0)
    assert len(made) == len(search.known(one, outcomes)) == 2 * 5 * 2 + 6
    one_more = only(optimizers=("gravity", "adam", "nadam"), search_seeds=2, seeds=3)
    assert search.unknown(one_more, outcomes) == (3, 2 * 2)
    assert set(made) < set(search.known(one_more, outcomes))
    listed = comparing.listing([one_more], outcomes)
    assert "the others" in listed and f"{2 * 5 * 2 + 6} done, {5 * 2 + 3} to do" in listed


# The file of runs


def test_the_file_gives_back_what_was_written(tmp_path):
    file = tmp_path / "runs.csv"
    assert runs.read(file) == {}
    one = only(optimizers=("gravity:beta=0.99,alpha=0.1", "adam"), limit=300, settings=("precision=default",), epochs=2)
    first, second = search.known(one, {})[:2]
    expected = {
        first: outcome(0.25, 0.5),
        second: outcome(0.25, 0.125, losses=(2.5, math.inf), seconds=None),
        second._replace(part="final"): outcome(0.25, 0.125, test=0.75),
        second._replace(limit=None, settings=""): outcome(1.0, 0.0),
        second._replace(width=0.123456789): outcome(1.0, 0.0),
    }
    runs.write(file, expected)
    assert runs.read(file) == expected
    whole = file.read_text()
    assert whole.splitlines()[0].startswith("dataset,model,optimizer,learning_rate,seed,part,")
    file.write_text(whole[:-5])  # half a line does not count
    assert list(runs.read(file)) == list(expected)[:-1]
    file.write_text("".join(line.rpartition(",")[0] + "\n" for line in whole.splitlines()))  # times may be cut off
    assert {outcome.seconds for outcome in runs.read(file).values()} == {None}


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",".join(runs.COLUMNS) + "\ndigits,vgg11,gravity,x\n"])
def test_a_file_of_another_kind_is_named_with_its_line(tmp_path, text):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(UserError, match=r"runs\.csv, line [12] "):
        runs.read(tmp_path / "runs.csv")


# Working through it


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


def options(tmp_path, **flags):
    return CompareOptions(str(tmp_path), **{"optimizers": ("gravity", "adam"), "search_seeds": 1, "seeds": 2} | flags)


def test_all_runs_are_made_once_and_reported(tmp_path, stand):
    assert compare.compare(options(tmp_path)) == 0
    count = len(stand.made)
    assert len(set(stand.made)) == count >= 2 * 5 + 4
    assert set(runs.read(tmp_path / "runs.csv")) == set(stand.made)
    assert (tmp_path / "report.md").exists() and (tmp_path / "report" / "comparison.png").stat().st_size > 0
    assert compare.compare(options(tmp_path)) == 0
    assert len(stand.made) == count


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("run", [0, 12])
def test_a_signal_ends_it_and_the_same_command_goes_on(tmp_path, stand, monkeypatch, number, code, run):
    assert compare.compare(options(tmp_path / "whole")) == 0
    whole = (tmp_path / "whole" / "runs.csv").read_text()
    stand.made.clear()
    monkeypatch.setattr(stand, "number", number)
    stand.signal_at = run
    assert compare.compare(options(tmp_path / "cut")) == code
    assert len(stand.made) == run
    assert compare.compare(options(tmp_path / "cut")) == 0
    assert (tmp_path / "cut" / "runs.csv").read_text() == whole


def test_a_dataset_that_cannot_be_had_leaves_the_others_alone(tmp_path, stand):
    assert compare.compare(options(tmp_path, datasets=("mnist", "digits"))) == 1
    assert {trial.dataset for trial in stand.made} == {"digits"}


def test_runs_of_an_earlier_file_are_not_made_again(tmp_path, stand):
    compare.compare(options(tmp_path / "whole"))
    lines = (tmp_path / "whole" / "runs.csv").read_text().splitlines(keepends=True)
    stand.made.clear()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "runs.csv").write_text("".join(lines[:8]) + lines[8][:20])
    assert compare.compare(options(tmp_path / "old")) == 0
    assert len(stand.made) == len(lines) - 8
    assert (tmp_path / "old" / "runs.csv").read_text() == "".join(lines)


def test_a_run_that_another_worker_makes_is_left_to_it(tmp_path, stand):
    """It may be at the last run of the search, and the final runs come when that is told."""
    storage = f"sqlite:///{tmp_path}/s.db"
    flags = options(tmp_path / "a", widen=0, storage=storage)
    (one,) = comparisons(flags)
    other = Store(storage, comparing.KIND)
    theirs = search.known(one, {})[3]
    claim = other.claim(runs.name(theirs))
    made = runs.texts(theirs, outcome(*[0.0] * 8))
    thread = threading.Timer(2, lambda: claim.finish(0.0, made))
    thread.start()
    assert compare.compare(flags) == 0
    thread.join()
    assert theirs not in stand.made and len(stand.made) == len(set(stand.made)) == 13
    assert len(runs.read(tmp_path / "a" / "runs.csv")) == 14


def test_the_list_says_what_is_done_and_to_do(tmp_path, stand, capsys):
    flags = options(tmp_path, widen=0)
    compare.compare(dataclasses.replace(flags, list_only=True))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("to do") for line in lines) == 10
    assert lines[-2].endswith("4 to do, 2 each, when the search has ended")
    assert lines[-1] == "14 runs: 0 done, 14 to do; time left: not measured yet"
    stand.signal_at = 12
    compare.compare(flags)
    capsys.readouterr()
    compare.compare(dataclasses.replace(flags, list_only=True))
    lines = capsys.readouterr().out.splitlines()
    assert sum(" done: validation accuracy" in line for line in lines) == 12
    assert lines[-1] == "14 runs: 12 done, 2 to do; time left: about 2 s"


def test_the_time_left_is_at_the_pace_of_the_same_dataset():
    digits, mnist = comparisons(CompareOptions("unused", datasets=("digits", "mnist"), optimizers=("adam",), widen=0))
    epochs = digits.config.epochs
    outcomes = {search.known(digits, {})[0]: outcome(*[0.5] * epochs, seconds=10.0 * epochs)}
    count = len(search.known(digits, {})) + len(digits.seeds) - 1
    left = 10.0 * epochs * count
    assert comparing.runs_left([digits], outcomes) == f"about {worker.duration(left)}"
    others = len(search.known(mnist, {})) + len(mnist.seeds)
    more = 10.0 * mnist.config.epochs * others  # at the digits' pace, as long as there is no other
    assert comparing.runs_left([digits, mnist], outcomes) == f"about {worker.duration(left + more)}"
    outcomes[search.known(mnist, {})[0]] = outcome(*[0.5] * mnist.config.epochs, seconds=100.0)
    assert comparing.runs_left([digits, mnist], outcomes) == f"about {worker.duration(left + 100.0 * (others - 1))}"
