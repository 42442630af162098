"""The recorded comparisons, in `notebooks/comparison` and `notebooks/comparison_h100`, and what READMEs say of them."""

import dataclasses
import io
import pathlib
import re
import shlex

import numpy as np
import pandas as pd
import pytest

from lab import evidence, frames, inference, runs, search
from lab.options import CompareOptions, comparisons
from trainer.config import flag
from trainer.flags import parse_command

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = {machine: ROOT / "notebooks" / name for machine, name in (("CPU", "comparison"), ("H100", "comparison_h100"))}
EVERY = {machine: runs.read(folder / "runs.csv") for machine, folder in FOLDERS.items()}
RUNS = EVERY["CPU"]
FRAMES = {machine: frames.of_comparison(made)[0] for machine, made in EVERY.items()}
README = (ROOT / "train" / "lab" / "README.md").read_text()
FRONT = (ROOT / "README.md").read_text()
FOUR = ("gravity", "adam", "rmsprop", "momentum")
# The rows of README.md's table.
ROWS = {
    "digits, CPU": "digits",
    "Fashion-MNIST, H100": "fashion_mnist",
    "CIFAR-10, CPU": "cifar10",
    "CIFAR-10, H100": "cifar10",
    "CIFAR-100 (coarse), CPU": "cifar100_coarse",
    "CIFAR-100 (fine), CPU": "cifar100_fine",
    "CIFAR-100 (fine), H100": "cifar100_fine",
}
# The entrants of the digits, and their names in the table of rates.
ENTRANTS = {
    "gravity": "Gravity, the paper's alpha and beta",
    "gravity:beta=0.99": "Gravity, beta 0.99",
    "gravity:alpha=0.1,beta=0.5": "Gravity, alpha 0.1, beta 0.5",
    "adam": "Adam",
    "rmsprop": "RMSProp",
    "momentum": "SGD with momentum",
}


def test_the_recorded_comparison_of_the_digits_is_whole():
    (digits,) = comparisons(CompareOptions("unused", optimizers=tuple(ENTRANTS)))
    trials = search.known(digits, RUNS)
    assert set(trials) <= set(RUNS) and not search.undecided(digits, RUNS)
    assert {trial for trial in RUNS if trial.dataset == "digits"} == set(trials)


