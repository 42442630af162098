"""Defaults per dataset, and the paper's Table 5. Invalid values are in test_bad_input.py."""

import pytest

from trainer.config import Config, resolve

NO_FACTOR = {"max_step_grad_factor": None}  # it is of the rule rms alone


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"model": "vgg11", "optimizer": "gravity", "alpha": 0.01, "beta": 0.9, "first_step": 1} | NO_FACTOR),
        ({"dataset": "cifar10"}, {"model": "vgg16", "width": 1.0, "batch_size": 128, "epochs": 100}),
        ({"model": "vgg19", "width": 0.5, "epochs": 1, "batch_size": 7}, {}),
        ({"learning_rate": 0.3, "alpha": 0.0, "beta": 0.0, "first_step": 0}, {}),
    ],
)
def test_a_given_value_is_kept_and_the_defaults_are_the_papers_protocol_and_our_advice(given, expected):
    assert vars(resolve(Config(**given))).items() >= (given | expected).items()


@pytest.mark.parametrize(
    ("dataset", "model", "optimizer", "expected"),
    [
        ("digits", "vgg16", "gravity", 0.1),
        ("mnist", "vgg16", "adam", 2.5e-4),
        ("mnist", "vgg19", "rmsprop", 2.5e-5),
        ("fashion_mnist", "vgg19", "adam", 1e-5),
        ("cifar10", "vgg16", "rmsprop", 5e-5),
        ("cifar100_coarse", "vgg16", "rmsprop", 2.5e-4),
        ("cifar100_fine", "vgg19", "adam", 5e-5),
        ("cifar100_fine", "vgg19", "gravity", 0.1),
    ],
)
def test_learning_rates_are_table_5(dataset, model, optimizer, expected):
    assert resolve(Config(dataset=dataset, model=model, optimizer=optimizer)).learning_rate == expected


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    config = resolve(Config(workdir="~/run", data_dir="~/data"))
    assert (config.workdir, config.data_dir) == ("/home/user/run", "/home/user/data")
