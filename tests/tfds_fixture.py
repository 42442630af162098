"""Tiny datasets in the official file formats; `python tests/tfds_fixture.py DATA_DIR NAME...` prepares them.

TFDS takes a file in DATA_DIR/downloads/NAME that bears the expected name, with an .INFO file beside it, for a finished
download. So its genuine builders run on these pictures without a network. TensorFlow, which they need, stays in this
process.
"""

import gzip
import io
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np

TFDS_NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100")
SIZES = {"train": 200, "test": 100}


def pictures(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """What the files of one split contain: uint8 (N, h, w, c), a wave per class plus noise, and int32 (N,) labels.

    The labels are balanced. For cifar100 they are the fine ones, of which every class has 2 pictures in the training
    split; a coarse class is `label // 5`, and its five fine classes are shades of one wave.
    """
    size, channels = (32, 3) if name.startswith("cifar") else (28, 1)
    classes, shades = (20, 5) if name == "cifar100" else (10, 1)
    rng = np.random.default_rng([TFDS_NAMES.index(name), split == "test"])
    labels = rng.permutation(np.arange(SIZES[split]) % (classes * shades)).astype(np.int32)
    fx, fy, px, py = np.random.default_rng(7).uniform(1, 7, (4, classes, 1, 1, channels))
    y, x = np.mgrid[0:size, 0:size, 0:1][:2] / size
    waves = 128 + 70 * np.sin(fx * x + px) * np.cos(fy * y + py)
    images = waves[labels // shades] + 10 * (labels % shades)[:, None, None, None]
    return np.clip(images + rng.integers(-15, 16, images.shape), 0, 255).astype(np.uint8), labels


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


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in another process, where train/ can be imported, with these environment variables on top of ours."""
    train = pathlib.Path(__file__).parents[1] / "train"
    environment = {**os.environ, "PYTHONPATH": str(train), **variables}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def main(data_dir: str, *names: str) -> None:
    """Prepare the named datasets the way a user does: by loading them."""
    from tensorflow_datasets.image_classification import mnist

    from trainer import data

    # The builder of MNIST asks its files for as many pictures as the real ones hold.
    mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES = SIZES["train"], SIZES["test"]
    for name in names:
        fill_cache(data_dir, name)
        data.load("cifar100_fine" if name == "cifar100" else name, data_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
