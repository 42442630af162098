"""The numbers and pages of a comparison's report, from runs whose answers are worked out by hand."""

import csv
import dataclasses
import math

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from comparison import evidence, writeup
from comparison.evidence import Growth
from comparison.ledger import Outcome, Trial
from comparison.rules import PLATEAU, RULES, chance_level
from trainer.config import UserError

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


def by_optimizer(rows):
    return {row.optimizer: row for row in rows}


def test_the_standing_is_mean_deviation_and_difference_from_adams():
    rows = by_optimizer(evidence.standings(study()))
    gravity, adam = rows["gravity"], rows["adam"]
    assert (gravity.learning_rate, adam.learning_rate) == (0.03162, 3.162e-4)
    assert (gravity.seeds, gravity.classes) == (3, 10)
    assert gravity.test_accuracy == pytest.approx(0.8) and gravity.deviation == pytest.approx(0.1)
    assert gravity.minus_adam == pytest.approx(0.15)
    assert (adam.minus_adam, adam.from_, adam.to) == (None, None, None)


def test_the_interval_is_welchs():
    ours, theirs = (np.array(TEST[name]) for name in ("gravity", "adam"))
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(evidence.interval([(1, ours), (-1, theirs)]), expected, atol=1e-6)
    row = by_optimizer(evidence.standings(study()))["gravity"]
    assert (row.from_, row.to) == evidence.interval([(1, ours), (-1, theirs)])


def test_an_interval_covers_the_truth_nearly_as_often_as_it_says():
    """With three seeds each, of two optimizers and, as in `growths`, of four. A bootstrap has 81 and 85%."""
    rng = np.random.default_rng(1)
    for means in ((1, 0), (1, 0, 0, 1)):
        signs, hits = (1, -1, -1, 1), 0
        truth = sum(sign * mean for sign, mean in zip(signs, means, strict=False))
        for _ in range(1000):
            drawn = [rng.normal(mean, spread, 3) for mean, spread in zip(means, (1, 2, 1, 3), strict=False)]
            low, high = evidence.interval(list(zip(signs, drawn, strict=False)))
            hits += low <= truth <= high
        assert 935 <= hits <= 985


def test_runs_that_all_end_alike_have_an_interval_of_no_width():
    assert evidence.interval([(1, np.full(3, 0.1)), (-1, np.full(3, 0.3))]) == (-0.2, -0.2)


def test_one_seed_has_no_deviation_and_no_interval():
    row = by_optimizer(evidence.standings(study(test={"gravity": (0.8,), "adam": (0.7, 0.6)})))["gravity"]
    assert (row.deviation, row.from_, row.to) == (None, None, None)
    assert row.minus_adam == pytest.approx(0.15)


def test_without_adam_there_is_no_difference():
    (row,) = evidence.standings(study(search={"gravity": SEARCH["gravity"]}, test={"gravity": (0.8, 0.7)}))
    assert row.minus_adam is None


def test_the_accuracy_over_learning_rate_is_in_order_with_means():
    rows = [row for row in evidence.rate_scores(study()) if row.optimizer == "gravity"]
    assert [row.learning_rate for row in rows] == [0.003162, 0.01, 0.03162, 0.1]
    np.testing.assert_allclose([row.validation_accuracy for row in rows], [0.7, 0.74, 0.8, 0.3])
    np.testing.assert_allclose([row.deviation for row in rows], 0.04 / math.sqrt(2))
    assert {row.seeds for row in rows} == {2}


def test_the_plateau_is_what_reaches_the_share_of_the_best_without_a_gap():
    assert PLATEAU == 0.9
    rows = by_optimizer(evidence.plateaus(study()))
    gravity, adam = rows["gravity"], rows["adam"]
    assert (gravity.best_rate, gravity.from_, gravity.to) == (0.03162, 0.01, 0.03162)  # 0.74 counts, 0.7 does not
    assert (gravity.decades, gravity.open_end, gravity.rates_tried) == (0.5, "", 4)
    assert (adam.from_, adam.to, adam.open_end) == (3.162e-4, 3.162e-4, "above")
    gapped = {"gravity": {0.01: 0.8, 0.03162: 0.1, 0.1: 0.8, 0.3162: 0.81, 1.0: 0.79}}
    (row,) = evidence.plateaus(study(search=gapped, test={}))
    assert (row.from_, row.to, row.decades, row.open_end) == (0.1, 1.0, 1.0, "above")


def test_epochs_to_the_target_are_a_mean_only_if_every_seed_reached_it():
    assert 0.2 < RULES["cifar10"].target <= 0.4
    rows = by_optimizer(evidence.to_target(study()))
    assert (rows["gravity"].epochs, rows["gravity"].reached) == (2.0, 3)
    found = study()
    last = next(trial for trial in reversed(found) if trial.optimizer == "adam")
    found[last] = outcome(0.1, 0.1, 0.1, test=0.1)
    row = by_optimizer(evidence.to_target(found))["adam"]
    assert (row.epochs, row.reached, row.seeds) == (None, 2, 3)


