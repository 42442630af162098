"""Preparing datasets through TFDS, which needs TensorFlow; the other tests read sets written without it."""

import gzip
import json
import pathlib

import numpy as np
import pytest

import tfds_fixture
from trainer import data

pytestmark = pytest.mark.prepare


def fill_cache(data_dir):
    """Puts our pictures as MNIST's own files where TFDS looks for finished downloads: no network is needed.

    That is under the expected name in DATA_DIR/downloads/NAME, with an .INFO file beside it.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource

    folder = data_dir / "downloads" / "mnist"
    folder.mkdir(parents=True)
    for url, info in tfds.builder_cls("mnist").url_infos.items():
        images, labels = tfds_fixture.pictures("mnist", "train" if info.filename.startswith("train") else "test")
        array = images[..., 0] if "images" in info.filename else labels.astype(np.uint8)
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        path = resource.epath.Path(folder / resource.get_dl_fname(url, info.checksum))
        path.write_bytes(gzip.compress(head + array.tobytes()))
        resource.write_info_file(url=url, path=path, dataset_name="mnist", original_fname=info.filename, url_info=info)


def test_the_tiny_set_is_what_the_genuine_builder_prepares(tmp_path, tiny_tfds):
    fill_cache(tmp_path)
    # The builder asks its files for as many pictures as the real ones hold.
    code = f"""if True:
        from tensorflow_datasets.image_classification import mnist
        from trainer import data
        mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = {tuple(tfds_fixture.SIZES.values())}
        data.load("mnist", {str(tmp_path)!r})
    """
    tfds_fixture.python("-c", code)
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


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("tiny_colour", ""),
        ("tiny_grey/other:parity", ""),
        ("tiny_default", "tfds_builders.TinyDefault(data_dir=FOLDER).download_and_prepare()"),
    ],
)
def test_any_set_is_prepared_and_read_in_either_format(tmp_path, name, before):
    """In another process, where the code of tfds_builders.py is known."""
    folder = tmp_path / "sets"
    code = f"import tfds_builders\nfrom trainer import data\nFOLDER = {str(folder)!r}\n{before}\n"
    tfds_fixture.python("-c", f"{code}data.load('tfds:{name}', FOLDER)", TMPDIR=str(tmp_path))
    (info,) = (folder / name.partition("/")[0]).rglob("dataset_info.json")
    assert json.loads(info.read_text())["fileFormat"] == ("tfrecord" if before else "array_record")
    for split in ("train", "test"):
        tfds_fixture.assert_holds(data.load(f"tfds:{name}", str(folder)), split, name.partition("/")[0])


def test_a_network_that_goes_away(tmp_path):
    """One of four files is already downloaded, so TFDS itself requests the others; it would retry for 200 seconds."""
    fill_cache(tmp_path)
    for path in (tmp_path / "downloads" / "mnist").glob("*t10k-labels*"):
        path.unlink()
    code = """if True:
        import logging, sys, time
        from trainer import data
        import tensorflow
        logging.basicConfig(level="INFO")
        start = time.monotonic()
        try:
            data.load("mnist", sys.argv[1])
        except data.DataError as error:
            print(time.monotonic() - start, error)
    """
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = tfds_fixture.python("-c", code, str(tmp_path), **quiet, **tfds_fixture.OFFLINE)
    seconds, message = done.stdout.strip().split(" ", 1)
    assert float(seconds) < 100 and "Dl Completed" not in done.stderr  # no progress bars in a pipe
    assert f"INFO:train:Preparing mnist in {tmp_path}" in done.stderr and "INFO:absl" not in done.stderr
    assert "preparing it failed (ProxyError: " in message and "\n" not in message
    assert not (tmp_path / "mnist" / "3.0.1").exists()
