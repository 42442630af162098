"""MNIST's files as its genuine builder downloads them, with our pictures; `main` has TFDS and TensorFlow prepare them.

TFDS takes a file in DATA_DIR/downloads/NAME that bears the expected name, with an .INFO file beside it, for a finished
download. So its genuine builder runs on these pictures without a network.
"""

import gzip
import pathlib
import sys

import numpy as np

from tfds_fixture import SIZES, pictures


def official_files() -> dict[str, bytes]:
    """File name -> its bytes."""
    files = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images, labels = pictures("mnist", split)
        files[f"{stem}-images-idx3-ubyte.gz"] = gzip.compress(_idx(images[..., 0]))
        files[f"{stem}-labels-idx1-ubyte.gz"] = gzip.compress(_idx(labels.astype(np.uint8)))
    return files


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def fill_cache(data_dir: str) -> None:
    """Puts the files where TFDS looks for finished downloads."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource

    folder = pathlib.Path(data_dir) / "downloads" / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    files = official_files()
    for url, info in tfds.builder_cls("mnist").url_infos.items():
        path = resource.epath.Path(folder / resource.get_dl_fname(url, info.checksum))
        path.write_bytes(files[info.filename])
        resource.write_info_file(url=url, path=path, dataset_name="mnist", original_fname=info.filename, url_info=info)


def main(data_dir: str) -> None:
    """Prepares it the way a user does: by loading it."""
    from tensorflow_datasets.image_classification import mnist

    from trainer import data

    # The builder asks its files for as many pictures as the real ones hold.
    mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = SIZES["train"], SIZES["test"]
    fill_cache(data_dir)
    data.load("mnist", data_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
