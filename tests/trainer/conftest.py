"""What the trainer's tests share: the log at INFO, and trainers that are compiled once for a file."""

import logging

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def informed(caplog):
    """`caplog` has what a user reads."""
    caplog.set_level(logging.INFO, "train")


@pytest.fixture
def call(monkeypatch, run, tmp_path):
    """`call(module, *words)`: a command that ends with an error, in `tmp_path`; its exit code and its lines."""
    monkeypatch.chdir(tmp_path)

    def call(module, *words):
        code, *written = run(module, *words)
        lines = "".join(written).splitlines()
        assert lines[-1].startswith("error: ") and not any("Traceback" in line for line in lines)
        return code, *lines

    return call


@pytest.fixture(scope="module")
def kept():
    """`loop.Trainer` returns an earlier trainer, back in its initial state, if its programs are the same."""
    from trainer import loop, steps, vgg
    from trainer.config import SAME_RUN

    kept, new_trainer = {}, loop.Trainer

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
