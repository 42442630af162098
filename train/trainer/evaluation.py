"""Evaluation of a run, finished or not, from one of its checkpoints: loss, accuracy, errors, exported weights.

The evaluation at the end of each epoch is in `steps` and `loop`.
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from trainer import data, networks, pictures, steps, vgg
from trainer.checkpoints import Arrays, ReadCheckpoints
from trainer.config import Config, ResolvedConfig, UserError, as_recorded, brief


class Scores(NamedTuple):
    """Of each test picture, (n,)."""

    loss: np.ndarray  # cross-entropy, float64
    predicted: np.ndarray  # class number, int64
    probability: np.ndarray  # of the predicted class, float64


def evaluate(
    workdir: str,
    checkpoint: int | None = None,
    predictions: str | None = None,
    export: str | None = None,
    data_dir: str | None = None,
    confusion: str | None = None,
    tell: Callable[[str], object] = lambda lines: None,
) -> str:
    """Scores the whole test set, writes the requested files and a picture, and returns a readable report.

    Args:
      workdir: the folder of a run; only confusion.png is written to it.
      checkpoint: its number; None for the newest.
      predictions: a CSV file to write: number, label, predicted class, its probability and loss of each picture.
      export: a file to write the weights to, in the safetensors format.
      data_dir: as for `data.load`; None for the run's own.
      confusion: a PNG file for the picture; None for confusion.png in `workdir`, if it can be written.
      tell: called with each part of the report as soon as it is known, the numbers first.

    Raises:
      UserError: for errors that the user can fix.
    """
    folder = epath.Path(workdir)
    config = _config(folder)
    number, arrays, progress = ReadCheckpoints(folder / "checkpoints").read(checkpoint)
    dataset = data.load(config.dataset, data_dir or config.data_dir, config.limit)
    model = networks.build(config, dataset.num_classes)
    params = _params(model, dataset, arrays, folder)
    scores = score(model, params, dataset.test_images, config.batch_size, dataset.test_labels)
    parts: list[str] = []

    def say(*lines: str) -> None:
        parts.append("".join(f"{line}\n" for line in lines))
        tell(parts[-1])

    say(f"{folder}, checkpoint {number}, after {_when(progress)}", *_table(dataset, scores))
    if predictions:
        say(_written(predictions, _predictions(dataset, scores)))
    if export:
        facts = {"num_classes": dataset.num_classes, "image_shape": dataset.test_images.shape[1:]}
        say(_written(export, _weights(params, config, facts)))
    if picture := pictures.png("confusion.png", lambda: _confusion_figure(dataset, scores)):
        try:
            say(_written(confusion or folder / "confusion.png", picture))
        except UserError as error:
            if confusion:
                raise
            say(f"no picture of the errors: {brief(error).partition(': ')[2]}; draw it elsewhere with --confusion FILE")
    return "".join(parts)


def _written(path: Any, content: bytes) -> str:
    try:
        epath.Path(path).write_bytes(content)
    except Exception as error:  # OSError, or an error of another file system's driver
        raise UserError(f"{path} could not be written ({brief(error)}); choose another path.") from error
    return f"{path} is written"


def score(model: networks.Network, params: Any, images: np.ndarray, batch_size: int, labels: np.ndarray) -> Scores:
    """Scores pictures, uint8 (n, h, w, c), with labels (n,), in batches."""

    apply: steps.Apply = model.apply

    @jax.jit
    def of_batch(params, images, labels):
        logits = apply({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses, jnp.argmax(logits, -1), jnp.max(jax.nn.softmax(logits), -1)

    batches = []
    for start in range(0, len(labels), batch_size):
        rows = np.arange(start, start + batch_size).clip(max=len(labels) - 1)  # the last batch is padded
        batches.append([np.asarray(x) for x in of_batch(params, images[rows], labels[rows])])
    loss, predicted, probability = (np.concatenate(x)[: len(labels)] for x in zip(*batches, strict=True))
    return Scores(loss.astype(np.float64), predicted.astype(np.int64), probability.astype(np.float64))


def confused(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes): how many pictures of the row's class were predicted as the column's."""
    return np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _config(folder: epath.Path) -> ResolvedConfig:
    try:
        recorded = as_recorded(dict(json.loads((folder / "config.json").read_text())))
        fields = {field.name for field in dataclasses.fields(Config)}
        return ResolvedConfig(**{name: value for name, value in recorded.items() if name in fields})
    except Exception as error:
        fix = "give the --workdir of a run of train/main.py"
        raise UserError(f"WORKDIR is {folder}, whose config.json cannot be read ({brief(error)}); {fix}.") from error


