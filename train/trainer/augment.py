"""`--augment`: random changes to the training pictures, on the device. Evaluation uses the pictures as they are.

The change to a picture depends only on the run's seed, the epoch and the picture's number, so it is the same on any
number of devices, in any batch, and after `--resume`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer import steps
from trainer.config import ResolvedConfig

PAD = 4  # pixels on each side, reflected
_STREAM = 0x43726F70  # "Crop": fold_in(key, i) equals split(key, n)[i], and the initial state has i = 0 and 1


def view(config: ResolvedConfig, shape: tuple[int, ...]) -> steps.View:
    """The view that a run has of its training pictures, of `shape` (h, w, c) and stored by `steps.flat`."""
    if config.augment == "none":
        return steps.unchanged
    base = jax.random.fold_in(jax.random.key(config.seed), _STREAM)
    return functools.partial(_changed, jax.random.key_data(base), shape)


def pictures_of(train_set: steps.Split, config: ResolvedConfig, epoch: int, put: Callable[[Any], Any]) -> steps.Split:
    """The training set as the programs take it in `epoch`; `put` places the epoch's number on the devices."""
    return train_set if config.augment == "none" else train_set._replace(epoch=put(np.int32(epoch)))


def crop_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """A random crop of `image` (h, w, c), padded by its own reflection, mirrored half of the time."""
    where, mirrored = jax.random.split(key)
    top, left = jax.random.randint(where, (2,), 0, 2 * PAD + 1)
    padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)), "reflect")
    cropped = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    return jnp.where(jax.random.bernoulli(mirrored), cropped[:, ::-1], cropped)


def _changed(base, shape, pictures: steps.Split, rows: jax.Array) -> jax.Array:
    assert pictures.epoch is not None  # set by `pictures_of`
    of_epoch = jax.random.fold_in(jax.random.wrap_key_data(base), pictures.epoch)
    keys = jax.vmap(lambda row: jax.random.fold_in(of_epoch, row))(rows)
    return jax.vmap(crop_flip)(keys, steps.unchanged(pictures, rows).reshape(-1, *shape)).reshape(len(rows), -1)
