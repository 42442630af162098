"""`--tensorboard`: what TensorBoard's own reader finds after a resumed run."""

import functools
import gc
import time
import types
import warnings

import numpy as np
import pytest

import stop_after
from trainer.config import Config
from trainer.progress import Preempted

EPOCHS, ENDS = 3, (2, 4, 5, 6, 7, 8, 9, 10)  # the steps of an epoch after which chunks end
RUN = Config(model="mlp", width=0.05, limit=150, batch_size=16, epochs=EPOCHS, tensorboard=True)
train = functools.partial(stop_after.train, RUN)


def scalars(workdir):
    """Tag -> its steps and its values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's own, at import
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(workdir / "tensorboard"))
        reader.Reload()
        tags = reader.Tags()["scalars"]
        found = {tag: np.transpose([(e.step, e.value) for e in reader.Scalars(tag)]) for tag in tags}
        del reader
        gc.collect()  # it leaves its files open
    return found


@pytest.mark.parametrize(("checkpoint_every", "later"), [(1, 0), (3, -3600)])
def test_a_resumed_run_appends_and_nothing_is_there_twice(tmp_path, monkeypatch, kept, checkpoint_every, later):
    """Whatever the clock says by then: TensorBoard reads the files in the order of their names."""
    start = time.time()
    monkeypatch.setattr("trainer.records.time", types.SimpleNamespace(time=lambda: start))
    with pytest.raises(Preempted):
        train(tmp_path, chunks=len(ENDS) + 4, checkpoint_every=checkpoint_every)
    assert scalars(tmp_path)["chunk/loss"].shape == (2, len(ENDS) + 4)
    monkeypatch.setattr("trainer.records.time", types.SimpleNamespace(time=lambda: start + later))
    train(tmp_path, resume=True, checkpoint_every=checkpoint_every)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    found = scalars(tmp_path)
    rows = stop_after.rows(tmp_path / "history.csv")
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_second"):
        steps, values = found[f"epoch/{name}"]
        assert steps.tolist() == [10, 20, 30]
        np.testing.assert_allclose(values, [float(row[name]) for row in rows], rtol=1e-5)
    steps, losses = found["chunk/loss"]
    assert steps.tolist() == [10 * epoch + end for epoch in range(EPOCHS) for end in ENDS]
    weights = np.array([32, 32, 16, 16, 16, 16, 16, 6])  # pictures of each chunk
    means = losses.reshape(EPOCHS, len(ENDS)) @ weights / 150
    np.testing.assert_allclose(means, [float(row["loss"]) for row in rows], rtol=1e-5)
