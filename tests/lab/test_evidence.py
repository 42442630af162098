"""The numbers and the page of a comparison's report, from runs whose answers are worked out by hand."""

import math

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from lab import evidence, figures, frames, inference, page
from lab.rules import PLATEAU, RULES, chance_level
from lab.runs import Outcome, Trial

# Mean validation accuracy over the search's learning rates, and test accuracies of the final runs.
SEARCH = {"gravity": {0.1: 0.3, 0.03162: 0.8, 0.01: 0.74, 0.003162: 0.7}, "adam": {1e-4: 0.5, 3.162e-4: 0.6}}
TEST = {"gravity": (0.8, 0.7, 0.9), "adam": (0.65, 0.7, 0.6)}


def trial(optimizer, rate, seed, part, dataset="cifar10", **others):
    return Trial(dataset, "vgg16", optimizer, rate, seed, part, 3, 0.125, 64, None, "")._replace(**others)


def outcome(*accuracies, test=None, classes=10, losses=(2.0, 1.0, 0.5)):
    return Outcome(classes, 45_000, 5_000, 10_000, losses, accuracies, test)


def study(search=SEARCH, test=TEST, dataset="cifar10", classes=10):
    """A comparison's runs; final runs at the best rate pass 0.2, 0.4 and their test accuracy on the validation part."""
    found = {}
    for name, scores in search.items():
        for rate, mean in scores.items():
            for seed, shift in enumerate((-0.02, 0.02)):
                found[trial(name, rate, seed, "search", dataset)] = outcome(0.1, 0.2, mean + shift, classes=classes)
    for name, values in test.items():
        best = max(search[name], key=search[name].get)
        for seed, value in enumerate(values, 100):
            accuracies = (0.2, 0.4, value)
            found[trial(name, best, seed, "final", dataset)] = outcome(*accuracies, test=value, classes=classes)
    return found


def table(name, found):
    return getattr(evidence, name)(frames.of_comparison(found)[0])


def rows(name, found):
    """By optimizer."""
    return {row["optimizer"]: row for row in table(name, found).to_dict("records")}


def test_an_interval_covers_the_truth_nearly_as_often_as_it_says():
    """With three seeds each, of two optimizers and, as in `growths`, of four. A bootstrap has 81 and 85%."""
    rng = np.random.default_rng(1)
    for means in ((1, 0), (1, 0, 0, 1)):
        signs, hits = (1, -1, -1, 1), 0
        truth = sum(sign * mean for sign, mean in zip(signs, means, strict=False))
        for _ in range(1000):
            drawn = [rng.normal(mean, spread, 3) for mean, spread in zip(means, (1, 2, 1, 3), strict=False)]
            found = inference.welch(*drawn, signs=signs[: len(drawn)])
            hits += found["from"] <= truth <= found["to"]
        assert 935 <= hits <= 985


def test_runs_that_all_end_alike_have_an_interval_of_no_width_and_one_seed_has_none():
    alike = inference.welch(np.full(3, 0.1), np.full(3, 0.3))
    assert [alike[name] for name in ("from", "to", "p", "p_equivalent")] == pytest.approx([-0.2, -0.2, 0, 1])
    row = rows("standings", study(test={"gravity": (0.8,), "adam": (0.7, 0.6)}))["gravity"]
    assert np.isnan([row["deviation"], row["from"], row["to"]]).all() and row["minus adam"] == pytest.approx(0.15)
    alone = rows("standings", study(search={"gravity": SEARCH["gravity"]}, test={"gravity": (0.8, 0.7)}))
    assert math.isnan(alone["gravity"]["minus adam"])


def test_the_plateau_is_what_reaches_the_share_of_the_best_without_a_gap():
    gapped = {"gravity": {0.01: 0.8, 0.03162: 0.1, 0.1: 0.8, 0.3162: 0.81, 1.0: 0.79}}
    found = [rows("plateaus", study())[name] for name in ("gravity", "adam")]
    found.append(rows("plateaus", study(search=gapped, test={}))["gravity"])
    names = ("rates tried", "best rate", "from", "to", "decades", "open end")
    assert PLATEAU == 0.9 and [tuple(row[name] for name in names) for row in found] == [
        (4, 0.03162, 0.01, 0.03162, 0.5, ""),  # 0.74 counts, 0.7 does not
        (2, 3.162e-4, 3.162e-4, 3.162e-4, 0.0, "above"),
        (5, 0.3162, 0.1, 1.0, 1.0, "above"),
    ]


