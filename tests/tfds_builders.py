"""Small builders of TFDS; `main(DATA_DIR)` prepares them there, without TensorFlow all but TinyDefault.

A test process that does not import this file finds them by what is prepared alone, as it would another machine's set.
"""

import tensorflow_datasets as tfds

from tfds_fixture import pictures, png


class _Base(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SHAPE, SPLITS, FEATURES = (40, 48, 3), ("train", "test"), ("picture", "kind")

    def _info(self):
        kind, parity = tfds.features.ClassLabel(num_classes=3), tfds.features.ClassLabel(names=["even", "odd"])
        every = {"picture": tfds.features.Image(shape=self.SHAPE), "kind": kind, "parity": parity}
        features = tfds.features.FeaturesDict({name: every[name] for name in self.FEATURES})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        shape = tuple(size or 20 for size in self.SHAPE)
        for i, (image, label) in enumerate(zip(*pictures(self.name, split, shape), strict=True)):
            every = {"picture": png(image), "kind": int(label), "parity": int(label % 2)}
            yield i, {name: every[name] for name in self.FEATURES}


class TinyColour(_Base):
    """One label, not named "label"."""


class TinyGrey(_Base):
    """One channel, two labels, neither of them called "label"; two configurations."""

    SHAPE, FEATURES = (256, 200, 1), ("picture", "kind", "parity")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in ("plain", "other"))


class TinyDefault(_Base):
    """To be prepared in TFDS' default format, which needs TensorFlow."""


class TinyUnsized(_Base):
    SHAPE = (None, None, 3)


class TinyLarge(_Base):
    SHAPE = (257, 16, 3)


class TinyUnsplit(_Base):
    SPLITS = ("train",)


class TinyBlind(_Base):
    FEATURES = ("kind",)


def main(data_dir):
    for builder in (TinyColour, TinyUnsized, TinyLarge, TinyUnsplit, TinyBlind):
        builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
    TinyGrey(data_dir=data_dir, config="other").download_and_prepare(file_format="array_record")
