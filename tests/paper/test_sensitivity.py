"""The sensitivity study: its grid, its results file, its picture, and that its runs are the trainer's."""

import pathlib

import jax
import numpy as np
import pytest

import sensitivity
from sensitivity import Result, Setting
from trainer import data
from trainer.config import Config, resolve
from trainer.loop import Trainer

DEFAULTS = [
    ("gravity", Setting("gravity", 0.1, 0.01, 0.9, 3)),
    ("adam", Setting("adam", 2.5e-4, 0.0, 0.9, 3)),
    ("rmsprop", Setting("rmsprop", 1e-4, 0.0, 0.9, 3)),
]


def test_every_combination_is_run_once_with_every_seed():
    runs = sensitivity.settings()
    assert len(runs) == len(set(runs)) == 5 * 5 * (3 * 3 + 1 + 1 + 1)
    assert {run.seed for run in runs[: len(runs) // 5]} == {0}
    for _, default in DEFAULTS:
        assert default in runs


def test_the_results_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "results.csv"
    assert sensitivity.read(path) == {}
    expected = {setting: Result(0.125 * i, 1 - 0.0625 * i) for i, setting in enumerate(sensitivity.settings()[:70:10])}
    for setting, result in expected.items():
        sensitivity.append(path, setting, result)
    assert sensitivity.read(path) == expected


def test_the_recorded_study_is_whole_and_the_readme_says_what_it_says():
    root = pathlib.Path(__file__).parents[2]
    results = sensitivity.read(root / "notebooks" / "sensitivity.csv")
    assert results.keys() == set(sensitivity.settings())
    readme = (root / "README.md").read_text()
    cells = [
        ("Gravity, the paper's alpha and beta", "gravity", 0.01, 0.9),
        ("Gravity, beta 0.99", "gravity", 0.01, 0.99),
        ("Gravity, alpha 0.1, beta 0.5", "gravity", 0.1, 0.5),
        ("Adam", "adam", 0.0, 0.9),
        ("RMSProp", "rmsprop", 0.0, 0.9),
        ("SGD with momentum", "momentum", 0.0, 0.9),
    ]
    for label, name, alpha, beta in cells:
        means = [np.mean(sensitivity.cell(results, name, factor, alpha, beta)) for factor in sensitivity.FACTORS]
        assert f"| {label} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |" in readme


def test_the_heat_maps_hold_the_means_over_the_seeds():
    runs = sensitivity.settings()
    accuracy = dict(zip(runs, np.random.default_rng(0).uniform(size=len(runs)), strict=True))
    figure = sensitivity.figure({setting: Result(1.0, accuracy[setting]) for setting in runs})
    *gravity, others = (axes for axes in figure.axes if axes.get_title())
    for axes, beta in zip(gravity, (0.5, 0.9, 0.99), strict=True):
        expected = [
            [np.mean([accuracy[Setting("gravity", rate, alpha, beta, seed)] for seed in range(5)]) for rate in rates]
            for alpha in (0.0, 0.01, 0.1)
            for rates in [(0.01, 0.03, 0.1, 0.3, 1.0)]
        ]
        np.testing.assert_allclose(axes.images[0].get_array(), expected)
        assert axes.get_title().endswith(f"= {beta}") and axes.get_xlabel()
    adam = [np.mean([accuracy[Setting("adam", rate, 0, 0.9, seed)] for seed in range(5)]) for rate in (2.5e-5, 2.5e-3)]
    np.testing.assert_allclose(others.images[0].get_array()[0, [0, -1]], adam)


@pytest.mark.slow
@jax.numpy_dtype_promotion("standard")  # optax's own code promotes
@pytest.mark.parametrize(("name", "setting"), DEFAULTS)
def test_a_run_is_the_trainers(name, setting):
    study = sensitivity.Study(epochs=1, width=0.05, limit=96)
    loss, accuracy = study.run(setting)
    config = resolve(Config(optimizer=name, width=0.05, limit=96, epochs=1, seed=setting.seed))
    trainer = Trainer(config, data.load("digits", limit=96), jax.devices()[:1])
    assert loss == pytest.approx(trainer.train_epoch(1)[0], rel=1e-4)
    assert accuracy == pytest.approx(trainer.evaluate()[1], abs=0.011)  # one picture of 96
