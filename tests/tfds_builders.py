"""Small builders of TFDS; `main(DATA_DIR)` prepares them there, without TensorFlow all but TinyDefault.

A test process that does not import this file finds them by what is prepared alone, as it would another machine's set.
"""

import tensorflow_datasets as tfds

from tfds_fixture import png, shades


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
        for i, (image, label) in enumerate(zip(*shades(split, shape), strict=True)):
            yield i, self.example(png(image), int(label))

    def example(self, image, label):
        return {"picture": image, "kind": label}


class TinyColour(_Base):
    """One label, not named "label"."""


class TinyGrey(_Base):
    """One channel, two labels, neither of them called "label"; two configurations."""

    SHAPE = (256, 200, 1)
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in ("plain", "other"))

    def features(self):
        return super().features() | {"parity": tfds.features.ClassLabel(names=["even", "odd"])}

    def example(self, image, label):
        return {"picture": image, "kind": label, "parity": label % 2}


class TinyDefault(_Base):
    """To be prepared in TFDS' default format, which needs TensorFlow."""


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
    for builder in (TinyColour, TinyUnsized, TinyLarge, TinyUnsplit, TinyBlind):
        builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
    TinyGrey(data_dir=data_dir, config="other").download_and_prepare(file_format="array_record")
