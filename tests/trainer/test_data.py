"""Loading the datasets, under their own names and as tfds:NAME; errors name the dataset and say how to fix them."""

import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import tomllib

import jax
import numpy as np
import pytest
from etils.epath import testing
from packaging.requirements import Requirement
from sklearn.datasets import load_digits

import tfds_fixture
from processes import snapshot
from tfds_fixture import labelled
from trainer import data, loop
from trainer.config import Config, resolve

TRAIN_FILE = "mnist-train.array_record-00000-of-00001"


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
    assert digits.name == "digits" and digits.num_classes == 10
    train, test = labelled(digits.train_images, digits.train_labels), labelled(digits.test_images, digits.test_labels)
    images = np.rint(bunch.images / 16 * 255).astype(np.uint8)
    assert sorted(train + test) == labelled(images, bunch.target.astype(np.int32))
    assert len({*train, *test}) == 1797  # all pictures differ, so that no test picture is a training picture
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
        tfds_fixture.assert_holds(loaded, split, "cifar100" if name.startswith("cifar100") else name)
        for limit in (150, 10**9):
            few = data.load(name, tiny_tfds, limit)
            for array in (f"{split}_images", f"{split}_labels"):
                np.testing.assert_array_equal(getattr(few, array), getattr(loaded, array)[:limit])


def test_the_default_folder_is_that_of_tfds_and_loading_says_nothing(tiny_tfds, monkeypatch, capfd, caplog):
    monkeypatch.setenv("TFDS_DATA_DIR", tiny_tfds)
    assert len(data.load("mnist").train_images) == 200
    assert capfd.readouterr() == ("", "") and not caplog.records
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(data.DataError, match=r"no home folder for ~/tensorflow_datasets .* give --data-dir\.$"):
        data.load("mnist")


def flip_a_bit(version):
    """Of a byte that is no padding, which is zeros."""
    content = bytearray((version / TRAIN_FILE).read_bytes())
    content[next(i for i in range(len(content) // 2, len(content)) if content[i])] ^= 8
    (version / TRAIN_FILE).write_bytes(content)


def edit(folder, /, **changes):
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | changes))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip_a_bit, TRAIN_FILE),
        (lambda version: (version / "dataset_info.json").unlink(), "has no dataset_info.json"),
        (lambda version: (version / "dataset_info.json").write_text('{"name": "mn'), "dataset_info.json is damaged"),
        (lambda version: edit(version, fileFormat="tfrecord"), "prepared as tfrecord"),
        (lambda version: edit(version, splits=[{"name": "train", "shardLengths": ["0"]}]), "its train split is empty"),
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
        ("mnist", "array_record", HERE, ["mnist needs array_record", TRAIN]),
        ("cifar100_fine", "tensorflow", HERE, ["not prepared in", "needs tensorflow:", PREPARE, "another --data-dir"]),
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


def test_a_prepared_dataset_is_read_from_a_bucket(tiny_tfds, monkeypatch):
    at_home = lambda path: os.fspath(path).replace("gs://sets", tiny_tfds).replace("gs://other", "/nowhere")
    here = lambda original, path, *mode: original(at_home(path), *mode)
    glob = lambda original, path: [found.replace(tiny_tfds, "gs://sets") for found in original(at_home(path))]
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://sets")
    with testing.mock_epath(exists=here, isdir=here, open=here, glob=glob):
        for data_dir in ("gs://sets", None):
            found, expected = data.load("mnist", data_dir), data.load("mnist", tiny_tfds)
            np.testing.assert_array_equal(found.train_images, expected.train_images)
            np.testing.assert_array_equal(found.test_labels, expected.test_labels)
        with pytest.raises(data.DataError, match="cifar10 is not prepared in gs://other; prepare it in a local folder"):
            data.load("cifar10", "gs://other")


@pytest.mark.parametrize("name", ["tfds:tiny_colour", "tfds:tiny_colour:kind"])
def test_a_set_is_read_by_its_features(tiny_tfds, name):
    dataset = data.load(name, tiny_tfds)
    assert (dataset.num_classes, dataset.class_names) == (3, ("0", "1", "2"))
    for split in ("train", "test"):
        tfds_fixture.assert_holds(dataset, split, "tiny_colour")
    assert len(data.load(name, tiny_tfds, limit=7).train_images) == 7


def test_a_configuration_and_a_label_are_chosen_by_name(tiny_tfds):
    dataset = data.load("tfds:tiny_grey/other:parity", tiny_tfds)
    assert dataset.train_images.shape == (60, 256, 200, 1)
    assert (dataset.num_classes, dataset.class_names) == (2, ("even", "odd"))
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), [20, 10])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_unsized", "its pictures are any x any x 3, uint8; one size for all"),
        ("tiny_large", "its pictures are 257 x 16 x 3, uint8; one size for all, at most 256 x 256"),
        ("tiny_unsplit", "it has no test split .its splits: train."),
        ("tiny_blind", "one image and a class label are needed, and it has kind"),
        ("tiny_grey/other", "the label must be one of kind, parity; say which as tfds:NAME:LABEL"),
        ("tiny_missing", "tensorflow-datasets cannot open tiny_missing"),
    ],
)
def test_a_set_of_no_use_gets_one_clear_line(tiny_tfds, name, message):
    with pytest.raises(data.DataError, match=f"^tfds:{name}: {message}.*$"):
        data.load(f"tfds:{name}", tiny_tfds)


def test_the_default_format_needs_tensorflow(tiny_tfds, tmp_path, hide):
    shutil.copytree(f"{tiny_tfds}/tiny_colour", tmp_path / "tiny_colour")
    edit(tmp_path / "tiny_colour" / "1.0.0", fileFormat="tfrecord")
    hide("tensorflow")
    with pytest.raises(data.DataError, match="it was prepared as tfrecord and tensorflow is not installed"):
        data.load("tfds:tiny_colour", str(tmp_path))


def test_a_set_trains_in_a_fresh_folder(tiny_tfds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loop.train(resolve(Config("tfds:tiny_colour:kind", "softmax", epochs=1, data_dir=tiny_tfds)), jax.devices()[:1])
    (folder,) = (tmp_path / "runs").iterdir()
    assert "tfds-tiny_colour-kind-softmax" in folder.name
    assert json.loads((folder / "config.json").read_text())["dataset"] == "tfds:tiny_colour:kind"
