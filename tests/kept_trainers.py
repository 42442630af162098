"""Trainers that are compiled once for all runs of a test file that need the same one."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from trainer import loop, steps, vgg
from trainer.config import SAME_RUN


@contextlib.contextmanager
def kept_trainers() -> Iterator[None]:
    """Within it, `loop.Trainer` returns an earlier trainer, back in its initial state, if its programs are the same."""
    kept = {}
    new_trainer = loop.Trainer

    def trainer(config, dataset, devices):
        replaced_by_tests = vgg.init, steps.train_chunk, steps.evaluate
        key = len(devices), config.watch, *replaced_by_tests, *(getattr(config, name) for name in SAME_RUN)
        if key not in kept:
            made = new_trainer(config, dataset, devices)
            kept[key] = made, jax.tree.map(np.array, made.state)
        made, initial = kept[key]
        made.config, made.state = config, made.replicas.replicate(initial)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Trainer", trainer)
        yield
