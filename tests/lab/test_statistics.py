"""The studies' plans; statistics beside SciPy's and values by hand; the tables and pages of comparisons and studies."""

import dataclasses
import itertools
import math
import pathlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fake_outcomes import entrant, outcome
from lab import arms, evidence, figures, frames, inference, page, studies
from lab.options import CompareOptions, label
from lab.rules import chance_level

LAB = pathlib.Path(studies.__file__).parent
PAGES = " ".join(" ".join((LAB / page).read_text() for page in ("README.md", "RESULTS.md")).split())
COSINE = "schedule=cosine warmup_epochs=0.5"
ARMS = {
    "momentum": (0.95, 0.96, 0.955, 0.951),
    "Gravity": (0.952, 0.961, 0.957, 0.95),
    "from rest": (0.90, 0.93, 0.91, 0.92),
}
RATES = {"gravity": {0.1: 0.3, 0.03162: 0.8, 0.01: 0.74, 0.003162: 0.7}, "adam": {1e-4: 0.5, 3.162e-4: 0.6}}
TEST = {"gravity": (0.8, 0.7, 0.9), "adam": (0.65, 0.7, 0.6)}


def comparison(rates=RATES, test=TEST, **fields):
    """Runs on CIFAR-10, or what the fields say."""
    made = [entrant(name, scores, test.get(name, ()), **fields) for name, scores in rates.items()]
    return {trial: run for runs in made for trial, run in runs.items()}


def cell(settings=COSINE, lost=()):
    """Runs of a cell of the ablation on the digits; `lost` are arms whose first final run diverges."""
    found, digits = {}, {"dataset": "digits", "model": "mlp", "batch_size": 32, "settings": settings}
    for arm, tested in ARMS.items():
        found |= entrant(label(studies.ARMS[arm][0]), {0.01: 0.5, 0.1: 0.7, 1.0: 0.6}, tested, **digits)
    for trial in found:
        if trial.optimizer in lost and trial.seed == 100:
            found[trial] = dataclasses.replace(found[trial], loss_by_epoch=(2.0, math.nan, math.nan))
    return found


def table(name, found):
    return getattr(evidence, name)(frames.of_comparison(found))


def by_optimizer(name, found):
    return {row["optimizer"]: row for row in table(name, found).to_dict("records")}


# The plans

RUNS_OF = {"ablation": 12 * (14 * (7 * 3 + 10) + 6 * (7 * 3 + 5)), "width": 551, "baselines": 200}
RUNS_OF |= {"baselines-gpu": 240, "start": 42}


@pytest.mark.parametrize(("study", "runs"), RUNS_OF.items())
def test_a_study_has_all_its_arms_and_as_many_runs_as_is_said(study, runs):
    options = CompareOptions("unused", study=study, datasets=("digits", "cifar10", "cifar100_fine"))
    plan = studies.plan(options)
    assert {name for one in plan for name in one.entrants} == studies.arm_of(studies.STUDIES[study].arms).keys()
    assert runs == sum(len(one.entrants) * (one.candidates * len(one.search_seeds) + len(one.seeds)) for one in plan)
    cells = [(one.config.dataset, one.config.model, one.config.width, one.settings) for one in plan]
    met = [(*cell, name) for cell, one in zip(cells, plan, strict=True) for name in one.entrants]
    assert len(met) == len({*met})
    assert f"{runs} runs that need a GPU" in PAGES or study not in ("baselines-gpu", "start")


def test_the_noise_of_momentum_is_what_v0_adds_to_a_weight_in_all():
    """Of alpha 0.01: at a constant rate (with both counts), and in a warm-up of 20 updates."""
    added = {}
    for first_step, warmup in ((1, 0), (1, 20), (0, 0)):
        steps = first_step + np.arange(1000)
        weights = np.cumprod((0.9 * steps + 1) / (steps + 2))
        added[first_step, warmup] = (weights * np.minimum(1, np.arange(1000) / warmup if warmup else 1)).sum()
    assert studies.ARMS["momentum, V_0's noise"] == (f"momentum:init_noise={0.01 * added[1, 0]:.4f}",)
    assert studies.START_ARMS["Adam, V_0's noise"] == (f"adam:init_noise={0.01 * added[0, 0]:.4f}",)
    assert f"normal noise of {added[1, 0]:.2f} alpha" in PAGES and f"{added[1, 20]:.1f} alpha remain" in PAGES
    assert f"$V_0$ adds {added[0, 0]:.2f} alpha" in PAGES


# The statistics


