"""Which runs a comparison makes: the search over learning rates, widened at an edge, and the final runs."""

import math

from fake_outcomes import only, work_through
from lab import search


def peaked_at(rates):
    """An accuracy that is highest at that learning rate of each optimizer."""
    return lambda trial: 1 / (1 + abs(math.log10(trial.learning_rate / rates[trial.optimizer])))


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


def test_final_runs_whose_rate_is_not_known_yet_are_told_apart():
    one = only(optimizers=("gravity", "adam"), search_seeds=2, seeds=3)
    assert [(t.optimizer, t.seed) for t in search.undecided(one, {})] == [
        (name, seed) for seed in (100, 101, 102) for name in ("gravity", "adam")
    ]
    made, outcomes = work_through(one, peaked_at({"gravity": 0.1, "adam": 2.5e-4}))
    assert search.undecided(one, outcomes) == [] and len(made) == len(search.known(one, outcomes)) == 2 * 5 * 2 + 6
    one_more = only(optimizers=("gravity", "adam", "nadam"), search_seeds=2, seeds=3)
    assert {t.optimizer for t in search.undecided(one_more, outcomes)} == {"nadam"}
    assert set(made) < set(search.known(one_more, outcomes))
