"""Small builders of TFDS; `main(DATA_DIR)` prepares each of them there.

A test process that does not import this file finds them by what is prepared alone, as it would another machine's set.
"""

import numpy as np
import tensorflow_datasets as tfds

COUNTS = {"train": 60, "test": 30}


def pictures(split, shape):
    """uint8 pictures and labels 0 to 2; the label is how bright a picture is."""
    rng = np.random.default_rng(split == "test")
    labels = np.arange(COUNTS[split]) % 3
    images = 60 + 60 * labels[:, None, None, None] + rng.integers(-50, 51, (COUNTS[split], *shape))
    return images.astype(np.uint8), labels


class _Base(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (40, 48, 3)
    SPLITS = ("train", "test")

    def features(self):
        return {"picture": tfds.features.Image(shape=self.SHAPE), "kind": tfds.features.ClassLabel(num_classes=3)}

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features()))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        shape = [size or 20 + i for i, size in enumerate(self.SHAPE)]
        for i, (image, label) in enumerate(zip(*pictures(split, shape), strict=True)):
            yield i, self.example(image, int(label))

    def example(self, image, label):
        return {"picture": image, "kind": label}


class TinyColour(_Base):
    """One label of another name than "label"."""


class TinyGrey(_Base):
    """One channel, two labels, neither of them called "label"; two configurations."""

    SHAPE = (256, 200, 1)
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in ("plain", "other"))

    def features(self):
        return super().features() | {"parity": tfds.features.ClassLabel(names=["even", "odd"])}

    def example(self, image, label):
        return {"picture": image, "kind": label, "parity": label % 2}


class TinyDefault(_Base):
    """Prepared in TFDS' default format."""


class TinyUnsized(_Base):
    SHAPE = (None, None, 3)


class TinyLarge(_Base):
    SHAPE = (257, 16, 3)


class TinyUnsplit(_Base):
    SPLITS = ("train",)


class TinyBlind(_Base):
    """No pictures."""

    def features(self):
        return {"kind": tfds.features.ClassLabel(num_classes=3)}

    def example(self, image, label):
        return {"kind": label}


def main(data_dir):
    """Two of them as a user does it, the others by themselves."""
    from trainer import data

    data.load("tfds:tiny_colour", data_dir)
    data.load("tfds:tiny_grey/other:parity", data_dir)
    for builder in (TinyUnsized, TinyLarge, TinyUnsplit, TinyBlind):
        builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
    TinyDefault(data_dir=data_dir).download_and_prepare()