@pytest.mark.parametrize("b", [np.array(ARMS["momentum"]), np.array(ARMS["from rest"]) + 0.001])
def test_welchs_test_and_interval_and_the_two_one_sided_tests_are_scipys(b):
    a = np.array(ARMS["from rest"])
    got, expected = inference.welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert (got["from"], got["to"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (got["difference"], got["df"], got["p"]) == pytest.approx(((a - b).mean(), expected.df, expected.pvalue))
    sides = ((a + 0.005, "greater"), (a - 0.005, "less"))
    one_sided = [stats.ttest_ind(c, b, equal_var=False, alternative=side).pvalue for c, side in sides]
    assert got["p_equivalent"] == pytest.approx(max(one_sided))


def test_an_interval_of_four_groups_covers_the_truth_nearly_as_often_as_it_says():
    """As in `growths`, with three seeds each. A bootstrap's does in 85%."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(1000):
        drawn = [rng.normal(mean, spread, 3) for mean, spread in ((1, 1), (0, 2), (0, 1), (1, 3))]
        found = inference.welch(*drawn, signs=(1, -1, -1, 1))
        hits += found["from"] <= 2 <= found["to"]
    assert 935 <= hits <= 985


def test_holms_correction_is_that_of_his_example():
    assert [*inference.holm(pd.Series([0.01, 0.04, 0.03, 0.005]))] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [*inference.holm(pd.Series([0.9, 0.8]))] == [1.0, 1.0]
    assert [*inference.holm(pd.Series([np.nan, 0.02, 0.03]))] == pytest.approx([np.nan, 0.04, 0.04], nan_ok=True)


def test_the_permutation_test_is_that_of_all_exchanges_within_the_strata():
    values = np.array([0.9, 0.92, 0.91, 0.88, 0.905, 0.89, 0.3, 0.36, 0.31, 0.25])
    strata = ((values[:3], values[3:6]), (values[6:8], values[8:]))

    def differences(ours, theirs):
        everyone = np.concatenate([ours, theirs])
        for chosen in itertools.combinations(range(len(everyone)), len(ours)):
            yield everyone[[*chosen]].mean() - np.delete(everyone, chosen).mean()

    every = np.array([a + b for a, b in itertools.product(*(differences(*groups) for groups in strata))])
    observed = every[0]  # the first combination is the groups as they are
    exact = np.mean(np.abs(every) >= abs(observed) - 1e-12)
    difference, p = inference.permutation_test(strata)
    assert difference == pytest.approx(observed / 2)
    assert 0.02 < exact < 0.5 and p == pytest.approx(exact, abs=0.006)  # four standard errors of 99,999 draws


def test_runs_that_all_end_alike_have_an_interval_of_no_width_and_one_seed_has_none():
    alike = inference.welch(np.full(3, 0.1), np.full(3, 0.3))
    assert [alike[name] for name in ("from", "to", "p", "p_equivalent")] == pytest.approx([-0.2, -0.2, 0, 1])
    row = by_optimizer("standings", comparison(test={"gravity": (0.8,), "adam": (0.7, 0.6)}))["gravity"]
    assert np.isnan([row["deviation"], row["from"], row["to"]]).all() and row["minus adam"] == pytest.approx(0.15)
    (alone,) = table("standings", comparison({"gravity": RATES["gravity"]})).to_dict("records")
    assert math.isnan(alone["minus adam"])


# The tables of a study


def test_an_arm_whose_runs_are_not_done_has_no_row_and_a_cell_counts_only_where_momentum_trains(tmp_path):
    found = cell() | cell(settings="", lost=("momentum",))
    page.write_study(tmp_path, found, "ablation")
    text = " ".join((tmp_path / "report.md").read_text().split())
    assert "## digits, mlp x 0.125, schedule=cosine warmup_epochs=0.5 **" in text
    assert "## digits, mlp x 0.125, as in the paper (momentum fails with some seed: " in text
    assert " | arm | 0.001 | 0.01 | 0.1 | 1 | " in text and " | Gravity | 2 | 2 | 2 | | " in text
    written = {name: pd.read_csv(tmp_path / "report" / f"{name}.csv") for name in ("arms", "pooled", "rates")}
    assert [len(table) for table in written.values()] == [6, 2, 18]
    pooled = written["pooled"].set_index("arm")
    assert {*pooled["cells"]} == {1} and pooled["minus_momentum"]["from rest"] == pytest.approx(0.915 - 0.954)
    del found[[*cell()][-1]]  # a final run from rest
    rows = arms.cells(frames.of_comparison(found), studies.ARMS)
    assert [*rows["arm"]] == ["momentum", "Gravity", "momentum", "Gravity", "from rest"]
    searched = {trial: run for trial, run in found.items() if trial.part == "search"}
    assert arms.cells(frames.of_comparison(searched), studies.ARMS).empty


# The tables of a comparison


def test_only_the_final_runs_at_the_rate_that_was_chosen_last_count():
    finals = {trial: run for trial, run in comparison().items() if trial.part == "final"}
    earlier = {trial._replace(learning_rate=0.1): run for trial, run in finals.items() if trial.optimizer == "gravity"}
    assert table("standings", earlier | comparison()).equals(table("standings", comparison()))


def test_the_plateau_is_what_reaches_the_share_of_the_best_without_a_gap():
    gapped = {"gravity": {0.01: 0.8, 0.03162: 0.1, 0.1: 0.8, 0.3162: 0.81, 1.0: 0.79}}
    found = [*by_optimizer("plateaus", comparison()).values()]
    found += table("plateaus", comparison(gapped, {})).to_dict("records")
    names = ("rates tried", "best rate", "from", "to", "decades", "open end")
    assert [tuple(row[name] for name in names) for row in found] == [
        (4, 0.03162, 0.01, 0.03162, 0.5, ""),  # 0.74 counts, 0.7 does not
        (2, 3.162e-4, 3.162e-4, 3.162e-4, 0.0, "above"),
        (5, 0.3162, 0.1, 1.0, 1.0, "above"),
    ]


def test_runs_at_chance_and_diverged_are_counted():
    found, level = comparison(), chance_level(10, 100)
    assert level == pytest.approx(0.1 + 3 * math.sqrt(0.1 * 0.9 / 100))
    first, second, *_, final = (trial for trial in found if trial.optimizer == "gravity")
    found[first], found[second] = outcome(0.1, level, 0.09), outcome(0.1, level + 1e-6, 0.09)
    found[final] = outcome(0.5, 0.1, 0.1, test=0.1, losses=(2.0, math.nan, math.nan))
    counts = {name: [*row.values()][-6:] for name, row in by_optimizer("failures", found).items()}
    assert counts == {"gravity": [8, 1, 0, 3, 0, 1], "adam": [4, 0, 0, 3, 0, 0]}


def many_classes(shift, spread=0.001):
    """CIFAR-10 and CIFAR-100: Gravity's lead over Adam is 0.15 on the former and 0.15 + shift on the latter."""
    values = lambda mean: (mean - spread, mean, mean + spread)
    few, many = ({"gravity": values(0.8 + more), "adam": values(0.65)} for more in (0, shift))
    hundred = comparison(test=many, dataset="cifar100_fine", outcome=lambda *a, **b: outcome(*a, **b, classes=100))
    return {trial._replace(epochs=5): run for trial, run in hundred.items()} | comparison(test=few)


@pytest.mark.parametrize(
    ("shift", "spread", "answer"),
    [(0.05, 0.001, "yes"), (-0.05, 0.001, "no, it shrinks"), (0.01, 0.1, "not shown: the interval contains 0")],
)
def test_the_abstracts_question_is_answered_by_the_interval_between_runs_made_alike(shift, spread, answer):
    found = many_classes(shift, spread)
    (row,) = table("growths", found).to_dict("records")
    assert (row["few"], row["many"], row["over"]) == ("cifar10", "cifar100_fine", "adam")
    assert row["network"] == "vgg16 x 0.125, 3 epochs and vgg16 x 0.125, 5 epochs"
    assert row["change"] == pytest.approx(shift, abs=1e-6)
    assert row["from"] < row["change"] < row["to"] and row["answer"] == answer
    assert evidence.answer(math.nan, math.nan) == "cannot be said from one seed"
    leads = table("leads", found)
    assert [*leads["classes"]] == [10, 100] and [*leads["lead"]] == pytest.approx([0.15, 0.15 + shift])
    for other in ({"epochs": 4}, {"width": 0.5}, {"limit": 100}):
        changed = {t._replace(**other) if t.dataset == "cifar10" else t: o for t, o in found.items()}
        assert table("growths", changed).empty
        assert len(table("standings", found | changed)) == 6  # they are another comparison


def test_the_page_of_a_comparison_holds_every_table_and_the_figure_draws_scores_curves_and_seeds(tmp_path):
    found = many_classes(0.05)
    assert page.write_comparison(tmp_path, found) == tmp_path / "report.html"
    text = " ".join((tmp_path / "report.md").read_text().split())
    assert "| cifar10 | vgg16 x 0.125, 3 epochs | 10 | gravity | 0.03162 | 3 | 0.8 | 0.001 | 0.15 |" in text
    for name in (table.__name__ for table in evidence.TABLES):
        assert len(pd.read_csv(tmp_path / "report" / f"{name}.csv")) == len(table(name, found)) > 0
    assert (tmp_path / "report" / "comparison.png").stat().st_size > 10_000
    page.write_comparison(tmp_path, comparison({"adam": RATES["adam"]}, {}))
    text = " ".join((tmp_path / "report.md").read_text().split())
    assert "4 search runs, 0 final runs" in text and "Test accuracy at the best learning rate" not in text
    frame = frames.of_comparison(comparison())
    rates, epochs, test = figures.draw_comparison(frame).axes
    np.testing.assert_allclose(rates.get_lines()[0].get_ydata(), [0.7, 0.74, 0.8, 0.3])
    assert rates.get_xscale() == "log" and rates.get_lines()[0].get_color() == "#000000"
    np.testing.assert_allclose(epochs.get_lines()[0].get_ydata(), [0.2, 0.4, 0.8])
    np.testing.assert_allclose(test.get_lines()[0].get_xdata(), TEST["gravity"])
    first = frames.by_epoch(frame).query("optimizer == 'gravity' and seed == 100").to_dict("list")
    assert [first[name] for name in ("epoch", "loss", "validation_accuracy")] == [[1, 2, 3], [2] * 3, [0.2, 0.4, 0.8]]
