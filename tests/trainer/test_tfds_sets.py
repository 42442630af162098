"""`--dataset tfds:NAME[:LABEL]`: sets that the trainer has never heard of, by their features alone."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

import tfds_fixture
from trainer import data, loop
from trainer.config import Config, resolve

TESTS = os.path.dirname(tfds_fixture.__file__)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A data_dir with the builders of tfds_builders.py prepared; their code is not known in this process."""
    folder = str(tmp_path_factory.mktemp("sets"))
    code = f"import sys; sys.path.append({TESTS!r}); import tfds_builders as t; t.main({folder!r})"
    tfds_fixture.python("-c", code, TMPDIR=str(tmp_path_factory.mktemp("temporary")))
    return folder


@pytest.mark.parametrize("name", ["tfds:tiny_colour", "tfds:tiny_colour:kind"])
def test_a_set_is_read_by_its_features(sets, name):
    dataset = data.load(name, sets)
    assert (dataset.num_classes, dataset.class_names) == (3, ("0", "1", "2"))
    for split in ("train", "test"):
        tfds_fixture.assert_shades(dataset, split)
    assert len(data.load(name, sets, limit=7).train_images) == 7


def test_a_configuration_and_a_label_are_chosen_by_name(sets):
    dataset = data.load("tfds:tiny_grey/other:parity", sets)
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
        ("tiny_colour:label", "the label must be one of kind"),
        ("tiny_missing", "tensorflow-datasets cannot open tiny_missing"),
        ("mnist/none", "tensorflow-datasets cannot open mnist/none"),
    ],
)
def test_a_set_of_no_use_gets_one_clear_line(sets, name, message):
    with pytest.raises(data.DataError, match=f"^tfds:{name}: {message}.*$"):
        data.load(f"tfds:{name}", sets)


def test_the_default_format_needs_tensorflow(sets, tmp_path, monkeypatch):
    copy = pathlib.Path(shutil.copytree(f"{sets}/tiny_colour", tmp_path / "tiny_colour")) / "1.0.0"
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    find = data.importlib.util.find_spec
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name))
    with pytest.raises(data.DataError, match="it was prepared as tfrecord and tensorflow is not installed"):
        data.load("tfds:tiny_colour", str(tmp_path))


def test_a_set_trains_in_a_fresh_folder(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loop.train(resolve(Config("tfds:tiny_colour:kind", "softmax", epochs=1, data_dir=sets)), jax.devices()[:1])
    (folder,) = (tmp_path / "runs").iterdir()
    assert "tfds-tiny_colour-kind-softmax" in folder.name
    assert json.loads((folder / "config.json").read_text())["dataset"] == "tfds:tiny_colour:kind"
