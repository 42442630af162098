"""The flags of compare.py, the comparisons that they make, and the answers to invalid ones."""

import dataclasses

import pytest

import compare
from fake_outcomes import only
from lab import search
from lab.options import CompareOptions, comparisons
from lab.rules import RULES
from trainer.config import TABLE_5, UsageError
from trainer.data import DATASETS


def test_without_flags_it_is_the_four_optimizers_on_the_digits():
    one = only()
    assert (one.config.dataset, one.config.model) == ("digits", "vgg11")
    rates = {"gravity": 0.1, "adam": 2.5e-4, "rmsprop": 1e-4, "momentum": 0.01}
    assert {name: config.learning_rate for name, config in one.entrants.items()} == rates


def test_every_dataset_has_a_rule_the_papers_the_same_but_for_the_epochs_and_the_papers_rates_in_the_middle():
    assert set(RULES) == set(DATASETS)
    assert len({dataclasses.replace(RULES[dataset], target=0.0, epochs=0) for dataset in TABLE_5}) == 1
    assert [RULES[dataset].epochs for dataset in TABLE_5] == [3, 3, 3, 5, 5]
    for one in comparisons(CompareOptions("unused", datasets=tuple(TABLE_5))):
        dataset = one.config.dataset
        assert [one.entrants[name].learning_rate for name in ("adam", "rmsprop")] == list(TABLE_5[dataset][:2])
        assert (one.config.model, one.config.epochs, one.config.width) == ("vgg16", RULES[dataset].epochs, 0.125)


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
        ({"widen": -1}, "--widen is -1"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"search_seeds": 101}, "--search-seeds is 101"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"datasets": ()}, "--datasets"),
        ({"optimizers": ("adamw",)}, "'adamw' is none of gravity"),
        ({"optimizers": ("adam:beta=0.5",)}, "--beta is 0.5"),
        ({"optimizers": ("gravity:beta=x",)}, "'x'; it must be a number"),
        ({"optimizers": ("gravity:first_step=0.5",)}, "'0.5'; it must be a whole number"),
        ({"optimizers": ("gravity:velocity=uniform",)}, "must be one of normal"),
        ({"optimizers": ("gravity:learning_rate=1",)}, "'learning_rate=1' is not NAME=VALUE"),
        ({"optimizers": ("gravity:beta=0.5,beta=0.6",)}, "beta is given twice"),
        ({"optimizers": ("gravity:beta=0.5",), "settings": ("beta=0.6",)}, "beta is both in --settings"),
        ({"settings": ("precision",)}, "'precision' is not NAME=VALUE"),
        ({"sampler": "qmc", "trials": 0}, "--trials is 0; it must be between 1 and 1000"),
        ({"trials": 5}, "--trials is 5, which --sampler grid does not use"),
        ({"sampler": "qmc", "rates": 7}, "--rates is 7, which --sampler qmc does not use"),
        ({"sampler": "qmc", "optimizers": ("adagrad",)}, "'adagrad', and --sampler qmc has spaces"),
        ({"sampler": "qmc", "optimizers": ("gravity:beta=0.5",)}, "beta is 0.5, but --sampler qmc searches it"),
        ({"sampler": "qmc", "settings": ("weight_decay=0.1",)}, "weight_decay is 0.1, but --sampler qmc searches it"),
    ],
)
def test_an_invalid_flag_is_named(flags, named):
    with pytest.raises(UsageError, match=named):
        comparisons(CompareOptions("unused", **flags))


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--rates", 4), 2, "error: --rates is 4"),
        (("--rates", "x"), 2, "error: Error parsing --rates: invalid literal for int() with base 10: 'x'"),
        (("--ratse", 5), 2, "error: Unrecognized options: --ratse"),
        (("--datasets", "digit"), 2, "error: invalid choice 'digit' for argument '--datasets'"),
        (("--report",), 2, "error: --workdir is "),
        (("--workdir", "/dev/null/folder"), 1, "error: --workdir is /dev/null/folder, where nothing can be written"),
        (("--storage", "nosuch://:secret@host/R", "--list"), 1, "error: --storage is host/R, which cannot be used"),
        (("--storage", "sqlite:////nowhere/R", "--list"), 1, "error: --storage is sqlite:////nowhere/R, which cannot"),
        (("--storage", "no url", "--list"), 1, "error: --storage is no url, which cannot be used"),
    ],
)
def test_the_command_answers_what_cannot_be_in_one_line(tmp_path, monkeypatch, capsys, flags, code, said):
    monkeypatch.setattr("lab.store._SECONDS_BETWEEN", 0)
    monkeypatch.setattr("sys.argv", ["compare.py", "--workdir", str(tmp_path / "R"), *map(str, flags)])
    assert compare.main() == code
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
