"""`--tensorboard`: what TensorBoard's own reader finds after an uninterrupted run and after a resumed one."""

import functools
import gc
import time
import types
import warnings

import numpy as np
import pytest

import stop_after
from trainer.config import Config
from trainer.loop import chunk_lengths
from trainer.progress import Preempted

STEPS, EPOCHS = 10, 3
ENDS = (2, 4, 5, 6, 7, 8, 9, 10)  # the steps after which chunks end


RUN = Config(model="mlp", width=0.05, limit=150, batch_size=16, epochs=EPOCHS, tensorboard=True)
train = functools.partial(stop_after.train, RUN)


def scalars(workdir):
    """Tag -> [(step, value)]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's own, at import
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(workdir / "tensorboard"))
        reader.Reload()
        found = {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
        del reader
        gc.collect()  # it leaves its files open
    return found


@pytest.mark.parametrize(("checkpoint_every", "later"), [(1, 0), (3, -3600)])
def test_a_resumed_run_appends_and_nothing_is_there_twice(tmp_path, monkeypatch, checkpoint_every, later):
    """Whatever the clock says by then: TensorBoard reads the files in the order of their names."""
    assert tuple(np.cumsum(chunk_lengths(STEPS))) == ENDS
    start = time.time()
    monkeypatch.setattr("trainer.records.time", types.SimpleNamespace(time=lambda: start))
    with pytest.raises(Preempted):
        train(tmp_path, chunks=len(ENDS) + 4, checkpoint_every=checkpoint_every)
    assert len(scalars(tmp_path)["chunk/loss"]) == len(ENDS) + 4
    monkeypatch.setattr("trainer.records.time", types.SimpleNamespace(time=lambda: start + later))
    train(tmp_path, resume=True, checkpoint_every=checkpoint_every)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    found = scalars(tmp_path)
    assert [step for step, _ in found["chunk/loss"]] == [STEPS * epoch + end for epoch in range(EPOCHS) for end in ENDS]
    rows = stop_after.rows(tmp_path / "history.csv")
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_second"):
        steps, values = zip(*found[f"epoch/{name}"], strict=True)
        assert steps == (10, 20, 30)
        np.testing.assert_allclose(values, [float(row[name]) for row in rows], rtol=1e-5)
    losses = np.array([value for _, value in found["chunk/loss"]]).reshape(EPOCHS, len(ENDS))
    weights = np.array([32, 32, 16, 16, 16, 16, 16, 6])  # pictures of each chunk
    np.testing.assert_allclose(losses @ weights / 150, [float(row["loss"]) for row in rows], rtol=1e-5)