def _params(model: networks.Network, dataset: data.Dataset, arrays: Arrays, folder: epath.Path) -> Any:
    """The parameters among a checkpoint's arrays."""
    shape = dataset.test_images.shape[1:]
    like = jax.eval_shape(lambda: vgg.init(model, jax.random.key(0), shape))
    get: Callable = lambda path, leaf: arrays[f".params{jax.tree_util.keystr(path)}"].reshape(leaf.shape)
    try:
        return jax.tree_util.tree_map_with_path(get, like)
    except (KeyError, ValueError) as error:
        why = f"whose checkpoint is not of this model and dataset ({brief(error)})"
        raise UserError(f"WORKDIR is {folder}, {why}; use the version and --data-dir of its training.") from error


def _when(progress: dict[str, Any]) -> str:
    done, chunks = len(progress["rows"]), (progress["partial"] or [0])[0]
    return f"epoch {done}" + (f" and {int(chunks)} chunks of the next" if chunks else "")


def _table(dataset: data.Dataset, scores: Scores) -> list[str]:
    """The report's lines: the whole test set, then each class."""
    labels, hits = dataset.test_labels, scores.predicted == dataset.test_labels
    names = [*_names(dataset), "all"]
    width = max(len("class"), *map(len, names))
    lines = [f"loss {scores.loss.mean():.4f}, accuracy {hits.mean():.4f} on {len(labels)} test pictures"]
    lines.append(f"{'class':>{width}}  pictures    loss  accuracy")
    for number, name in enumerate(names):
        of = slice(None) if name == "all" and number == dataset.num_classes else labels == number
        count = len(labels[of])
        means = f"{scores.loss[of].mean():6.4f}  {hits[of].mean():8.4f}" if count else f"{'-':>6}  {'-':>8}"
        lines.append(f"{name:>{width}}  {count:8d}  {means}")
    return lines


def _names(dataset: data.Dataset) -> list[str]:
    return list(dataset.class_names) or [str(i) for i in range(dataset.num_classes)]


def _predictions(dataset: data.Dataset, scores: Scores) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "label", "predicted", "probability", "loss"])
    for i, (loss, predicted, probability) in enumerate(zip(*scores, strict=True)):
        writer.writerow([i, dataset.test_labels[i], predicted, f"{probability:.6g}", f"{loss:.6g}"])
    return text.getvalue().encode()


def _weights(params: Any, config: ResolvedConfig, facts: dict[str, Any]) -> bytes:
    """Names such as Conv3x3_0.kernel; what `vgg.build` needs is in the metadata."""
    flat = {name: np.ascontiguousarray(array) for name, array in flatten_dict(params, sep=".").items()}
    facts |= {name: getattr(config, name) for name in ("dataset", "model", "width", "precision", "norm")}
    return save(flat, metadata={name: str(value) for name, value in facts.items()})


def _confusion_figure(dataset: data.Dataset, scores: Scores) -> Any:
    """Rows are labels, columns predictions, colours the share of the row; counts if they are legible."""
    from matplotlib.figure import Figure

    counts, names = confused(dataset.test_labels, scores.predicted, dataset.num_classes), _names(dataset)
    size = min(16.0, max(5.0, 0.5 * len(names)))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the label's pictures")
    axes.set(xlabel="predicted", ylabel="label", title=f"{pathlib.Path(dataset.name).name}: test set")
    small: dict[str, Any] = {"fontsize": 8 if len(names) <= 30 else 4}
    axes.set_xticks(range(len(names)), names, rotation=90, **small)
    axes.set_yticks(range(len(names)), names, **small)
    if len(names) <= 30:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count) if count else "", ha="center", va="center", color=colour, **small)
    return figure
