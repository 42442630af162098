"""A training step of VGG16 on 32 x 32 pictures, batch 128: ours beside PyTorch and Keras.

    pip install -e ".[train,peers,prepare]" && python tests/speed/train_step.py [--precision float32] [--json FILE]

Images per second in steady state. Ours is the trainer's own compiled chunk. The others train the same network (every
bias, ReLU and pooling, two dense layers of 4,096) on the same pictures, with the same cross-entropy and batch, and with
SGD and momentum where ours has Gravity: PyTorch channels-last with its fused SGD, Keras by `model.fit` on TensorFlow.
bfloat16 is `--precision bfloat16` here and autocast in PyTorch. Each framework has a process of its own, so that their
thread pools do not meet; they take turns.
"""

import functools
import os
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import timing
import torch_peer

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "train"))

BATCH, CLASSES = 128, 10
STEPS = 6  # in one timed run
STEPS_PER_EPOCH = 48  # which the trainer cuts into chunks of STEPS
CONVOLUTIONS, CHANNELS, DENSE = (2, 2, 3, 3, 3), (64, 128, 256, 512, 512), 4096


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random uint8 (count, 32, 32, 3) and int32 labels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, CLASSES, count, np.int32)


def ours(precision: str) -> Callable[[], object]:
    """One chunk of the trainer."""
    import jax

    from trainer import config, data, loop, steps

    settings = config.resolve(
        config.Config(dataset="cifar10", model="vgg16", precision=precision, batch_size=BATCH)  # type: ignore[arg-type]
    )
    images, labels = pictures(STEPS_PER_EPOCH * BATCH)
    dataset = data.Dataset("cifar10", images, labels, images[:BATCH], labels[:BATCH], CLASSES)
    trainer = loop.Trainer(settings, dataset)
    assert set(trainer.lengths) == {STEPS}
    batches = trainer.replicas.split(steps.in_batches(np.arange(STEPS * BATCH), STEPS, BATCH))

    def run():
        trainer.state, sums = trainer.built.chunks[STEPS](trainer.state, trainer.built.train_set, batches)
        jax.block_until_ready((trainer.state, sums))

    return run


def pytorch(dtype: str) -> Callable[[], object]:
    """STEPS of PyTorch, channels last."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    model = torch_peer.vgg(CONVOLUTIONS, CHANNELS, DENSE, CLASSES)
    return torch_peer.training_steps(model, BATCH, STEPS, dtype, "cpu")


def keras_on_tensorflow() -> Callable[[], object]:
    """STEPS of Keras' own loop."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    from keras import layers

    parts = [keras.Input((32, 32, 3), dtype="uint8"), layers.Rescaling(1 / 255)]
    for count, features in zip(CONVOLUTIONS, CHANNELS, strict=True):
        parts += [layers.Conv2D(features, 3, padding="same", activation="relu") for _ in range(count)]
        parts.append(layers.MaxPooling2D())
    parts += [layers.Flatten(), *(layers.Dense(DENSE, activation="relu") for _ in range(2)), layers.Dense(CLASSES)]
    model = keras.Sequential(parts)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    images, labels = pictures(STEPS * BATCH)
    return lambda: model.fit(images, labels, batch_size=BATCH, epochs=1, verbose=0)


def made(runs: dict[str, Callable[[], Callable[[], object]]]) -> tuple[dict[str, Callable[[], object]], dict]:
    """In a process of the framework's own."""
    return {name: make() for name, make in runs.items()}, {}


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    text = "only this one; default: float32 and bfloat16, in which a CPU without its instructions takes minutes"
    options = timing.arguments(__doc__, rounds=5, precision=text)
    precisions = (options.precision,) if options.precision else ("float32", "bfloat16")
    of = lambda name, make: {f"{name}, {precision}": functools.partial(make, precision) for precision in precisions}
    frameworks = {
        "jax": functools.partial(made, of("ours", ours)),
        "torch": functools.partial(made, of("PyTorch", pytorch)),
        "keras": functools.partial(made, {"Keras, float32": keras_on_tensorflow}),
    }
    seconds, _ = timing.in_processes(frameworks, options.rounds, warmup=1)
    rows = []
    for name, values in seconds.items():
        row = {"VGG16, batch 128": name, **timing.summary([s / STEPS for s in values])}
        rows.append(row | {"images/s": 1e3 * BATCH / row["median_ms"]})
    speed = {row["VGG16, batch 128"]: row["images/s"] for row in rows}
    for row in rows:
        precision = row["VGG16, batch 128"].split(", ")[1]
        row["ours / this"] = speed.get(f"ours, {precision}", float("nan")) / row["images/s"]
    timing.report(options.json, {"train_step": rows})


if __name__ == "__main__":
    main()
