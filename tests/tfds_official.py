"""Files as the four genuine builders download them, with our pictures; `main` has TFDS and TensorFlow prepare them.

TFDS takes a file in DATA_DIR/downloads/NAME that bears the expected name, with an .INFO file beside it, for a finished
download. So its genuine builders run on these pictures without a network.
"""

import gzip
import io
import pathlib
import sys
import tarfile

import numpy as np

from tfds_fixture import SIZES, TFDS_NAMES, pictures


def official_files(name: str) -> dict[str, bytes]:
    """What one would download: file name -> its bytes."""
    if name.startswith("cifar"):
        archive = "cifar-10-binary.tar.gz" if name == "cifar10" else "cifar-100-binary.tar.gz"
        folder = "cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary"
        return {archive: _cifar_tar(name, folder)}
    files = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images, labels = pictures(name, split)
        files[f"{stem}-images-idx3-ubyte.gz"] = gzip.compress(_idx(images[..., 0]))
        files[f"{stem}-labels-idx1-ubyte.gz"] = gzip.compress(_idx(labels.astype(np.uint8)))
    return files


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def _cifar_tar(name: str, folder: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for file, content in _cifar_members(name).items():
            member = tarfile.TarInfo(f"{folder}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _cifar_members(name: str) -> dict[str, bytes]:
    rows = {}
    for split in SIZES:
        images, labels = pictures(name, split)
        columns = [labels] if name == "cifar10" else [labels // 5, labels]
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        rows[split] = np.concatenate([np.stack(columns, 1).astype(np.uint8), planes], 1)
    if name == "cifar10":
        batches = {f"data_batch_{i}.bin": part.tobytes() for i, part in enumerate(np.split(rows["train"], 5), 1)}
        return {"batches.meta.txt": _names("class", 10), **batches, "test_batch.bin": rows["test"].tobytes()}
    texts = {"coarse_label_names.txt": _names("coarse", 20), "fine_label_names.txt": _names("fine", 100)}
    return {**texts, "train.bin": rows["train"].tobytes(), "test.bin": rows["test"].tobytes()}


def _names(stem: str, count: int) -> bytes:
    return "".join(f"{stem}{i}\n" for i in range(count)).encode()


def fill_cache(data_dir: str, name: str) -> None:
    """Put the files where TFDS looks for finished downloads."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import resource

    folder = pathlib.Path(data_dir) / "downloads" / name
    folder.mkdir(parents=True, exist_ok=True)
    files = official_files(name)
    for url, info in tfds.builder_cls(name).url_infos.items():
        path = resource.epath.Path(folder / resource.get_dl_fname(url, info.checksum))
        path.write_bytes(files[info.filename])
        resource.write_info_file(url=url, path=path, dataset_name=name, original_fname=info.filename, url_info=info)


def main(data_dir: str) -> None:
    """Prepare all four the way a user does: by loading them."""
    from tensorflow_datasets.image_classification import mnist

    from trainer import data

    # The builder of MNIST asks its files for as many pictures as the real ones hold.
    mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = SIZES["train"], SIZES["test"]
    for name in TFDS_NAMES:
        fill_cache(data_dir, name)
        data.load("cifar100_fine" if name == "cifar100" else name, data_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
