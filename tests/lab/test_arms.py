"""The studies: their plans, their statistics beside SciPy's and values by hand, and their tables."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from lab import arms, frames, inference, page, studies
from lab.laboratory import split
from lab.options import CompareOptions, comparisons, label_of
from lab.runs import Outcome, Trial
from trainer import data
from trainer.config import UsageError

COSINE = "schedule=cosine warmup_epochs=0.5"
TEST = {
    "momentum": (0.95, 0.96, 0.955, 0.951),
    "Gravity": (0.952, 0.961, 0.957, 0.95),
    "from rest": (0.90, 0.93, 0.91, 0.92),
}


def study(test=TEST, model="mlp", settings=COSINE, lost=()):
    """Runs of a cell: the search has three rates, the middle one best; `lost` are arms whose first run fails."""
    found = {}
    for arm, accuracies in test.items():
        name = label_of(studies.ARMS[arm][0])
        trial = Trial("digits", model, name, 0.1, 0, "search", 3, 0.125, 32, None, settings)
        for rate, score in ((0.01, 0.5), (0.1, 0.7 + 0.01 * len(arm)), (1.0, 0.6)):
            found[trial._replace(learning_rate=rate)] = outcome(0.2, 0.3, score)
        for seed, accuracy in enumerate(accuracies):
            bad = arm in lost and seed == 0
            curve = (0.1, 0.1, 0.1) if bad else (0.5, 0.85, accuracy)
            found[trial._replace(part="final", seed=100 + seed)] = outcome(*curve, test=accuracy)
    return found


def outcome(*accuracies, test=None, losses=(2.0, 1.0, 0.5)):
    return Outcome(10, 1294, 143, 360, losses, accuracies, test)


def rows(found):
    return {row["arm"]: row for row in arms.cells(frames.of_comparison(found)[0], studies.ARMS).to_dict("records")}


# The plan


def test_every_arm_setting_and_schedule_meets_every_workload_once():
    options = CompareOptions("unused", study="ablation", datasets=("digits", "cifar10"))
    plan = [c for flags in studies.expanded(options) for c in comparisons(flags)]
    cells = {}
    for comparison in plan:
        config = comparison.config
        key = config.dataset, config.model, comparison.settings
        assert not cells.setdefault(key, set()) & set(comparison.entrants)
        cells[key] |= set(comparison.entrants)
        assert (comparison.candidates, len(comparison.search_seeds)) == (7, 3)
        assert len(comparison.seeds) == (10 if config.dataset == "digits" else 5)
        assert (config.limit, config.width) == (None if config.dataset == "digits" else 15_000, 0.125)
    assert len(cells) == 2 + 3 * 2 * 3
    assert all(names == {*studies.entrants_of(studies.ARMS)} for names in cells.values())
    assert len([c for c in plan if c.config.dataset == "digits"]) == len(
        studies.expanded(CompareOptions("unused", study="ablation"))
    )


def test_the_noise_of_momentum_is_what_v0_adds_to_a_weight_in_all():
    """As studies.py says, of alpha 0.01: at a constant rate (with both counts), and in a warm-up of 20 updates."""
    added = {}
    for first_step, warmup in ((1, 0), (1, 20), (0, 0)):
        weight, total = 1.0, 0.0
        for k in range(1000):
            t = first_step + k
            weight *= (0.9 * t + 1) / (t + 2)
            total += weight * (min(1, k / warmup) if warmup else 1)
        added[first_step, warmup] = total
    assert studies.ARMS["momentum, V_0's noise"][0].endswith(f"={0.01 * added[1, 0]:.4f}")
    assert studies.START_ARMS["Adam, V_0's noise"][0].endswith(f"={0.01 * added[0, 0]:.4f}")
    assert f"normal noise of {added[1, 0]:.2f} alpha" in " ".join(studies.__doc__.split())
    assert f"{added[1, 20]:.1f} alpha remain" in " ".join(studies.__doc__.split())


def test_a_flag_that_the_study_sets_is_refused_beside_it():
    with pytest.raises(UsageError, match=r"^--epochs is 3, which --study ablation sets: leave one out\.$"):
        studies.expanded(CompareOptions("unused", study="ablation", epochs=3))


@pytest.mark.parametrize(
    ("study", "datasets", "runs"),
    [
        ("width", ("digits", "cifar10"), 551),
        ("baselines", ("cifar10",), 200),
        ("baselines-gpu", ("cifar10", "cifar100_fine"), 240),
        ("start", ("cifar100_fine",), 42),
    ],
)
def test_the_other_studies_have_as_many_runs_as_they_say(study, datasets, runs):
    options = CompareOptions("unused", study=study, datasets=datasets)
    plan = [c for flags in studies.expanded(options) for c in comparisons(flags)]
    assert runs == sum(len(c.entrants) * (c.candidates * len(c.search_seeds) + len(c.seeds)) for c in plan)
    assert study in ("width", "baselines") or f"{runs} runs that need a" in " ".join(studies.__doc__.split())
    known = studies.entrants_of(studies.STUDIES[study].arms)
    assert {name for c in plan for name in c.entrants} == known.keys()
    with pytest.raises(UsageError, match=rf"--datasets is mnist, on which --study {study} has nothing; it has "):
        studies.expanded(dataclasses.replace(options, datasets=("mnist",)))


def test_an_alpha_in_proportion_keeps_full_widths_ratio_to_glorots_weights():
    for width in studies.WIDTHS["vgg16"]:
        fan = 9 * 512 * width  # of each side of a wide convolution
        deviation = (2 / (fan + fan)) ** 0.5
        assert studies.scaled_alpha(width) / deviation == pytest.approx(0.01 / (1 / (9 * 512)) ** 0.5, rel=5e-3)


def test_a_line_separates_the_digits_so_that_the_least_loss_of_softmax_regression_is_0():
    digits = data.load("digits")
    part, _ = split(len(digits.train_labels))
    images = digits.train_images[part].reshape(len(part), -1) / 255
    separates = LogisticRegression(C=1e6, max_iter=2000).fit(images, digits.train_labels[part])
    assert separates.score(images, digits.train_labels[part]) == 1


# The statistics


def test_welchs_test_and_interval_and_the_two_one_sided_tests_are_scipys():
    ours, theirs = np.array(TEST["from rest"]), np.array(TEST["momentum"])
    for a, b in ((ours, theirs), (ours, ours + 0.001)):
        got, expected = inference.welch(a, b), stats.ttest_ind(a, b, equal_var=False)
        assert (got["from"], got["to"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert (got["difference"], got["p"]) == pytest.approx((a.mean() - b.mean(), expected.pvalue))
        sides = ((a + 0.005, "greater"), (a - 0.005, "less"))
        one_sided = [stats.ttest_ind(c, b, equal_var=False, alternative=side).pvalue for c, side in sides]
        assert got["p_equivalent"] == pytest.approx(max(one_sided))


def test_holms_correction_is_that_of_his_example():
    assert [*inference.holm(pd.Series([0.01, 0.04, 0.03, 0.005]))] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [*inference.holm(pd.Series([0.9, 0.8]))] == [1.0, 1.0]
    corrected = inference.holm(pd.Series([math.nan, 0.02, 0.03]))
    assert math.isnan(corrected[0]) and [*corrected[1:]] == pytest.approx([0.04, 0.04])


def test_the_permutation_test_is_that_of_all_exchanges_within_the_strata():
    first = np.array([0.9, 0.92, 0.91]), np.array([0.88, 0.905, 0.89])
    second = np.array([0.3, 0.36]), np.array([0.31, 0.25])

    def differences(ours, theirs):
        everyone = np.concatenate([ours, theirs])
        for chosen in itertools.combinations(range(len(everyone)), len(ours)):
            yield everyone[[*chosen]].mean() - np.delete(everyone, chosen).mean()

    every = np.array([a + b for a in differences(*first) for b in differences(*second)])
    observed = every[0]  # the first combination is the groups as they are
    exact = np.mean(np.abs(every) >= abs(observed) - 1e-12)
    difference, p = inference.permutation_test([first, second])
    assert difference == pytest.approx(observed / 2)
    assert 0.02 < exact < 0.5 and p == pytest.approx(exact, abs=0.006)  # four standard errors of 99,999 draws


# The tables


def test_a_row_has_loss_accuracy_steps_and_failures():
    row = rows(study(lost=("from rest",)))["from rest"]
    assert row["accuracy"] == pytest.approx(0.915) and row["accuracy_sd"] == pytest.approx(0.0129, abs=1e-4)
    assert (row["learning_rate"], row["inside"], row["seeds"], row["loss"]) == (0.1, True, 4, 0.5)
    assert (row["reached"], row["failed"]) == (3, 1) and math.isnan(row["steps_to_target"])
    low, high = stats.beta.ppf([0.025, 0.975], [1, 2], [4, 3])  # Clopper and Pearson's
    assert (row["failed_from"], row["failed_to"]) == pytest.approx((low, high))
    gravity = rows(study())["Gravity"]
    assert (gravity["reached"], gravity["steps_to_target"]) == (4, 2 * 41)
    assert gravity["p_holm"] == pytest.approx(gravity["p"])  # the larger of two
    assert rows(study())["from rest"]["p_holm"] == pytest.approx(2 * rows(study())["from rest"]["p"])


def test_a_cell_counts_only_where_momentum_trains_with_every_seed():
    found, _ = frames.of_comparison(study() | study(settings="", lost=("momentum",)))
    table = arms.cells(found, studies.ARMS)
    assert dict(zip(table["settings"], table["counts"], strict=True)) == {COSINE: True, "": False}
    pooled = {row["arm"]: row for row in arms.pooled(found, studies.ARMS).to_dict("records")}
    assert {row["cells"] for row in pooled.values()} == {1}
    assert pooled["from rest"]["minus_momentum"] == pytest.approx(0.915 - 0.954)
    both, _ = frames.of_comparison(study() | study(settings=""))
    pooled = {row["arm"]: row for row in arms.pooled(both, studies.ARMS).to_dict("records")}
    assert (pooled["Gravity"]["cells"], pooled["Gravity"]["runs"]) == (2, 8)
    assert pooled["from rest"]["p_holm"] < 0.01 < pooled["Gravity"]["p_holm"]


def test_of_an_arm_with_several_entrants_the_one_with_the_best_search_is_taken():
    found = study()
    for text, best in zip(studies.ARMS["m = k rms"], (0.8, 0.95, 0.9), strict=True):
        trial = Trial("digits", "mlp", label_of(text), 0.1, 0, "search", 3, 0.125, 32, None, COSINE)
        for rate, score in ((0.01, 0.5), (0.1, best), (1.0, 0.6)):
            found[trial._replace(learning_rate=rate)] = outcome(0.2, 0.3, score)
        for seed in range(4):
            found[trial._replace(part="final", seed=100 + seed)] = outcome(0.5, 0.9, 0.9, test=0.9)
    row = rows(found)["m = k rms"]
    assert (row["entrant"], row["seeds"]) == ("gravity, max_step_grad rms, max_step_grad_factor 3.0", 4)


def test_an_arm_whose_runs_are_not_done_has_no_row():
    found = study()
    last = [trial for trial in found if trial.part == "final"][-1]
    del found[last]
    assert rows(found).keys() == {"momentum", "Gravity"}
    assert not rows({trial: o for trial, o in found.items() if trial.part == "search"})


def test_the_report_holds_the_tables(tmp_path):
    found = study() | study(model="softmax", settings="", lost=("momentum",))
    page.write_study(tmp_path, found, "ablation")
    text = (tmp_path / "report.md").read_text()
    assert "## digits, mlp x 0.125, schedule=cosine warmup_epochs=0.5\n" in text
    assert "## digits, softmax x 0.125, as in the paper (momentum fails with some seed: " in text
    assert "\n| arm | 0.001 | 0.01 | 0.1 | 1 |\n" in text and "\n| Gravity | 0.5 | 0.5 | 0.5 |  |\n" in text
    for name, count in (("arms", 6), ("pooled", 2), ("rates", 18)):
        assert len(pd.read_csv(tmp_path / "report" / f"{name}.csv")) == count