def test_chance_is_three_standard_errors_above_an_equal_share():
    assert chance_level(10, 5_000) == pytest.approx(0.1 + 3 * math.sqrt(0.1 * 0.9 / 5_000))
    level = chance_level(10, 5_000)
    assert evidence.at_chance(outcome(0.1, level, 0.09))
    assert not evidence.at_chance(outcome(0.1, level + 1e-6, 0.09))


def test_runs_at_chance_and_diverged_are_counted():
    found = study()
    first = next(iter(found))
    found[first] = outcome(0.1, 0.1, 0.1)
    final = next(trial for trial in found if trial.part == "final")
    found[final] = outcome(0.5, 0.1, 0.1, test=0.1, losses=(2.0, math.nan, math.nan))
    rows = by_optimizer(evidence.failures(found))
    assert dataclasses.astuple(rows["gravity"])[3:] == (8, 1, 0, 3, 0, 1)
    assert dataclasses.astuple(rows["adam"])[3:] == (4, 0, 0, 3, 0, 0)


def many_classes(shift, spread=0.001):
    """CIFAR-10 and CIFAR-100: Gravity's lead over Adam is 0.15 on the former and 0.15 + shift on the latter."""
    shifts = (-spread, 0.0, spread)
    few = study(test={"gravity": [0.8 + s for s in shifts], "adam": [0.65 + s for s in shifts]})
    values = {"gravity": [0.8 + shift + s for s in shifts], "adam": [0.65 + s for s in shifts]}
    many = study(test=values, dataset="cifar100_fine", classes=100)
    return {t._replace(epochs=RULES["cifar100_fine"].epochs): o for t, o in many.items()} | few


def test_leads_are_compared_only_between_runs_made_alike():
    assert len(evidence.growths(many_classes(0.05))) == 1
    longer = {t._replace(epochs=4 if t.dataset == "cifar10" else t.epochs): o for t, o in many_classes(0.05).items()}
    wider = {t._replace(width=0.5 if t.dataset == "cifar10" else t.width): o for t, o in many_classes(0.05).items()}
    assert evidence.growths(longer) == evidence.growths(wider) == []


@pytest.mark.parametrize(
    ("shift", "spread", "answer"),
    [
        (0.05, 0.001, "yes"),
        (-0.05, 0.001, "no, it shrinks"),
        (0.01, 0.1, "not shown: the interval contains 0"),
    ],
)
def test_the_abstracts_question_is_answered_by_the_interval(shift, spread, answer):
    (row,) = evidence.growths(many_classes(shift, spread))
    assert (row.few, row.many, row.over) == ("cifar10", "cifar100_fine", "adam")
    assert row.network == "vgg16 x 0.125, 3 epochs and vgg16 x 0.125, 5 epochs"
    assert row.change == pytest.approx(shift, abs=1e-6)
    assert row.from_ < row.change < row.to
    assert row.answer == answer


def test_one_seed_answers_nothing():
    assert Growth("cifar10", "cifar100_fine", "vgg16", "adam", 0.1, None, None).answer == "cannot be said from one seed"


def test_leads_come_by_the_number_of_classes():
    rows = evidence.leads(many_classes(0.05))
    assert [(row.classes, row.over) for row in rows] == [(10, "adam"), (100, "adam")]
    assert [row.lead for row in rows] == pytest.approx([0.15, 0.2])


def test_other_epochs_or_widths_are_another_comparison():
    found = study() | {t._replace(epochs=3, width=0.25): o for t, o in study().items()}
    assert len(evidence.setups(found)) == 2
    assert len(evidence.standings(found)) == 4
    assert len({row.network for row in evidence.standings(found)}) == 2


def test_the_report_holds_every_table_and_the_figure(tmp_path):
    found = many_classes(0.05)
    page = writeup.write(tmp_path, found).read_text()
    assert "| cifar10 | vgg16 x 0.125, 3 epochs | 10 | gravity | 0.03162 | 3 | 0.8 | 0.001 | 0.15 |" in page
    assert "| yes |" in page and "Krizhevsky" in page and "Zalando" not in page
    for name in ("standings", "leads", "growths", "plateaus", "rate_scores", "to_target", "failures"):
        with (tmp_path / "report" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(getattr(evidence, name)(found)) > 0
        assert all(None not in row and None not in row.values() for row in rows)
    picture = matplotlib.image.imread(tmp_path / "report" / "comparison.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 10


def test_the_figure_draws_the_scores_the_curves_and_each_seed():
    figure = writeup.draw(study())
    rates, epochs, test = figure.axes
    lines = {line.get_color(): line for line in rates.get_lines()}
    np.testing.assert_allclose(lines["#000000"].get_ydata(), [0.7, 0.74, 0.8, 0.3])
    assert rates.get_xscale() == "log"
    np.testing.assert_allclose(epochs.get_lines()[0].get_ydata(), [0.2, 0.4, 0.8])
    np.testing.assert_allclose(test.get_lines()[0].get_xdata(), TEST["gravity"])


def test_a_half_done_comparison_is_reported_too(tmp_path):
    found = {trial: o for trial, o in study().items() if trial.part == "search" and trial.optimizer == "adam"}
    page = writeup.write(tmp_path, found).read_text()
    assert "4 runs to search, 0 final ones" in page and writeup._TITLES["standings"] not in page


def test_without_runs_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        writeup.write(tmp_path, {})
