"""Tiny datasets under the official names; `python tests/tfds_fixture.py DATA_DIR` writes them with TFDS' own writer.

That needs no TensorFlow, since each picture is handed over as a PNG. test_preparing.py compares MNIST with what the
genuine builder prepares. The builders here bear the names of genuine ones, so they stay in a separate process.
"""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np

TFDS_NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100")
SIZES = {"train": 200, "test": 100}
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:1")  # no proxy listens there
OFFLINE |= {name.upper(): proxy for name, proxy in OFFLINE.items()} | {"no_proxy": "", "NO_PROXY": ""}


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


def shades(split: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What the builders of tfds_builders.py make: uint8 (N, *shape), and as labels how bright they are, from 0 to 2."""
    rng, count = np.random.default_rng(split == "test"), {"train": 60, "test": 30}[split]
    labels = np.arange(count) % 3
    images = 60 + 60 * labels[:, None, None, None] + rng.integers(-50, 51, (count, *shape))
    return images.astype(np.uint8), labels


def assert_shades(dataset, split: str) -> None:
    """That the split of the dataset has these pictures, in any order, each with its label."""
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    expected, kinds = shades(split, images.shape[1:])
    label_of = {image.tobytes(): kind % dataset.num_classes for image, kind in zip(expected, kinds, strict=True)}
    assert {image.tobytes(): label for image, label in zip(images, labels, strict=True)} == label_of
    assert len(images) == len(label_of)


def png(image: np.ndarray) -> io.BytesIO:
    """As a file, which TFDS copies as it is; an array it would encode with TensorFlow."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "png")
    file.seek(0)
    return file


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in another process, where train/ can be imported, with these environment variables on top of ours."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1] / "train"), **variables}
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

    tfds.disable_progress_bar()
    for genuine in [tfds.builder_cls(name) for name in TFDS_NAMES]:
        with tfds.core.registered.skip_registration():
            builder = tiny(genuine)(data_dir=data_dir)
        builder.download_and_prepare(file_format="array_record")


if __name__ == "__main__":
    main(*sys.argv[1:])
