"""Defaults per dataset, and the paper's Table 5. Invalid values are in test_bad_input.py."""

import dataclasses

import pytest

from trainer.config import Config, resolve


def test_without_flags_it_is_the_digits_with_gravity_as_recommended():
    config = resolve(Config())
    assert (config.dataset, config.model, config.optimizer) == ("digits", "vgg11", "gravity")
    assert (config.learning_rate, config.alpha, config.beta, config.first_step) == (0.1, 0.01, 0.9, 1)


def test_elsewhere_it_is_the_papers_protocol():
    config = resolve(Config(dataset="cifar10"))
    assert (config.model, config.width, config.batch_size, config.epochs) == ("vgg16", 1.0, 128, 100)


@pytest.mark.parametrize(
    ("dataset", "model", "optimizer", "expected"),
    [
        ("mnist", "vgg16", "adam", 2.5e-4),
        ("mnist", "vgg19", "rmsprop", 2.5e-5),
        ("fashion_mnist", "vgg19", "adam", 1e-5),
        ("cifar10", "vgg16", "rmsprop", 5e-5),
        ("cifar100_coarse", "vgg16", "rmsprop", 2.5e-4),
        ("cifar100_coarse", "vgg19", "adam", 7.5e-5),
        ("cifar100_fine", "vgg19", "adam", 5e-5),
        ("cifar100_fine", "vgg19", "gravity", 0.1),
    ],
)
def test_learning_rates_are_table_5(dataset, model, optimizer, expected):
    assert resolve(Config(dataset=dataset, model=model, optimizer=optimizer)).learning_rate == expected


def test_a_given_value_is_kept():
    given = Config(
        model="vgg19", width=0.5, learning_rate=0.3, alpha=0.0, beta=0.0, first_step=0, epochs=1, batch_size=7
    )
    resolved = resolve(given)
    for field in dataclasses.fields(Config):
        if (value := getattr(given, field.name)) is not None:
            assert getattr(resolved, field.name) == value


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    config = resolve(Config(workdir="~/run", data_dir="~/data"))
    assert (config.workdir, config.data_dir) == ("/home/user/run", "/home/user/data")
