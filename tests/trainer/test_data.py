"""Loading the datasets: what is read is what was written, and errors say how to fix them."""

import collections
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import tomllib

import numpy as np
import pytest
from packaging.requirements import Requirement
from sklearn.datasets import load_digits

import tfds_fixture
from stop_after import snapshot
from trainer import data

TRAIN_FILE = "mnist-train.array_record-00000-of-00001"


def counted(images, labels):
    """How often every labelled picture occurs, in any order."""
    assert images.dtype == np.uint8
    return collections.Counter((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def failure(name, data_dir, limit=None):
    """The message of the DataError, which is one line; no file may have changed."""
    before = snapshot(data_dir)
    with pytest.raises(data.DataError) as caught:
        data.load(name, str(data_dir), limit)
    assert snapshot(data_dir) == before
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and name in message
    return message


@pytest.fixture
def hide(monkeypatch):
    """Call it with packages to hide from `find_spec`; the others that preparing needs are found, installed or not."""
    find_spec, found = importlib.util.find_spec, dict.fromkeys(("tensorflow", "importlib_resources"), sys.__spec__)

    def hide(*packages):
        spec = lambda name, *_: None if name in packages else found.get(name) or find_spec(name)
        monkeypatch.setattr(importlib.util, "find_spec", spec)

    return hide


@pytest.fixture
def mnist_copy(tiny_tfds, tmp_path):
    """The version folder of a copy of the tiny MNIST; its data_dir is two levels above."""
    shutil.copytree(f"{tiny_tfds}/mnist", tmp_path / "mnist")
    return tmp_path / "mnist" / "3.0.1"


def test_digits_are_scikit_learns_scaled_to_255_and_always_split_alike():
    digits, bunch = data.load("digits"), load_digits()
    assert digits.train_images.shape == (1437, 8, 8, 1) and digits.test_images.shape == (360, 8, 8, 1)
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int32
    assert digits.name == "digits" and digits.num_classes == 10
    parts = counted(digits.train_images, digits.train_labels) + counted(digits.test_images, digits.test_labels)
    assert parts == counted(np.rint(bunch.images / 16 * 255).astype(np.uint8), bunch.target)
    assert max(parts.values()) == 1  # all pictures differ, so that no test picture is a training picture
    assert hashlib.sha256(digits.test_labels.astype("<i4").tobytes()).hexdigest()[:16] == "a464b705a1e3cf13"
    few = data.load("digits", limit=400)
    np.testing.assert_array_equal(few.train_images, digits.train_images[:400])
    np.testing.assert_array_equal(few.test_images, digits.test_images)


@pytest.mark.parametrize("name", [name for name in data.DATASETS if name != "digits"])
def test_what_is_read_is_what_was_written(tiny_tfds, name):
    loaded = data.load(name, tiny_tfds)
    assert loaded.name == name
    assert loaded.num_classes == {"cifar100_coarse": 20, "cifar100_fine": 100}.get(name, 10)
    for split in ("train", "test"):
        images, labels = getattr(loaded, f"{split}_images"), getattr(loaded, f"{split}_labels")
        expected, classes = tfds_fixture.pictures("cifar100" if name.startswith("cifar100") else name, split)
        assert images.shape == expected.shape and labels.dtype == np.int32
        assert counted(images, labels) == counted(expected, classes // 5 if name == "cifar100_coarse" else classes)
        for limit in (150, 10**9):
            few = data.load(name, tiny_tfds, limit)
            np.testing.assert_array_equal(getattr(few, f"{split}_images"), images[:limit])
            np.testing.assert_array_equal(getattr(few, f"{split}_labels"), labels[:limit])


def test_the_default_folder_is_that_of_tfds_and_loading_says_nothing(tiny_tfds, monkeypatch, capfd, caplog):
    monkeypatch.setenv("TFDS_DATA_DIR", tiny_tfds)
    assert len(data.load("mnist").train_images) == 200
    assert capfd.readouterr() == ("", "") and not caplog.records
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(data.DataError, match=r"no home folder for ~/tensorflow_datasets .* give --data-dir\.$"):
        data.load("mnist")


def flipped(part):
    def flip(version):
        """One bit of a byte that is no padding, which is zeros."""
        content = bytearray((version / TRAIN_FILE).read_bytes())
        at = next(i for i in range(int(part * len(content)), len(content)) if content[i])
        content[at] ^= 8
        (version / TRAIN_FILE).write_bytes(content)

    return flip


def edited(**changes):
    def edit(version):
        info = json.loads((version / "dataset_info.json").read_text())
        (version / "dataset_info.json").write_text(json.dumps(info | changes))

    return edit


def replaced_by_a_file(version):
    shutil.rmtree(version)
    version.write_text("")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flipped(0.02), TRAIN_FILE),
        (flipped(0.5), TRAIN_FILE),
        (lambda version: os.truncate(version / TRAIN_FILE, 100_000), TRAIN_FILE),
        (lambda version: (version / TRAIN_FILE).unlink(), TRAIN_FILE),
        (lambda version: (version / "dataset_info.json").unlink(), "has no dataset_info.json"),
        (replaced_by_a_file, "has no dataset_info.json"),
        (lambda version: (version / "dataset_info.json").write_text('{"name": "mn'), "dataset_info.json is damaged"),
        (edited(version="3.0.0"), "Proto version: 3.0.0"),
        (edited(fileFormat="tfrecord"), "prepared as tfrecord"),
        (edited(fileFormat="nonsense"), "dataset_info.json is damaged"),
        (edited(splits=[{"name": "train", "shardLengths": ["0"]}]), "its train split is empty"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(mnist_copy, damage, why):
    damage(mnist_copy)
    message = failure("mnist", mnist_copy.parents[1])
    assert why in message and f"{mnist_copy} cannot be used" in message and "another --data-dir" in message


def test_a_split_without_labels_is_refused(tiny_tfds, monkeypatch):
    monkeypatch.setattr(data, "_read", lambda *_: (np.zeros((2, 28, 28, 1), np.uint8), np.array([3, -1], np.int32)))
    assert "not all labels of its train split are known" in failure("mnist", tiny_tfds)


TRAIN, PREPARE, HERE = '`pip install -e ".[train]"`', '`pip install -e ".[prepare]"`', sys.version_info[:2]
NO_RELEASE = f"no release for Python {HERE[0]}.{HERE[1]}", f"with Python 3.9 run {PREPARE}"


@pytest.mark.parametrize(
    ("name", "missing", "newest", "parts"),
    [
        ("MNIST", "", HERE, ["there is no dataset 'MNIST'; choose one of digits, mnist"]),
        ("digits", "sklearn", HERE, ["digits needs sklearn", TRAIN]),
        ("mnist", "tensorflow_datasets", HERE, ["mnist needs tensorflow_datasets", TRAIN]),
        ("mnist", "array_record", HERE, ["mnist needs array_record", TRAIN]),
        ("cifar100_fine", "tensorflow", HERE, ["not prepared in", "needs tensorflow:", PREPARE, "another --data-dir"]),
        ("mnist", "importlib_resources", HERE, ["needs importlib_resources:", PREPARE]),
        ("mnist", "tensorflow", (3, 9), NO_RELEASE),
    ],
)
def test_a_missing_package_or_dataset_is_named(tmp_path, hide, monkeypatch, name, missing, newest, parts):
    monkeypatch.setattr(data, "_NEWEST_WITH_TENSORFLOW", newest)
    hide(missing)
    message = failure(name, tmp_path)
    assert all(part in message for part in parts), message


def test_another_version_is_mentioned(mnist_copy, hide):
    hide("tensorflow")
    other, root = mnist_copy.rename(mnist_copy.parent / "3.0.0"), mnist_copy.parents[1]
    assert f"not prepared in {root} in version 3.0.1, only {other.name}" in failure("mnist", root)


def test_the_extra_for_preparing_asks_for_tensorflow_where_it_is_released():
    pyproject = tomllib.loads((pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text())
    (tensorflow,) = (line for line in pyproject["project"]["optional-dependencies"]["prepare"] if "tensorflow" in line)
    marker, (major, minor) = Requirement(tensorflow).marker, data._NEWEST_WITH_TENSORFLOW
    assert [marker.evaluate({"python_version": f"{major}.{minor + newer}"}) for newer in (0, 1)] == [True, False]


def test_without_a_network_the_answer_says_how_to_prepare_it(tmp_path, monkeypatch, hide):
    hide()
    for variable, value in tfds_fixture.OFFLINE.items():
        monkeypatch.setenv(variable, value)
    message = failure("cifar100_coarse", tmp_path)
    assert f"not prepared in {tmp_path}" in message and "cannot be reached" in message
    assert f"`python train/main.py --dataset cifar100_coarse --data-dir {tmp_path}`" in message
    assert PREPARE in message and "copy a prepared" in message


def test_a_data_dir_that_is_no_folder_or_lies_too_deep_is_named_with_the_right_one(mnist_copy):
    (mnist_copy.parents[1] / "file").write_text("")
    below = mnist_copy.parents[1] / "file" / "below"
    assert f"{below} is not a readable folder" in failure("mnist", below)
    for root in (mnist_copy.parent, mnist_copy):
        message = f"--data-dir {root} is the dataset's own folder; give --data-dir {mnist_copy.parents[1]}."
        assert message in failure("mnist", root)


@pytest.mark.parametrize("name", ["x [1]", "a\\b"])
def test_a_data_dir_may_have_any_name(tiny_tfds, tmp_path, name):
    shutil.copytree(f"{tiny_tfds}/mnist", tmp_path / name / "mnist")
    found, expected = data.load("mnist", str(tmp_path / name)), data.load("mnist", tiny_tfds)
    np.testing.assert_array_equal(found.train_images, expected.train_images)


def test_a_certificate_bundle_that_is_gone_is_one_line(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/gone.pem")
    with pytest.raises(data.DataError, match=r"^absent, and host cannot be reached \(OSError: .*/gone\.pem\); fix\.$"):
        data._check_network("absent", "https://host/file", "fix")