def test_runs_at_chance_and_diverged_are_counted():
    found, level = study(), chance_level(10, 5_000)
    assert level == pytest.approx(0.1 + 3 * math.sqrt(0.1 * 0.9 / 5_000))
    first, second = [*found][:2]
    found[first], found[second] = outcome(0.1, level, 0.09), outcome(0.1, level + 1e-6, 0.09)
    final = next(trial for trial in found if trial.part == "final")
    found[final] = outcome(0.5, 0.1, 0.1, test=0.1, losses=(2.0, math.nan, math.nan))
    counts = {name: [*row.values()][-6:] for name, row in rows("failures", found).items()}
    assert counts == {"gravity": [8, 1, 0, 3, 0, 1], "adam": [4, 0, 0, 3, 0, 0]}


def many_classes(shift, spread=0.001):
    """CIFAR-10 and CIFAR-100: Gravity's lead over Adam is 0.15 on the former and 0.15 + shift on the latter."""
    values = lambda mean: (mean - spread, mean, mean + spread)
    few = study(test={"gravity": values(0.8), "adam": values(0.65)})
    test = {"gravity": values(0.8 + shift), "adam": values(0.65)}
    many = study(test=test, dataset="cifar100_fine", classes=100)
    return {t._replace(epochs=RULES["cifar100_fine"].epochs): o for t, o in many.items()} | few


def test_leads_are_compared_only_between_runs_made_alike():
    found = many_classes(0.05)
    assert len(table("growths", found)) == 1
    for other in ({"epochs": 4}, {"width": 0.5}, {"limit": 100}):
        changed = {t._replace(**other) if t.dataset == "cifar10" else t: o for t, o in found.items()}
        assert table("growths", changed).empty
    leads = table("leads", found)
    assert [*leads["classes"]] == [10, 100] and [*leads["lead"]] == pytest.approx([0.15, 0.2])


@pytest.mark.parametrize(
    ("shift", "spread", "answer"),
    [(0.05, 0.001, "yes"), (-0.05, 0.001, "no, it shrinks"), (0.01, 0.1, "not shown: the interval contains 0")],
)
def test_the_abstracts_question_is_answered_by_the_interval(shift, spread, answer):
    (row,) = table("growths", many_classes(shift, spread)).to_dict("records")
    assert (row["few"], row["many"], row["over"]) == ("cifar10", "cifar100_fine", "adam")
    assert row["network"] == "vgg16 x 0.125, 3 epochs and vgg16 x 0.125, 5 epochs"
    assert row["change"] == pytest.approx(shift, abs=1e-6)
    assert row["from"] < row["change"] < row["to"] and row["answer"] == answer
    assert evidence.answer(math.nan, math.nan) == "cannot be said from one seed"


def test_other_epochs_or_widths_are_another_comparison():
    found = study() | {t._replace(width=0.25): o for t, o in study().items()}
    assert len(table("standings", found)) == 4 and table("standings", found)["network"].nunique() == 2


def test_the_report_holds_every_table_and_the_figure(tmp_path):
    found = many_classes(0.05)
    assert page.write_comparison(tmp_path, found) == tmp_path / "report.html"
    text = (tmp_path / "report.md").read_text()
    assert "| cifar10 | vgg16 x 0.125, 3 epochs | 10 | gravity | 0.03162 | 3 | 0.8 | 0.001 | 0.15 |" in text
    assert "| yes |" in text
    for name in (table.__name__ for table in evidence.TABLES):
        read = pd.read_csv(tmp_path / "report" / f"{name}.csv")
        assert [*read.columns] == [*table(name, found).columns] and len(read) == len(table(name, found)) > 0
    picture = matplotlib.image.imread(tmp_path / "report" / "comparison.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 10
    half = {trial: o for trial, o in study().items() if trial.part == "search" and trial.optimizer == "adam"}
    page.write_comparison(tmp_path, half)
    text = (tmp_path / "report.md").read_text()
    assert "4 search runs, 0 final runs" in text and "Test accuracy at the best learning rate" not in text


def test_the_figure_draws_the_scores_the_curves_and_each_seed():
    rates, epochs, test = figures.draw_comparison(*frames.of_comparison(study())).axes
    lines = {line.get_color(): line for line in rates.get_lines()}
    np.testing.assert_allclose(lines["#000000"].get_ydata(), [0.7, 0.74, 0.8, 0.3])
    assert rates.get_xscale() == "log"
    np.testing.assert_allclose(epochs.get_lines()[0].get_ydata(), [0.2, 0.4, 0.8])
    np.testing.assert_allclose(test.get_lines()[0].get_xdata(), TEST["gravity"])
