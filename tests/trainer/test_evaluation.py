"""`train/evaluate.py`: what it says of a finished and of an interrupted run, and the files it writes."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import processes
from trainer import data, evaluation
from trainer.checkpoints import ReadCheckpoints
from trainer.config import Config, UserError
from trainer.loop import chunk_lengths
from trainer.progress import Preempted

RUN = Config(model="mlp", width=0.05, limit=128, batch_size=8, epochs=3, keep=5, norm="group", learning_rate=0.5)
NEWEST = "checkpoints/19/progress/metadata"
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An interrupted run, in the middle of its third epoch."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.raises(Preempted):
        processes.train_here(RUN, workdir, len(chunk_lengths(16)) * 2 + 3, devices=2)
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("confusion.png"))


def test_loss_and_accuracy_are_those_of_the_epochs_row(run, tmp_path):
    before, predictions = processes.snapshot(run), tmp_path / "predictions.csv"
    for number, row in zip(processes.whole(run), pd.read_csv(run / "history.csv").itertuples(), strict=False):
        report = evaluation.evaluate(str(run), number, str(predictions))
        assert f"loss {row.val_loss:.4f}, accuracy {row.val_accuracy:.4f} on 128 test pictures" in report
        assert f"checkpoint {number}, after epoch {row.epoch}\n" in report
        pictures = pd.read_csv(predictions)
        hits = pictures.label == pictures.predicted
        np.testing.assert_array_equal(pictures.label, data.load("digits", None, 128).test_labels)
        np.testing.assert_allclose([hits.mean(), pictures.loss.mean()], [row.val_accuracy, row.val_loss], rtol=1e-4)
        np.testing.assert_allclose(pictures.probability[hits], np.exp(-pictures.loss[hits]), rtol=1e-3)
        for label, of_class in hits.groupby(pictures.label):
            assert re.search(rf"^ +{label} +{len(of_class)} +\S+ +{of_class.mean():.4f}$", report, re.MULTILINE), report
    picture = run / "confusion.png"
    assert processes.snapshot(run) == before | {picture: picture.read_bytes()}, "evaluation changed the run"
    assert picture.read_bytes().startswith(PNG)


def test_the_data_are_read_from_the_runs_folder_unless_another_is_given(run, monkeypatch):
    load, asked = data.load, []
    monkeypatch.setattr(data, "load", lambda name, folder, limit: asked.append(folder) or load(name, folder, limit))
    for folder in (None, "elsewhere"):
        report = evaluation.evaluate(str(run), data_dir=folder)
    assert asked == [None, "elsewhere"]
    assert f"checkpoint {processes.whole(run)[-1]}, after epoch 2 and 3 chunks of the next" in report


def test_rows_of_the_confusion_are_labels():
    assert evaluation.confused(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist() == [[1, 1], [0, 1]]


def test_the_exported_weights_have_names_and_say_what_model_they_are_of(run, tmp_path):
    number = processes.whole(run)[1]
    evaluation.evaluate(str(run), number, export=str(tmp_path / "weights"))
    _, arrays, _ = ReadCheckpoints(run / "checkpoints").read(number)
    said = {"dataset": "digits", "model": "mlp", "width": "0.05", "precision": "float32", "norm": "group"}
    with safe_open(tmp_path / "weights", "np") as file:
        assert file.metadata() == said | {"num_classes": "10", "image_shape": "(8, 8, 1)"}
    weights = load_file(tmp_path / "weights")
    assert len(weights) == sum(".params" in name for name in arrays) == 10
    for name, weight in weights.items():
        layer, kind = name.split(".")
        np.testing.assert_array_equal(weight, arrays[f".params['{layer}']['{kind}']"])


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda w: None, {"checkpoint": 7}, "--checkpoint is 7, which is not in .*; choose one of "),
        (lambda w: (w / "config.json").unlink(), {}, "whose config.json cannot be read"),
        (lambda w: shutil.rmtree(w / "checkpoints"), {}, "which has no checkpoint yet"),
        (lambda w: (w / NEWEST).write_bytes(b""), {}, r"is damaged .*; choose another with --checkpoint: 8, 16\."),
        (lambda w: None, {"export": "/nowhere/weights"}, "/nowhere/weights could not be written"),
        (lambda w: None, {"confusion": "/nowhere/c.png"}, "/nowhere/c.png could not be written"),
    ],
)
def test_what_cannot_be_done_is_one_line(copy, damage, options, message):
    damage(copy)
    parts = []
    with pytest.raises(UserError, match=message) as caught:
        evaluation.evaluate(str(copy), **options, tell=parts.append)
    assert "\n" not in str(caught.value)
    assert (" on 128 test pictures" in "".join(parts)) == ("/nowhere" in message), "the numbers come first"


def test_the_numbers_come_without_a_picture_that_cannot_be_written_or_drawn(copy, tmp_path, monkeypatch, caplog):
    """A folder is where the picture should be, which stops root too."""
    (copy / "confusion.png").mkdir()
    report = evaluation.evaluate(str(copy))
    assert " on 128 test pictures" in report
    assert "no picture of the errors: " in report and "--confusion FILE" in report
    assert "is written" in evaluation.evaluate(str(copy), confusion=str(tmp_path / "c.png"))
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)
    monkeypatch.setattr(evaluation, "_confusion_figure", lambda *_: 1 / 0)
    assert " on 128 test pictures" in evaluation.evaluate(str(copy))
    assert "confusion.png was not drawn" in caplog.text
