"""The recorded comparisons, in `notebooks/comparison` and `notebooks/comparison_h100`, and what READMEs say of them."""

import dataclasses
import io
import pathlib
import re

import numpy as np
import pandas as pd
import pytest

from lab import evidence, frames, inference, runs, search
from lab.options import CompareOptions, comparisons
from trainer.config import flag

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = {machine: ROOT / "notebooks" / name for machine, name in (("CPU", "comparison"), ("H100", "comparison_h100"))}
EVERY = {machine: runs.read(folder / "runs.csv") for machine, folder in FOLDERS.items()}
RUNS = EVERY["CPU"]
FRAMES = {machine: frames.of_comparison(made)[0] for machine, made in EVERY.items()}
README = (ROOT / "train" / "lab" / "README.md").read_text()
TEXT, FRONT = " ".join(README.split()), " ".join((ROOT / "README.md").read_text().split())
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
(DIGITS,) = comparisons(CompareOptions("unused", optimizers=tuple(ENTRANTS)))
SCORES = {name: search.search(DIGITS, name, RUNS).scores for name in DIGITS.entrants}


def row(machine, table, dataset, optimizer):
    """The row of a dataset and an optimizer."""
    made = table(FRAMES[machine])
    return made[(made["dataset"] == dataset) & (made["optimizer"] == optimizer)].iloc[0]


def of(machine, dataset, optimizer):
    """Its search and its final runs, with the trainer's settings."""
    frame = FRAMES[machine]
    found = frame[(frame["dataset"] == dataset) & (frame["optimizer"] == optimizer) & (frame["settings"] == "")]
    return found[found["part"] == "search"], found[found["chosen"]]


