"""The trainer's own step on VGG16, 32 x 32 x 3, batch 128, in steady state, beside PyTorch and Keras on the CPU.

    pip install -e ".[train,peers]" && python tests/speed/train_step.py [--json FILE]

Everybody trains the same model (33,638,218 parameters) on the same batch with the same loss and updates all of it; ours
with Gravity, PyTorch with fused momentum SGD in channels-last layout, Keras with `model.fit` and momentum SGD. bfloat16
is `--precision bfloat16` against PyTorch's autocast. A run is `STEPS` steps.
"""

import os
import pathlib
import sys
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import timing

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "train"))
import data
import vgg
from config import Config, resolve

BATCH, STEPS, PARAMETERS = 128, 4, 33_638_218


def ours(pictures: data.Dataset, precision: str, optimizer: str = "gravity") -> Callable[[], object]:
    """A compiled chunk of the trainer, with its metrics read back."""
    import jax
    import loop

    config = resolve(Config("cifar10", "vgg16", optimizer=optimizer, precision=precision, batch_size=BATCH))
    trainer = loop.Trainer(config, pictures)
    assert sum(x.size for x in jax.tree.leaves(trainer.state.params)) == PARAMETERS
    batches = trainer._batches(np.arange(STEPS * BATCH), STEPS)
    chunk = trainer._chunks[STEPS]

    def run():
        trainer.state, sums = chunk(trainer.state, trainer.train_set, batches)
        assert np.all(np.isfinite(sums.loss))

    return run


def torch_vgg16(pictures: data.Dataset, autocast: bool) -> Callable[[], object]:
    import torch
    from torch import nn

    blocks: list[nn.Module] = []
    channels = 3
    for count, features in zip(vgg.CONVOLUTIONS["vgg16"], vgg.CHANNELS, strict=True):
        for _ in range(count):
            blocks += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU()]
            channels = features
        blocks.append(nn.MaxPool2d(2))
    dense = [nn.Flatten(), nn.Linear(512, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)]
    model = nn.Sequential(*blocks, *dense).to(memory_format=torch.channels_last)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    images = torch.from_numpy(pictures.train_images).permute(0, 3, 1, 2)  # stays channels-last in memory
    labels = torch.from_numpy(pictures.train_labels).long()

    def run():
        total = 0.0
        for step in range(STEPS):
            rows = slice(step * BATCH, (step + 1) * BATCH)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(images[rows].float() / 255)
            loss = nn.functional.cross_entropy(logits.float(), labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.item()
        assert np.isfinite(total)

    return run


def keras_vgg16(pictures: data.Dataset) -> Callable[[], object]:
    import keras

    layers = [keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255)]
    for count, features in zip(vgg.CONVOLUTIONS["vgg16"], vgg.CHANNELS, strict=True):
        layers += [keras.layers.Conv2D(features, 3, padding="same", activation="relu") for _ in range(count)]
        layers.append(keras.layers.MaxPooling2D())
    layers += [keras.layers.Flatten(), *(keras.layers.Dense(4096, activation="relu") for _ in range(2))]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    assert model.count_params() == PARAMETERS
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, metrics=["accuracy"])
    return lambda: model.fit(pictures.train_images, pictures.train_labels, batch_size=BATCH, epochs=1, verbose=0)


def main() -> None:
    options = timing.arguments(__doc__, rounds=5)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (STEPS * BATCH, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, STEPS * BATCH, dtype=np.int32)
    pictures = data.Dataset("cifar10", images, labels, images[:BATCH], labels[:BATCH], 10)
    runs = {
        "ours, float32": ours(pictures, "float32"),
        "PyTorch, float32": torch_vgg16(pictures, autocast=False),
        "Keras on TensorFlow, float32": keras_vgg16(pictures),
        "ours, bfloat16": ours(pictures, "bfloat16"),
        "PyTorch, bfloat16 autocast": torch_vgg16(pictures, autocast=True),
    }
    times = timing.interleaved(runs, options.rounds, warmup=1)
    own = timing.summary(times["ours, float32"])["median_ms"]
    rows = []
    for name, seconds in times.items():
        row = {"VGG16, batch 128": name, **timing.summary([s / STEPS for s in seconds])}
        row["images/s"] = 1e3 * BATCH / row["median_ms"]
        row["ours float32 / this"] = own / STEPS / row["median_ms"]
        rows.append(row)
    sys.stdout.write(timing.table(rows) + "\n")
    timing.write(options.json, {"train_step": rows})


if __name__ == "__main__":
    main()
