"""Tiny datasets under the official names, and those of tfds_builders.py, written with TFDS' own writer.

    python tests/tfds_fixture.py DATA_DIR

That needs no TensorFlow, since each picture is handed over as a PNG. test_preparing.py compares MNIST with what the
genuine builder prepares. The builders here have the names of genuine ones, so they stay in a separate process.
"""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np

# Official name -> the shape of its pictures and the number of its classes.
OFFICIAL = {"mnist": ((28, 28, 1), 10), "fashion_mnist": ((28, 28, 1), 10)}
OFFICIAL |= {"cifar10": ((32, 32, 3), 10), "cifar100": ((32, 32, 3), 100)}
SIZES = {"train": 200, "test": 100}  # of these; of the sets of tfds_builders.py 60 and 30
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:1")  # no proxy listens there
OFFLINE |= {name.upper(): proxy for name, proxy in OFFLINE.items()} | {"no_proxy": "", "NO_PROXY": ""}


def pictures(name: str, split: str, shape: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """What the files of a split contain: noise, uint8 (N, *shape), and balanced labels in random order, int32 (N,).

    Those of cifar100 are the fine ones. `shape` is needed for the sets of tfds_builders.py, which have 3 classes.
    """
    shape, classes = OFFICIAL.get(name, (shape, 3))
    count = SIZES[split] if name in OFFICIAL else SIZES[split] * 3 // 10
    rng = np.random.default_rng([*name.encode(), split == "test"])
    return rng.integers(0, 256, (count, *shape), np.uint8), rng.permutation(np.arange(count) % classes).astype(np.int32)


def labelled(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    """Every picture with its label, sorted."""
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def assert_holds(dataset, split: str, name: str) -> None:
    """That the split of the dataset has the pictures of the set `name`, in any order, each with its label."""
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    expected, kinds = pictures(name, split, images.shape[1:])
    assert images.shape == expected.shape
    kinds = kinds // 5 if dataset.num_classes == 20 else kinds % dataset.num_classes
    assert labelled(images, labels) == labelled(expected, kinds)


def png(image: np.ndarray) -> io.BytesIO:
    """As a file, which TFDS copies as it is; an array it would encode with TensorFlow."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "png")
    file.seek(0)
    return file


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in another process, which imports from here and train/, with these environment variables too."""
    here = pathlib.Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent / 'train'}", **variables}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done


def tiny(genuine):
    """A builder of our pictures with the name, the version and the features of a genuine one."""

    class Tiny(genuine):
        name = genuine.name

        def _split_generators(self, dl_manager):
            for key in sorted({"label", "coarse_label"} & {*self.info.features}):
                label = self.info.features[key]
                if self.name.startswith("cifar"):  # whose class names come from a file
                    stem = {10: "class", 20: "coarse", 100: "fine"}[label.num_classes]
                    label.names = [f"{stem}{i}" for i in range(label.num_classes)]
            return {split: self._generate_examples(split) for split in SIZES}

        def _generate_examples(self, split):
            for i, (image, label) in enumerate(zip(*pictures(self.name, split), strict=True)):
                features = {"image": png(image), "label": label, "coarse_label": label // 5, "id": f"{split}_{i:05d}"}
                yield i, {name: features[name] for name in self.info.features}

    return Tiny


def main(data_dir: str) -> None:
    import tensorflow_datasets as tfds

    import tfds_builders

    tfds.disable_progress_bar()
    for genuine in [tfds.builder_cls(name) for name in OFFICIAL]:
        with tfds.core.registered.skip_registration():
            builder = tiny(genuine)(data_dir=data_dir)
        builder.download_and_prepare(file_format="array_record")
    tfds_builders.main(data_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