@pytest.mark.parametrize("machine", FOLDERS)
@pytest.mark.parametrize("table", evidence.TABLES, ids=lambda table: table.__name__)
def test_the_recorded_tables_are_those_of_the_runs(table, machine):
    recorded = pd.read_csv(FOLDERS[machine] / "report" / f"{table.__name__}.csv", keep_default_na=False, na_values=[""])
    made = io.StringIO(table(FRAMES[machine]).to_csv(index=False))
    expected = pd.read_csv(made, keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(recorded, expected, check_dtype=False, rtol=1e-5, atol=2e-6)


def test_recorded_runs_hold_no_times():
    assert {outcome.seconds for made in EVERY.values() for outcome in made.values()} == {None}


def test_the_commands_and_flags_of_the_readme_are_the_programs():
    commands = re.findall(r"^python train/compare\.py (.*)$", README, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        assert comparisons(parse_command(CompareOptions, "compare.py", shlex.split(command)))
    names = {name.removesuffix("_only") for name in (field.name for field in dataclasses.fields(CompareOptions))}
    table = "".join(line for line in README.splitlines() if line.startswith("| `--"))
    told = {"--workdir", "--list", "--data-dir", *re.findall(r"--[a-z-]+[a-z]", table)}
    assert told == {flag(name) for name in names}


def test_the_table_of_rates_is_the_recorded_search():
    (digits,) = comparisons(CompareOptions("unused", optimizers=tuple(ENTRANTS)))
    for name, label in zip(digits.entrants, ENTRANTS.values(), strict=True):
        scores = search.search(digits, name, RUNS).scores
        cells = [f"{scores[step]:.2f}" for step in (-2, -1, 0, 1, 2)]
        tested = evidence.tested(FRAMES["CPU"], 0, name)
        cells.append(f"{np.mean(tested):.3f} ± {np.std(tested, ddof=1):.3f}")
        assert f"| {label} | " + " | ".join(cells) + " |" in README


def test_the_readmes_hints_are_the_numbers():
    (digits,) = comparisons(CompareOptions("unused", optimizers=tuple(ENTRANTS)))
    scores = {name: search.search(digits, name, RUNS).scores for name in digits.entrants}
    gravity, adam, rmsprop = scores["gravity"], scores["adam"], scores["rmsprop"]
    assert max(gravity[-1], gravity[1]) < gravity[0] / 3
    assert min(scores["gravity, beta 0.99"][step] for step in (-1, 0, 1)) > 0.8
    assert max(max(scores[name].values()) for name in scores if name.startswith("gravity")) == max(
        scores["gravity, alpha 0.1, beta 0.5"].values()
    )
    assert abs(adam[1] - adam[0]) < 0.05
    assert search.best(rmsprop) == 2 and 3 in rmsprop
    rates = evidence.rate_scores(FRAMES["CPU"]).set_index(["optimizer", "learning rate"])
    assert rates["at chance"]["adam", 0.0025] == 2
    momentum = scores["momentum"]
    assert min(momentum[0], momentum[1]) > 0.5 > 0.1 > max(momentum[step] for step in (-2, -1, 2))


@pytest.mark.parametrize(("label", "dataset"), ROWS.items())
def test_the_readme_has_the_test_accuracies_of_whole_comparisons(label, dataset):
    machine = label.rpartition(", ")[2]
    made, standing = EVERY[machine], _row(machine, evidence.standings, dataset, "gravity")
    (compared,) = comparisons(CompareOptions("unused", datasets=(dataset,)))
    assert set(search.known(compared, made)) <= set(made) and not search.undecided(compared, made)
    frame = FRAMES[machine]
    frame, cells = frame[(frame["dataset"] == dataset) & (frame["settings"] == "")], []
    for name in FOUR:
        of = frame[frame["optimizer"] == name]
        finals = of[of["chosen"]]
        assert len(finals) == (5 if dataset == "digits" else 3)
        cell = f"{finals['test_accuracy'].mean():.3f} ± {finals['test_accuracy'].std():.3f}"
        trained = (~finals["at_chance"]).sum()
        if of["at_chance"][of["part"] == "search"].all():
            assert trained == 0
            cell += " (no rate trained)"
        elif trained < len(finals):
            cell += f" ({trained}/{len(finals)})"
        cells.append(cell)
    cells.append(
        "{:+.3f} ({:+.3f} to {:+.3f})".format(*(float(standing[name]) for name in ("minus adam", "from", "to")))
    )
    assert f"| {label} | {' | '.join(cells)} |" in README


def test_what_is_said_of_adam_is_what_was_recorded():
    behind = []
    for label, dataset in ROWS.items():
        machine = label.rpartition(", ")[2]
        failed = [
            int(_row(machine, evidence.failures, dataset, name)["final at chance"]) for name in ("gravity", "adam")
        ]
        if failed == [0, 0]:
            behind.append(-float(_row(machine, evidence.standings, dataset, "gravity")["minus adam"]))
    text = f"ere all runs of both trained, Gravity ends {min(behind):.2f} to {max(behind):.2f} behind Adam"
    assert len(behind) == 5 and text in " ".join(FRONT.split()) and text in " ".join(README.split())


def test_the_pooled_difference_from_adam_is_what_was_recorded():
    pairs, alone = [], []
    for label, dataset in ROWS.items():
        machine = label.rpartition(", ")[2]
        frame = FRAMES[machine]
        found = frame[(frame["dataset"] == dataset) & (frame["settings"] == "") & frame["chosen"]]
        ours, theirs = (found[found["optimizer"] == name] for name in ("gravity", "adam"))
        if not ours["at_chance"].any() and not theirs["at_chance"].any():
            pairs.append((ours["test_accuracy"].to_numpy(), theirs["test_accuracy"].to_numpy()))
            alone.append(inference.welch(*pairs[-1])["p"])
    p = f"p = {inference.permutation_test(pairs)[1]:.3f}"
    assert f"pooled over five comparisons {p}, in none alone below 0.05" in " ".join(FRONT.split())
    assert len(pairs) == 5 and f"(p from {min(alone):.2f} to {max(alone):.2f}), pooled {p}" in " ".join(README.split())


def test_what_is_said_of_the_two_machines_is_what_was_recorded():
    chosen = {machine: _row(machine, evidence.plateaus, "cifar10", "gravity")["best rate"] for machine in EVERY}
    assert chosen == {"CPU": 0.3162, "H100": 0.1}
    failed = {
        (machine, dataset, name): int(_row(machine, evidence.failures, dataset, name)["final at chance"])
        for machine in EVERY
        for dataset in ("cifar10", "cifar100_fine")
        for name in ("gravity", "adam")
    }
    assert {key: count for key, count in failed.items() if count} == {
        ("CPU", "cifar10", "gravity"): 2,
        ("CPU", "cifar100_fine", "adam"): 1,
    }
    text = " ".join(README.split())
    assert (
        "So one search chose 0.3162, where two of three new seeds stayed at the chance level, and the other 0.1" in text
    )
    for said, machine in (("scored {} and {} on the CPU", "CPU"), ("{} and {} on the H100", "H100")):
        scores = evidence.rate_scores(FRAMES[machine]).query("dataset == 'cifar10' and optimizer == 'gravity'")
        found = scores.set_index("learning rate")["validation accuracy"]
        assert said.format(*(f"{found[rate]:.3f}" for rate in (0.1, 0.3162))) in text


def test_what_is_said_of_rounding_is_what_was_recorded():
    pairs = {
        (trial.dataset, trial.optimizer, trial.seed): (run.test_accuracy, EVERY["H100"][trial].test_accuracy)
        for trial, run in RUNS.items()
        if trial.part == "final" and trial in EVERY["H100"]
    }
    chance = {"cifar10": 0.1, "cifar100_fine": 0.01}
    moved = [abs(a - b) for (dataset, *_), (a, b) in pairs.items() if min(a, b) > 1.01 * chance[dataset]]
    text = " ".join(README.split())
    assert f"by up to {max(moved):.2f} where both runs train" in text
    split = {key: pair for key, pair in pairs.items() if min(pair) <= 1.01 * chance[key[0]] < 2 * min(pair) < max(pair)}
    assert set(split) == {("cifar100_fine", "adam", 100), ("cifar10", "momentum", 101)}
    assert (
        "Adam with seed 100 on CIFAR-100 (fine) has {:.3f} and {:.3f}".format(*split["cifar100_fine", "adam", 100])
        in text
    )
    assert "with seed 101 on CIFAR-10 {:.3f} and {:.3f}".format(*split["cifar10", "momentum", 101]) in text


def test_the_abstracts_question_is_answered_with_what_was_recorded():
    text, front = " ".join(README.split()), " ".join(FRONT.split())
    answers = {}
    for machine in EVERY:
        growths = evidence.growths(FRAMES[machine]).set_index(["few", "many"])
        growth = growths.loc["cifar10", "cifar100_fine"]
        change, low, high = growth[["change", "from", "to"]]
        where = {"CPU": "on the CPU", "H100": "on an H100"}[machine]
        assert f"by {change:+.2f} ({low:+.2f} to {high:+.2f}) {where}" in front
        answers[machine] = growth["answer"].partition(":")[0]
        if machine == "CPU":
            assert f"by {change:+.2f} (95% interval {low:+.2f} to {high:+.2f})" in text
        else:
            assert f"it changes by {change:+.2f} ({low:+.2f} to {high:+.2f})" in text
    assert answers == {"CPU": "not shown", "H100": "not shown"}
    for machine, made in EVERY.items():
        momentum = _row(machine, evidence.failures, "cifar100_fine", "momentum")
        assert momentum["search runs"] == momentum["search at chance"] and momentum["final at chance"] == 3
        finals = [run.test_accuracy for trial, run in made.items() if trial.dataset == "cifar100_fine"]
        assert max(accuracy for accuracy in finals if accuracy) < 0.13


def _row(machine, table, dataset, optimizer):
    """The row of a dataset and an optimizer."""
    made = table(FRAMES[machine])
    return made[(made["dataset"] == dataset) & (made["optimizer"] == optimizer)].iloc[0]
