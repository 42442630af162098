"""Trainers that are compiled once for all runs of a test file that need the same one."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from trainer import loop, vgg
from trainer.config import SAME_RUN


@contextlib.contextmanager
def kept_trainers() -> Iterator[None]:
    """In it, `loop.Trainer` gives a trainer of before with its initial state, where only other flags differ."""
    kept = {}
    new_trainer = loop.Trainer

    def trainer(config, dataset, devices):
        key = len(devices), config.watch, vgg.init, *(getattr(config, name) for name in SAME_RUN)
        if key not in kept:
            made = new_trainer(config, dataset, devices)
            kept[key] = made, jax.tree.map(np.array, made.state)
        made, initial = kept[key]
        made.config, made.state = config, made.replicas.replicate(initial)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Trainer", trainer)
        yield
