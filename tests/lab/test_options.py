"""The flags of compare.py, the comparisons that they make, and the answers to invalid ones."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

import compare
from fake_outcomes import only
from lab import search
from lab.options import CompareOptions, comparisons
from lab.rules import RULES
from trainer.config import TABLE_5, UsageError
from trainer.data import DATASETS

SCRIPT = pathlib.Path(compare.__file__)


def test_without_flags_it_is_the_four_optimizers_on_the_digits():
    one = only()
    assert (one.config.dataset, one.config.model) == ("digits", "vgg11")
    assert {name: config.learning_rate for name, config in one.entrants.items()} == {
        "gravity": 0.1,
        "adam": 2.5e-4,
        "rmsprop": 1e-4,
        "momentum": 0.01,
    }


def test_every_dataset_has_a_rule_and_is_centred_on_the_papers_learning_rates():
    assert set(RULES) == set(DATASETS)
    for one in comparisons(CompareOptions("unused", datasets=tuple(TABLE_5))):
        dataset = one.config.dataset
        assert one.config.model == "vgg16"
        assert [one.entrants[name].learning_rate for name in ("adam", "rmsprop")] == list(TABLE_5[dataset][:2])
        assert (one.config.epochs, one.config.width) == (RULES[dataset].epochs, RULES[dataset].width)


def test_one_rule_holds_for_all_datasets_of_the_paper_but_for_the_epochs():
    rules = [dataclasses.replace(RULES[dataset], target=0.0, epochs=0) for dataset in TABLE_5]
    assert len(set(rules)) == 1
    assert {dataset: RULES[dataset].epochs for dataset in TABLE_5} == {
        **dict.fromkeys(("mnist", "fashion_mnist", "cifar10"), 3),
        **dict.fromkeys(("cifar100_coarse", "cifar100_fine"), 5),
    }


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
        ({"rates": 1}, "--rates is 1"),
        ({"widen": -1}, "--widen is -1"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"search_seeds": 101}, "--search-seeds is 101"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"width": 0.0}, "--width is 0.0"),
        ({"limit": 0}, "--limit is 0"),
        ({"datasets": ()}, "--datasets"),
        ({"optimizers": ("adamw",)}, "'adamw' is none of gravity"),
        ({"optimizers": ("adam:beta=0.5",)}, "--beta is 0.5"),
        ({"optimizers": ("gravity:beta=2",)}, "--beta is 2"),
        ({"optimizers": ("gravity:beta=x",)}, "'x'; it must be a number"),
        ({"optimizers": ("gravity:first_step=0.5",)}, "'0.5'; it must be a whole number"),
        ({"optimizers": ("gravity:velocity=uniform",)}, "must be one of normal"),
        ({"optimizers": ("gravity:learning_rate=1",)}, "'learning_rate=1' is no NAME=VALUE"),
        ({"optimizers": ("gravity:beta=0.5,beta=0.6",)}, "beta is there twice"),
        ({"optimizers": ("gravity:beta=0.5",), "settings": ("beta=0.6",)}, "beta is both in --settings"),
        ({"settings": ("precision",)}, "'precision' is no NAME=VALUE"),
    ],
)
def test_an_invalid_flag_is_named(flags, named):
    with pytest.raises(UsageError, match=named):
        comparisons(CompareOptions("unused", **flags))


def start(*flags):
    environment = {**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": "standard", "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, flags)], capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--rates", 4), "error: --rates is 4"),
        (("--rates", "x"), "error: Error parsing --rates: invalid literal for int() with base 10: 'x'"),
        (("--ratse", 5), "error: Unrecognized options: --ratse"),
        (("--datasets", "digit"), "error: invalid choice 'digit' for argument '--datasets'"),
    ],
)
def test_the_command_answers_an_invalid_flag_in_one_line(tmp_path, flags, said):
    done = start("--workdir", tmp_path, *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(said)
    assert not list(tmp_path.iterdir())


def test_help_takes_no_time_and_nothing_heavy():
    command = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import compare; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"
    assert "Compares optimizers" in start("--help").stdout


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = start("--workdir", tmp_path / "file" / "folder")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert str(tmp_path) in done.stderr


def test_a_report_on_nothing_is_one_line(tmp_path):
    done = start("--workdir", tmp_path / "none", "--report")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
