"""A training step of VGG16 on 32 x 32 pictures, batch 128: ours beside PyTorch and Keras.

    pip install -e ".[train,peers,prepare]" && python tests/speed/train_step.py [--precision float32] [--out FOLDER]

Images per second in steady state. Ours is the trainer's own compiled chunk. The others train the same network (every
bias, ReLU and pooling, two dense layers of 4,096) on the same pictures, with the same cross-entropy and batch, and with
SGD and momentum where ours has Gravity: PyTorch channels-last with its fused SGD, Keras by `model.fit` on TensorFlow.
bfloat16 is `--precision bfloat16` here and autocast in PyTorch. Each framework has its own process, so that their
threads do not compete; they take turns.
"""

import functools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import programs
import timing
import torch_peer

from trainer import jax_setup, vgg

BATCH, CLASSES = 128, programs.CLASSES
STEPS = 6  # in one timed run


def ours(precisions: list[str]) -> tuple[timing.Runs, dict]:
    """One chunk of the trainer."""
    jax_setup.work_around()
    runs = {}
    for precision in precisions:
        training = programs.Training("vgg16", 1.0, precision, BATCH, STEPS, STEPS * BATCH)
        run = lambda training=training: jax.block_until_ready((training.run(), training.state))
        runs[f"ours, {precision}"] = run
    return runs, {}


def pytorch(precisions: list[str]) -> tuple[timing.Runs, dict]:
    """STEPS of PyTorch, channels last."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    run = functools.partial(torch_peer.training_steps, "vgg16", 1.0, CLASSES, BATCH, STEPS, device="cpu")
    return {f"PyTorch, {precision}": run(precision=precision) for precision in precisions}, {}


def keras_on_tensorflow(precisions: list[str]) -> tuple[timing.Runs, dict]:
    """STEPS of Keras' own loop, always in float32."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    from keras import layers

    parts = [keras.Input(programs.SHAPE, dtype="uint8"), layers.Rescaling(1 / 255)]
    for count, features in zip(vgg.CONVOLUTIONS["vgg16"], vgg.CHANNELS, strict=True):
        parts += [layers.Conv2D(features, 3, padding="same", activation="relu") for _ in range(count)]
        parts.append(layers.MaxPooling2D())
    parts += [layers.Flatten(), *(layers.Dense(vgg.DENSE, activation="relu") for _ in range(2)), layers.Dense(CLASSES)]
    model = keras.Sequential(parts)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    images = np.random.default_rng(0).integers(0, 256, (STEPS * BATCH, *programs.SHAPE), np.uint8)
    labels = np.arange(STEPS * BATCH, dtype=np.int32) % CLASSES
    return {"Keras, float32": lambda: model.fit(images, labels, batch_size=BATCH, epochs=1, verbose=0)}, {}


def step(options):
    """VGG16's training step, batch 128."""
    precisions = [options.precision] if options.precision else ["float32", "bfloat16"]
    frameworks = [functools.partial(make, precisions) for make in (ours, pytorch, keras_on_tensorflow)]
    times, _ = timing.in_processes(frameworks, options.rounds, warmup=1)
    speeds = {name: BATCH * STEPS / np.median(seconds) for name, seconds in times.items()}
    for name, speed in speeds.items():
        own = speeds.get(f"ours, {name.split(', ')[1]}", float("nan"))
        yield {
            "training step": name,
            **timing.summary(times[name], STEPS),
            "images/s": float(speed),
            "ours / this": float(own / speed),
        }


if __name__ == "__main__":
    only = "only this one; default: float32 and bfloat16, in which a CPU without its instructions takes minutes"
    timing.main(__doc__, step, rounds=5, precision={"choices": ["float32", "bfloat16"], "help": only})
