"""What prepares a dataset through TFDS, which needs TensorFlow; the other tests read what was written without it."""

import json
import os
import pathlib

import numpy as np
import pytest

import tfds_fixture
import tfds_official
from trainer import data

pytestmark = pytest.mark.prepare

OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:1")  # no proxy listens there
OFFLINE |= {name.upper(): proxy for name, proxy in OFFLINE.items()} | {"no_proxy": "", "NO_PROXY": ""}
TESTS = os.path.dirname(tfds_fixture.__file__)


def test_the_tiny_set_is_what_the_genuine_builder_prepares(tmp_path, tiny_tfds):
    done = tfds_fixture.python(tfds_official.__file__, str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder, tiny = (pathlib.Path(root) / "mnist" / "3.0.1" for root in (tmp_path, tiny_tfds))
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in tiny.iterdir())
    infos = [json.loads((version / "dataset_info.json").read_text()) for version in (folder, tiny)]
    for info in infos:  # the sizes of the pictures' files, of what is downloaded, and where the builder is
        for split in info["splits"]:
            del split["numBytes"]
        info.pop("downloadSize", None)
        del info["moduleName"]
    assert infos[0] == infos[1]
    found, expected = data.load("mnist", str(tmp_path)), data.load("mnist", tiny_tfds)
    assert found.class_names == expected.class_names
    for array in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(found, array), getattr(expected, array))


def load_elsewhere(name, folder, before=""):
    """Load a set of tfds_builders.py, where their code is known, in another process."""
    code = f"import sys; sys.path.append({TESTS!r}); import tfds_builders\nfrom trainer import data\n{before}\n"
    return tfds_fixture.python("-c", f"{code}data.load({name!r}, {str(folder)!r})", TMPDIR=str(folder.parent))


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("tiny_colour", ""),
        ("tiny_grey/other:parity", ""),
        ("tiny_default", "tfds_builders.TinyDefault(data_dir='FOLDER').download_and_prepare()"),
    ],
)
def test_any_set_is_prepared_and_read_in_either_format(tmp_path, name, before):
    folder = tmp_path / "sets"
    done = load_elsewhere(f"tfds:{name}", folder, before.replace("FOLDER", str(folder)))
    assert done.returncode == 0, done.stderr
    (info,) = (folder / name.split("/")[0].split(":")[0]).rglob("dataset_info.json")
    assert json.loads(info.read_text())["fileFormat"] == ("tfrecord" if before else "array_record")
    dataset = data.load(f"tfds:{name}", str(folder))
    for split in ("train", "test"):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        expected, kinds = tfds_fixture.shades(split, images.shape[1:])
        label_of = {image.tobytes(): kind % dataset.num_classes for image, kind in zip(expected, kinds, strict=True)}
        assert len(images) == len(label_of)
        assert [label_of[image.tobytes()] for image in images] == labels.tolist()


def test_a_network_that_goes_away(tmp_path):
    """One of four files is already downloaded, so TFDS itself requests the others; it would retry for 200 seconds."""
    tfds_official.fill_cache(str(tmp_path))
    for path in (tmp_path / "downloads" / "mnist").glob("*t10k-labels*"):
        path.unlink()
    code = """if True:
        import logging
        import sys
        import time
        from trainer import data
        import tensorflow
        logging.basicConfig(level="INFO")
        start = time.monotonic()
        try:
            data.load("mnist", sys.argv[1])
        except data.DataError as error:
            print(time.monotonic() - start, error)
    """
    done = tfds_fixture.python(
        "-c", code, str(tmp_path), TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", **OFFLINE
    )
    seconds, message = done.stdout.strip().split(" ", 1)
    assert float(seconds) < 100 and "Dl Completed" not in done.stderr  # no progress bars in a pipe
    assert f"INFO:train:Preparing mnist in {tmp_path}" in done.stderr and "INFO:absl" not in done.stderr
    assert "preparing it failed (ProxyError: " in message and "\n" not in message
    assert not (tmp_path / "mnist" / "3.0.1").exists()
