"""The recorded comparison in notebooks/comparison, and what READMEs say about it."""

import csv
import dataclasses
import pathlib
import re
import shlex

import numpy as np
import pytest

from comparison import evidence, ledger, search
from comparison.options import CompareOptions, comparisons
from trainer.config import flag
from trainer.flags import parse_command

ROOT = pathlib.Path(__file__).parents[2]
RUNS = ledger.read(ROOT / "notebooks" / "comparison" / "runs.csv")
REPORT = ROOT / "notebooks" / "comparison" / "report"
README = (ROOT / "train" / "comparison" / "README.md").read_text()
FRONT = (ROOT / "README.md").read_text()
# The entrants of the digits, and their names in README.md.
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
    assert set(trials) <= set(RUNS) and search.unknown(digits, RUNS) == (0, 0)
    assert {trial for trial in RUNS if trial.dataset == "digits"} == set(trials)


def test_recorded_runs_hold_no_times():
    assert {outcome.seconds for outcome in RUNS.values()} == {None}


def test_the_commands_and_flags_of_the_readme_are_the_programs():
    commands = re.findall(r"^python train/compare\.py (.*)$", README, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        assert comparisons(parse_command(CompareOptions, "compare.py", shlex.split(command)))
    names = {name.removesuffix("_only") for name in (field.name for field in dataclasses.fields(CompareOptions))}
    table = "".join(line for line in README.splitlines() if line.startswith("|"))
    told = {"--workdir", "--list", "--data-dir", *re.findall(r"--[a-z-]+[a-z]", table)}
    assert told == {flag(name) for name in names}


def test_the_readmes_table_is_the_recorded_search():
    (digits,) = comparisons(CompareOptions("unused", optimizers=tuple(ENTRANTS)))
    for name, label in zip(digits.entrants, ENTRANTS.values(), strict=True):
        scores = search.search(digits, name, RUNS).scores
        cells = [f"{scores[step]:.2f}" for step in (-2, -1, 0, 1, 2)]
        tested = evidence.test_accuracies(evidence.finals(RUNS, evidence.setups(RUNS)[0], name))
        cells.append(f"{np.mean(tested):.3f} ± {np.std(tested, ddof=1):.3f}")
        assert f"| {label} | " + " | ".join(cells) + " |" in FRONT


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
    at_chance = {(row.optimizer, row.learning_rate): row.at_chance for row in evidence.rate_scores(RUNS)}
    assert at_chance["adam", 0.0025] == 2
    momentum = scores["momentum"]
    assert min(momentum[0], momentum[1]) > 0.5 > 0.1 > max(momentum[step] for step in (-2, -1, 2))


@pytest.mark.parametrize(("dataset", "column"), [("cifar10", -2), ("cifar100_fine", -1)])
def test_the_readme_tells_of_the_larger_datasets_what_was_recorded(dataset, column):
    (setup,) = [setup for setup in evidence.setups(RUNS) if setup.dataset == dataset]
    (compared,) = comparisons(CompareOptions("unused", datasets=(dataset,)))
    assert set(search.known(compared, RUNS)) <= set(RUNS) and search.unknown(compared, RUNS) == (0, 0)
    tested = {name: evidence.test_accuracies(evidence.finals(RUNS, setup, name)) for name in compared.entrants}
    for name, accuracies in tested.items():
        (row,) = re.findall(rf"^\| {ENTRANTS[name]} \|(.*)\|$", FRONT, re.MULTILINE)
        cell = f"{np.mean(accuracies):.3f} ± {np.std(accuracies, ddof=1):.3f}"
        assert row.split("|")[column].strip() == cell


def test_the_readme_tells_of_failures_and_of_gravitys_lead_what_was_recorded():
    names = ("cifar10", "cifar100_fine")
    failed = [_row("failures.csv", dataset, "gravity")["final at chance"] for dataset in names]
    failed_adam = [_row("failures.csv", dataset, "adam")["final at chance"] for dataset in names]
    assert (failed, failed_adam) == (["2", "0"], ["0", "1"])
    text = " ".join(FRONT.split())
    assert "on CIFAR-10 two of Gravity's three final runs, on CIFAR-100 one of Adam's" in text
    leads = [[float(_row("standings.csv", d, "gravity")[name]) for name in ("minus adam", "from", "to")] for d in names]
    for lead, low, high in leads:
        assert f"{lead:+.2f} ({low:+.2f} to {high:+.2f})" in text


def test_the_comparisons_readme_answers_the_abstracts_question_with_what_was_recorded():
    text = " ".join(README.split())
    with open(REPORT / "growths.csv", newline="") as file:
        (growth,) = csv.DictReader(file)
    change, low, high = (float(growth[name]) for name in ("change", "from", "to"))
    assert growth["answer"] == "yes" and f"by {change:.2f} (95% interval {low:.2f} to {high:.2f})" in text
    momentum = _row("failures.csv", "cifar100_fine", "momentum")
    assert momentum["search runs"] == momentum["search at chance"] and momentum["final at chance"] == "3"
    finals = [
        run.test_accuracy for trial, run in RUNS.items() if trial.dataset == "cifar100_fine" and run.test_accuracy
    ]
    assert 0.12 < max(finals) < 0.13


def test_the_trainers_table_of_group_norm_is_what_was_recorded():
    readme = (ROOT / "train" / "README.md").read_text()
    with open(ROOT / "notebooks" / "comparison" / "norm.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    for optimizer in ("gravity", "adam", "momentum"):
        cells = []
        for epoch in ("5", "25"):
            for norm in ("none", "group"):
                wanted = (norm, optimizer, epoch)
                cell = [run for run in runs if (run["norm"], run["optimizer"], run["epoch"]) == wanted]
                assert sorted(run["seed"] for run in cell) == list("01234")
                accuracies = [float(run["val_accuracy"]) for run in cell]
                cells.append(f"{np.mean(accuracies):.3f} ± {np.std(accuracies, ddof=1):.3f}")
        assert f"| {optimizer} | {' | '.join(cells)} |" in readme


def _row(name, *wanted):
    """The row of a dataset and an optimizer in a table of the report."""
    with open(REPORT / name, newline="") as file:
        (found,) = [row for row in csv.DictReader(file) if (row["dataset"], row["optimizer"]) == wanted]
    return found