@pytest.mark.parametrize("machine", FOLDERS)
@pytest.mark.parametrize("table", evidence.TABLES, ids=lambda table: table.__name__)
def test_the_recorded_tables_are_those_of_the_runs(table, machine):
    recorded = pd.read_csv(FOLDERS[machine] / "report" / f"{table.__name__}.csv", keep_default_na=False, na_values=[""])
    made = io.StringIO(table(FRAMES[machine]).to_csv(index=False))
    expected = pd.read_csv(made, keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(recorded, expected, check_dtype=False, rtol=1e-5, atol=2e-6)


def test_recorded_runs_hold_no_times():
    assert {outcome.seconds for made in EVERY.values() for outcome in made.values()} == {None}


def test_the_table_of_flags_in_the_readme_is_whole():
    names = {field.name.removesuffix("_only") for field in dataclasses.fields(CompareOptions)}
    table = "".join(line for line in README.splitlines() if line.startswith("| `--"))
    told = {"--workdir", "--list", "--data-dir", *re.findall(r"--[a-z-]+[a-z]", table)}
    assert told == {flag(name) for name in names}


def test_the_table_of_rates_is_the_recorded_search_of_the_digits_which_is_whole():
    trials = search.known(DIGITS, RUNS)
    assert {trial for trial in RUNS if trial.dataset == "digits"} == set(trials) and not search.undecided(DIGITS, RUNS)
    for (name, scores), label in zip(SCORES.items(), ENTRANTS.values(), strict=True):
        cells = [f"{scores[step]:.2f}" for step in (-2, -1, 0, 1, 2)]
        tested = evidence.tested(FRAMES["CPU"], 0, name)
        cells.append(f"{np.mean(tested):.3f} ± {np.std(tested, ddof=1):.3f}")
        assert f"| {label} | " + " | ".join(cells) + " |" in README


def test_the_readmes_hints_are_the_numbers():
    gravity, adam, rmsprop, momentum = (SCORES[name] for name in ("gravity", "adam", "rmsprop", "momentum"))
    assert max(gravity[-1], gravity[1]) < gravity[0] / 3
    assert min(SCORES["gravity, beta 0.99"][step] for step in (-1, 0, 1)) > 0.8
    highest = {name: max(scores.values()) for name, scores in SCORES.items() if name.startswith("gravity")}
    assert max(highest, key=highest.get) == "gravity, alpha 0.1, beta 0.5"
    assert abs(adam[1] - adam[0]) < 0.05
    assert search.best(rmsprop) == 2 and 3 in rmsprop
    assert min(momentum[0], momentum[1]) > 0.5 > 0.1 > max(momentum[step] for step in (-2, -1, 2))


@pytest.mark.parametrize(("label", "dataset"), ROWS.items())
def test_the_readme_has_the_test_accuracies_of_whole_comparisons(label, dataset):
    machine, cells = label.rpartition(", ")[2], []
    (compared,) = comparisons(CompareOptions("unused", datasets=(dataset,)))
    made = EVERY[machine]
    assert set(search.known(compared, made)) <= set(made) and not search.undecided(compared, made)
    for name in ("gravity", "adam", "rmsprop", "momentum"):
        searched, finals = of(machine, dataset, name)
        assert len(finals) == (5 if dataset == "digits" else 3)
        cells.append(f"{finals['test_accuracy'].mean():.3f} ± {finals['test_accuracy'].std():.3f}")
        trained = (~finals["at_chance"]).sum()
        if searched["at_chance"].all():
            assert trained == 0
            cells[-1] += " (no rate trained)"
        elif trained < len(finals):
            cells[-1] += f" ({trained}/{len(finals)})"
    standing = row(machine, evidence.standings, dataset, "gravity")
    cells.append("{:+.3f} ({:+.3f} to {:+.3f})".format(*standing[["minus adam", "from", "to"]].astype(float)))
    assert f"| {label} | {' | '.join(cells)} |" in README


def test_what_is_said_of_adam_where_both_train_is_what_was_recorded():
    pairs = []
    for label, dataset in ROWS.items():
        ours, theirs = (of(label.rpartition(", ")[2], dataset, name)[1] for name in ("gravity", "adam"))
        if not ours["at_chance"].any() and not theirs["at_chance"].any():
            pairs.append((ours["test_accuracy"].to_numpy(), theirs["test_accuracy"].to_numpy()))
    behind, alone = [b.mean() - a.mean() for a, b in pairs], [inference.welch(*pair)["p"] for pair in pairs]
    text = f"ere all runs of both trained, Gravity ends {min(behind):.2f} to {max(behind):.2f} behind Adam"
    assert len(pairs) == 5 and text in FRONT and text in TEXT
    p = f"p = {inference.permutation_test(pairs)[1]:.3f}"
    assert f"pooled over five comparisons {p}, in none alone below 0.05" in FRONT
    assert f"(p from {min(alone):.2f} to {max(alone):.2f}), pooled {p}" in TEXT


def test_what_is_said_of_the_two_machines_is_what_was_recorded():
    chosen = {machine: row(machine, evidence.plateaus, "cifar10", "gravity")["best rate"] for machine in EVERY}
    assert chosen == {"CPU": 0.3162, "H100": 0.1}
    failed = {
        (machine, dataset, name): of(machine, dataset, name)[1]["at_chance"].sum()
        for machine in EVERY
        for dataset in ("cifar10", "cifar100_fine")
        for name in ("gravity", "adam")
    }
    some = {("CPU", "cifar10", "gravity"): 2, ("CPU", "cifar100_fine", "adam"): 1}
    assert {key: count for key, count in failed.items() if count} == some
    said = "So one search chose 0.3162, where two of three new seeds stayed at the chance level, and the other 0.1"
    assert said in TEXT
    for said, machine in (("scored {} and {} on the CPU", "CPU"), ("{} and {} on the H100", "H100")):
        scores = of(machine, "cifar10", "gravity")[0].groupby("learning_rate")["validation_accuracy"].mean()
        assert said.format(*(f"{scores[rate]:.3f}" for rate in (0.1, 0.3162))) in TEXT


def test_what_is_said_of_rounding_is_what_was_recorded():
    pairs = {
        (trial.dataset, trial.optimizer, trial.seed): (run.test_accuracy, EVERY["H100"][trial].test_accuracy)
        for trial, run in RUNS.items()
        if trial.part == "final" and trial in EVERY["H100"]
    }
    chance = {"cifar10": 0.101, "cifar100_fine": 0.0101}
    moved = [abs(a - b) for (dataset, *_), (a, b) in pairs.items() if min(a, b) > chance[dataset]]
    assert f"by up to {max(moved):.2f} where both runs train" in TEXT
    split = {key: pair for key, pair in pairs.items() if min(pair) <= chance[key[0]] < 2 * min(pair) < max(pair)}
    adam, momentum = ("cifar100_fine", "adam", 100), ("cifar10", "momentum", 101)
    assert set(split) == {adam, momentum}
    assert "Adam with seed 100 on CIFAR-100 (fine) has {:.3f} and {:.3f}".format(*split[adam]) in TEXT
    assert "with seed 101 on CIFAR-10 {:.3f} and {:.3f}".format(*split[momentum]) in TEXT


@pytest.mark.parametrize(
    ("machine", "where", "said"),
    [
        ("CPU", "on the CPU", "by {:+.2f} (95% interval {:+.2f} to {:+.2f})"),
        ("H100", "on an H100", "it changes by {:+.2f} ({:+.2f} to {:+.2f})"),
    ],
)
def test_the_abstracts_question_is_answered_with_what_was_recorded(machine, where, said):
    growth = evidence.growths(FRAMES[machine]).set_index(["few", "many"]).loc["cifar10", "cifar100_fine"]
    numbers = growth[["change", "from", "to"]]
    assert "by {:+.2f} ({:+.2f} to {:+.2f}) ".format(*numbers) + where in FRONT and said.format(*numbers) in TEXT
    assert growth["answer"].startswith("not shown")
    searched, finals = of(machine, "cifar100_fine", "momentum")
    assert searched["at_chance"].all() and finals["at_chance"].sum() == 3
    frame = FRAMES[machine]
    assert frame["test_accuracy"][frame["dataset"] == "cifar100_fine"].max() < 0.13
