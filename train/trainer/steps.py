"""What one device computes, as pure functions; `sum_over_devices` combines the devices. Compiling them is in `loop`.

A batch is a row of picture numbers; -1 is padding. Sums over valid pictures are added up over the devices and divided
by the number of valid pictures, so that each picture has the same weight in a partial batch, or in one that does not
divide evenly among the devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer.devices import sum_over_devices


class TrainState(NamedTuple):
    """What training changes; equal on every device."""

    params: Any
    opt_state: optax.OptState


class Split(NamedTuple):
    """A whole split, on every device."""

    images: jax.Array | np.ndarray  # (n, height, width, channels), or (n, height * width * channels); uint8
    labels: jax.Array | np.ndarray  # (n,), int32
    epoch: jax.Array | None = None  # (), int32: the current one, if `View` depends on it


class Sums(NamedTuple):
    """Over the valid pictures of a batch, or of many: float32 loss, int32 counts."""

    loss: jax.Array
    correct: jax.Array
    count: jax.Array  # type: ignore[assignment]


Apply = Callable[..., Any]  # ({"params": params}, uint8 images as in Split) -> float32 logits (b, classes)
View = Callable[[Split, jax.Array], jax.Array]  # (pictures, row numbers (b,)) -> uint8 images, as in Split


def flat(images: np.ndarray) -> np.ndarray:
    """A row for each picture, (n, height * width * channels), the layout that a TPU needs.

    A TPU tiles the last two axes of an array: to take pictures out of an (n, 32, 32, 3) array, XLA copies the whole
    dataset, at four times its size, in every call (`tests/speed/tpu_cost.py`).
    """
    return images.reshape(len(images), -1)


def on_flat(apply: Apply, shape: tuple[int, ...]) -> Apply:
    """`apply` for pictures of `shape` (h, w, c) stored by `flat`."""
    return lambda variables, images: apply(variables, images.reshape(-1, *shape))


def in_batches(order: np.ndarray, count: int, size: int) -> np.ndarray:
    """The first `count` batches of `size` of the picture numbers `order`, int32 (count, size), padded with -1."""
    filled = np.full(count * size, -1, np.int32)
    filled[: len(order)] = order[: len(filled)]
    return filled.reshape(count, size)


def unchanged(pictures: Split, rows: jax.Array) -> jax.Array:
    """The images of these rows as they are."""
    return pictures.images[rows]


def batch_sums(apply: Apply, params: Any, pictures: Split, batch: jax.Array, view: View = unchanged) -> Sums:
    """Cross-entropy (of the softmax of the logits) and hits of this device's part of a batch, int32 (b,)."""
    valid = batch >= 0
    rows = jnp.maximum(batch, 0)
    logits = apply({"params": params}, view(pictures, rows))
    labels = pictures.labels[rows]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Sums(
        loss=jnp.sum(jnp.where(valid, losses, 0)),
        correct=jnp.sum(jnp.where(valid, jnp.argmax(logits, -1) == labels, False), dtype=jnp.int32),
        count=jnp.sum(valid, dtype=jnp.int32),
    )


def mean_gradient(
    apply: Apply, params: Any, pictures: Split, batch: jax.Array, view: View = unchanged
) -> tuple[Any, Sums]:
    """The mean gradient over the valid pictures of all devices, and their sums."""
    # Dividing the loss saves one pass over the gradient in memory.
    count = sum_over_devices(jnp.sum(batch >= 0, dtype=jnp.int32))

    def part_of_mean(params):
        sums = batch_sums(apply, params, pictures, batch, view)
        return sums.loss / count.astype(sums.loss.dtype), sums

    return sum_over_devices(jax.grad(part_of_mean, has_aux=True)(params))


def train_step(
    apply: Apply,
    tx: optax.GradientTransformation,
    state: TrainState,
    pictures: Split,
    batch: jax.Array,
    view: View = unchanged,
) -> tuple[TrainState, Sums]:
    """One update, from the mean gradient over the valid pictures of all devices."""
    gradients, sums = mean_gradient(apply, state.params, pictures, batch, view)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), sums


def train_chunk(
    apply: Apply,
    tx: optax.GradientTransformation,
    state: TrainState,
    pictures: Split,
    batches: jax.Array,
    view: View = unchanged,
) -> tuple[TrainState, Sums]:
    """Many steps, int32 (steps, b) picture numbers; the sums of each step, (steps,), before its update."""
    return jax.lax.scan(lambda s, batch: train_step(apply, tx, s, pictures, batch, view), state, batches)


def evaluate(apply: Apply, params: Any, pictures: Split, batches: jax.Array) -> Sums:
    """Sums over all batches, int32 (steps, b) picture numbers, of all devices."""

    def add(total, batch):
        return jax.tree.map(jnp.add, total, batch_sums(apply, params, pictures, batch)), None

    zero = Sums(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    return sum_over_devices(jax.lax.scan(add, zero, batches)[0])
