"""`--sampler qmc`: the spaces and their points, the runs that a search makes of them, and invalid flags."""

import math
import pathlib

import numpy as np
import pytest
from scipy.stats import qmc

from fake_outcomes import only, work_through
from lab import comparing, evidence, frames, page, runs, search, spaces
from trainer import optimizers
from trainer.config import default_learning_rate

ROOT = pathlib.Path(__file__).parents[2]


def points(optimizer, count, rate=0.1, epochs=8):
    found = [spaces.point(optimizer, rate, epochs, index) for index in range(count)]
    return [{"learning_rate": rate} | spaces.settings_of(text) for rate, text in found]


def score(trial):
    """Highest at 0.2 with little weight decay."""
    return 1 / (1 + abs(math.log10(trial.learning_rate / 0.2))) - spaces.settings_of(trial.point)["weight_decay"]


def test_the_sequence_is_scipys():
    expected = qmc.Halton(len(spaces.BASES), scramble=False).random(50)
    found = [[spaces.radical_inverse(index, base) for base in spaces.BASES] for index in range(50)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_first_points_are_these():
    """By hand: halves of three decades of the rate, thirds of two of 1 - beta, fifths of three of the weight decay."""
    expected = [
        (0.1, 1 - 0.005 * 100 ** (1 / 3), 1e-4 * 1000 ** (1 / 5), 0),
        (0.1 / 30 * 900 ** (1 / 4), 1 - 0.005 * 100 ** (2 / 3), 1e-4 * 1000 ** (2 / 5), 0),
        (0.1 / 30 * 900 ** (3 / 4), 1 - 0.005 * 100 ** (1 / 9), 1e-4 * 1000 ** (3 / 5), 0.05 * 8),
    ]
    for found, values in zip(points("gravity", 3), expected, strict=True):
        names = ("learning_rate", "beta", "weight_decay", "warmup_epochs")
        assert found == pytest.approx(dict(zip(names, values, strict=True)), rel=1e-3)


@pytest.mark.parametrize("optimizer", spaces.SPACES)
def test_points_fill_the_space_and_are_what_the_optimizer_takes(optimizer):
    space, found = spaces.SPACES[optimizer], points(optimizer, 105)
    ends = {"learning_rate": (0.1 / 30, 3.0), "weight_decay": space.weight_decay}
    if space.beta:
        ends |= {space.beta: tuple(1 - end for end in space.one_minus_beta)}
    assert {frozenset(each) for each in found} == {frozenset({*ends, "warmup_epochs"})}
    for name, (low, high) in ends.items():
        shares = [math.log(each[name] / low) / math.log(high / low) for each in found]
        assert 0 <= min(shares) <= max(shares) <= 1
        assert name == space.beta or min(shares) < 0.05 < 0.95 < max(shares)
    warmups = [each["warmup_epochs"] for each in found]
    assert {each: warmups.count(each) for each in set(warmups)} == {0: 37, 0.4: 34, 1.6: 34}
    if space.beta not in (None, "beta"):
        optimizers.make(optimizer, 0.1, **{space.beta: found[0][space.beta]})


def test_the_recorded_searches_of_vggs_chose_rates_within_a_decade_of_the_trainers():
    factors = [
        trial.learning_rate / default_learning_rate(trial.dataset, trial.model, trial.optimizer.split(",")[0])
        for file in (ROOT / "notebooks").glob("*/runs.csv")
        for trial in runs.read(file)
        if trial.part == "final" and trial.model.startswith("vgg")
    ]
    assert len(factors) > 100 and max(abs(math.log10(factor)) for factor in factors) < 1.001


def test_the_readme_shows_the_spaces():
    readme = (ROOT / "train" / "lab" / "README.md").read_text()
    for optimizer, space in spaces.SPACES.items():
        (row,) = [line for line in readme.splitlines() if line.startswith(f"| {optimizer} |")]
        low, high = space.one_minus_beta
        average = f"{low:g} to {high:g} (`{space.beta}`)" if space.beta else "none"
        assert row == f"| {optimizer} | {average} | {space.weight_decay[0]:g} to {space.weight_decay[1]:g} |"
    assert "a thirtieth of the trainer's to thirty times it" in " ".join(readme.split())
    assert spaces.RATES == (1 / 30, 30) and spaces.WARMUPS == (0, 0.05, 0.2)


def test_every_optimizer_is_searched_over_as_many_points_and_measured_at_its_best_and_more_trials_extend_that():
    flags = {"optimizers": ("gravity", "adam"), "sampler": "qmc", "search_seeds": 2, "seeds": 3}
    one = only(**flags, trials=6)
    made, outcomes = work_through(one, score)
    assert len(made) == 2 * 6 * 2 + 2 * 3 and len(search.undecided(one, {})) == 6
    for name, centre in (("gravity", 0.1), ("adam", 2.5e-4)):
        searched = [t for t in made if (t.optimizer, t.part) == (name, "search")]
        expected = [spaces.point(name, centre, 8, index) for index in range(6)]
        assert [(t.learning_rate, t.point) for t in searched] == [point for point in expected for _ in range(2)]
        finals = {(t.learning_rate, t.point) for t in made if (t.optimizer, t.part) == (name, "final")}
        best = max(searched, key=score)
        assert finals == {(best.learning_rate, best.point)}
    assert {trial.settings for trial in made} == {"sampler=qmc"}
    more, _ = work_through(only(**flags, trials=9), score, outcomes)
    assert not set(more) & set(made) and len([t for t in more if t.part == "search"]) == 2 * 3 * 2


def test_a_run_without_a_point_has_the_name_that_it_had_before_there_were_points():
    trial = search.known(only(sampler="qmc", trials=1), {})[0]
    assert "point" not in runs.name(trial._replace(point="")) and '"point": "beta=' in runs.name(trial)


def test_the_listing_and_the_report_show_points_and_keep_both_kinds_of_search_apart(tmp_path):
    flags = {"optimizers": ("gravity", "adam"), "search_seeds": 1, "seeds": 2}
    _, outcomes = work_through(only(**flags, sampler="qmc", trials=3), score)
    rates = work_through(only(**flags), lambda trial: 0.5)[1]
    both = rates | outcomes
    runs.write(tmp_path / "runs.csv", both)
    assert list(runs.read(tmp_path / "runs.csv")) == list(both)
    listed = comparing.TrialWorker(tmp_path, None, [only(**flags, sampler="qmc", trials=3)], write=False).listing()
    first = "gravity 0.1 beta=0.976792 warmup_epochs=0 weight_decay=0.000398107 0 search done: validation accuracy"
    assert first in " ".join(listed.split())
    assert "10 runs: 10 done;" in listed
    found, _ = frames.of_comparison(both)
    standings = evidence.standings(found)
    assert [*standings["network"].str.endswith("sampler=qmc")] == [False, False, True, True]
    assert [bool(point) for point in standings["point"]] == [False, False, True, True]
    assert len(evidence.plateaus(found)) == 2 and len(evidence.rate_scores(found)) == 2 * 5 + 2 * 3
    text = page.write_comparison(tmp_path, both).read_text()
    assert "or over quasi-random points of the space in train/lab/spaces.py" in text and "beta=0.976792" in text
    assert "point" not in evidence.standings(frames.of_comparison(rates)[0])
