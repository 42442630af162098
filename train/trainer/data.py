"""The pictures to train on: scikit-learn's digits, which come with the package, and sets from TensorFlow Datasets.

A set from TensorFlow Datasets (TFDS) is downloaded and prepared once; that needs TensorFlow and a network. Reading it
afterwards needs neither. Nothing is ever deleted here: a folder that cannot be used is named in the error.
"""

import contextlib
import dataclasses
import importlib.util
import io
import logging
import os
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
from etils import epath

from trainer.config import TFDS_SET, DatasetName, UserError, brief

DATASETS: tuple[str, ...] = get_args(DatasetName)

# Our name -> the name and the label that TFDS has for it, where they differ from the name and "label".
_TFDS_NAMES = {"cifar100_coarse": ("cifar100", "coarse_label"), "cifar100_fine": ("cifar100", "label")}
_DIGITS_TEST_SIZE = 360
_BATCH = 1000
_LARGEST = 256  # height and width
_PROBE_SECONDS = 5
_NEWEST_WITH_TENSORFLOW = (3, 13)  # the newest Python that a final release of TensorFlow is for

log = logging.getLogger("train")


class DataError(UserError):
    """A dataset is not available. The message is one line for the user: which dataset, where, and how to fix it."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A whole dataset in memory: images are uint8 (N, height, width, channels), labels int32 (N,)."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...] = ()


def load(name: str, data_dir: str | None = None, limit: int | None = None) -> Dataset:
    """Load one of DATASETS, or any image set of TFDS as tfds:NAME or tfds:NAME:LABEL.

    `limit`, from 1: use only the first `limit` training and the first `limit` test examples.
    `data_dir` is where TFDS keeps its datasets; None means its own default (TFDS_DATA_DIR or ~/tensorflow_datasets).
    Raises DataError for everything that the user can fix.
    """
    if name not in DATASETS and not TFDS_SET.fullmatch(name):
        raise DataError(f"there is no dataset {name!r}; choose one of {', '.join(DATASETS)}, or tfds:NAME.")
    if name == "digits":
        return _load_digits(limit)
    root = data_dir or _default_data_dir()
    with contextlib.ExitStack() as stack:
        if "://" in root:
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            _fetch(name, root, pathlib.Path(temporary))
            root = temporary
        return _load_tfds(name, _at_home(name, root), limit)


def _load_digits(limit: int | None) -> Dataset:
    """The 1,797 digits of 8 x 8: a fixed choice of 360 are the test set, 1,437 the training set."""
    _require("digits", ("sklearn",))
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:_DIGITS_TEST_SIZE][:limit], order[_DIGITS_TEST_SIZE:][:limit]
    return Dataset("digits", images[train], labels[train], images[test], labels[test], 10, tuple("0123456789"))


def _load_tfds(name: str, root: pathlib.Path, limit: int | None) -> Dataset:
    """Open the dataset in the folder `root`, preparing it there if need be, and read both splits."""
    any_set = TFDS_SET.fullmatch(name)
    without_array_record = any_set and importlib.util.find_spec("tensorflow")
    _require(name, ("tensorflow_datasets", "PIL", *([] if without_array_record else ["array_record"])))
    builder = _open_any(name, root) if any_set else _open(name, root)
    label = _in_tfds(name)[1]
    image, label = _features(name, builder, label) if any_set else ("image", label)
    train_images, train_labels = _read_split(name, builder, "train", image, label, limit)
    test_images, test_labels = _read_split(name, builder, "test", image, label, limit)
    classes = builder.info.features[label]
    names = tuple(classes.names)
    return Dataset(name, train_images, train_labels, test_images, test_labels, classes.num_classes, names)


def check_data_dir(name: str, data_dir: str | None) -> None:
    """Raise DataError for a bucket, or another scheme://, from which the dataset cannot be read."""
    root = data_dir or _default_data_dir()
    if name == "digits" or "://" not in root:
        return
    try:
        path = epath.Path(root)
        found = (path / _in_tfds(name)[0]).exists()  # is_dir would return False for a bucket that cannot be reached
    except Exception as error:  # ImportError without the scheme's package, or an error of its driver
        raise DataError(f"{name}: --data-dir {root} cannot be read ({brief(error)}); choose another.") from error
    if "://" not in os.fspath(path):
        raise DataError(f"{name}: --data-dir {root} has a scheme that cannot be read; choose another.")
    if not found:
        fix = "prepare it in a local folder and copy it there, or choose another --data-dir"
        raise DataError(f"{name} is not prepared in {root}; {fix}.")


def _fetch(name: str, root: str, temporary: pathlib.Path) -> None:
    """Copy a prepared dataset to a local folder, the only kind that array_record's reader takes."""
    check_data_dir(name, root)
    folder = _in_tfds(name)[0]
    source = epath.Path(root) / folder
    depth = 1 if "/" in folder else 2  # a set may have configurations
    try:
        for path in [path for levels in range(1, depth + 1) for path in source.glob("*/" * levels + "*.*")]:
            if not path.is_dir():
                target = temporary / folder / str(path).removeprefix(f"{source}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    except Exception as error:  # an error of the file system's driver
        raise DataError(f"{name}: {source} cannot be read ({brief(error)}); choose another --data-dir.") from error


def _in_tfds(name: str) -> tuple[str, str]:
    """The dataset's name in TFDS, also its folder's, and the name of its label ("" if not given)."""
    if any_set := TFDS_SET.fullmatch(name):
        return any_set["name"], any_set["label"] or ""
    return _TFDS_NAMES.get(name, (name, "label"))


def _features(name: str, builder: Any, label: str) -> tuple[str, str]:
    """The names of the one image and of the label; DataError if the set has no such features, or not both splits."""
    import tensorflow_datasets as tfds

    features = dict(getattr(builder.info.features, "items", dict)())
    images = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    if len(images) != 1 or not labels:
        has = f"it has {', '.join(features) or 'no named features'}"
        raise DataError(f"{name}: one image and a class label are needed, and {has}; choose another set.")
    if not label:
        label = "label" if "label" in labels or len(labels) > 1 else labels[0]
    if label not in labels:
        raise DataError(f"{name}: the label must be one of {', '.join(sorted(labels))}; say which as tfds:NAME:LABEL.")
    height, width, channels = features[images[0]].shape
    fits = height and width and max(height, width) <= _LARGEST and channels in (1, 3)
    if not fits or features[images[0]].np_dtype != np.uint8:
        text = " x ".join("any" if size is None else str(size) for size in (height, width, channels))
        needed = f"one size for all, at most {_LARGEST} x {_LARGEST}, 1 or 3 channels and uint8 are needed"
        raise DataError(f"{name}: its pictures are {text}, {np.dtype(features[images[0]].np_dtype)}; {needed}.")
    if absent := [split for split in ("train", "test") if split not in builder.info.splits]:
        found = ", ".join(builder.info.splits) or "none"
        raise DataError(f"{name}: it has no {' and no '.join(absent)} split (its splits: {found}); choose another set.")
    return images[0], label


def _default_data_dir() -> str:
    return os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


def _at_home(name: str, root: str) -> pathlib.Path:
    """The folder, with ~ expanded."""
    if (expanded := os.path.expanduser(root)).startswith("~"):
        raise DataError(f"{name}: there is no home folder for {root} (HOME is not set); give --data-dir.")
    return pathlib.Path(expanded)


def _require(name: str, modules: tuple[str, ...]) -> None:
    """Raise DataError unless the modules can be imported."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise DataError(f'{name} needs {", ".join(missing)}: run `pip install -e ".[train]"`, then try again.')


def _unusable(name: str, folder: pathlib.Path, why: str) -> DataError:
    """The error for a folder that exists but cannot be used."""
    fix = "delete or rename that folder to prepare it again, or choose another --data-dir"
    return DataError(f"{name}: {folder} cannot be used, {why}; {fix}.")


def _open(name: str, root: pathlib.Path) -> Any:
    """The TFDS builder of a dataset, prepared as array_record in the version that TFDS expects."""
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.WARNING)  # TFDS logs every folder that it opens
    _check_is_folder(name, root)
    tfds_name = _in_tfds(name)[0]
    builder_class = tfds.builder_cls(tfds_name)
    folder = root / tfds_name / str(builder_class.VERSION)
    if not os.path.lexists(folder):
        with _temporary_folder():
            builder = builder_class(data_dir=root)
        _prepare(name, builder, root, folder)
    # Without this file TFDS would neither prepare the dataset again nor find any splits in it.
    if not (folder / "dataset_info.json").is_file():
        raise _unusable(name, folder, "it has no dataset_info.json")
    try:
        builder = builder_class(data_dir=root)
    except Exception as error:  # ParseError, AssertionError, UnicodeDecodeError, ...
        why = f"its dataset_info.json is damaged or of another version ({brief(error)})"
        raise _unusable(name, folder, why) from error
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        found = file_format.value if file_format else "an unknown format"
        raise _unusable(name, folder, f"it was prepared as {found} and array_record is needed")
    return builder


def _open_any(name: str, root: pathlib.Path) -> Any:
    """The TFDS builder of `tfds:NAME`, prepared in a format that can be read here."""
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)
    _check_is_folder(name, root)
    tfds_name = _in_tfds(name)[0]
    try:
        with _temporary_folder():
            builder = tfds.builder(tfds_name, data_dir=root)
    except Exception as error:  # DatasetNotFoundError, ValueError for the configuration, ...
        fix = f"give the name of one of its sets, or copy a prepared {tfds_name} folder into {root}"
        raise DataError(
            f"{name}: tensorflow-datasets cannot open {tfds_name} ({brief(error)[:150]}); {fix}."
        ) from error
    folder = pathlib.Path(builder.data_dir)
    if not os.path.lexists(folder):
        _prepare(name, builder, root, folder)
        builder = tfds.builder(tfds_name, data_dir=root)
    file_format = builder.info.file_format
    if file_format is None or not (folder / "dataset_info.json").is_file():
        raise _unusable(name, folder, "it has no dataset_info.json, or one without a format")
    module = "array_record" if file_format.value == "array_record" else "tensorflow"
    if importlib.util.find_spec(module) is None:
        raise _unusable(name, folder, f"it was prepared as {file_format.value} and {module} is not installed")
    return builder


@contextlib.contextmanager
def _temporary_folder() -> Iterator[None]:
    """A temporary folder, removed at the end; TFDS leaves an empty one for each set that is not prepared."""
    before = tempfile.tempdir
    try:
        with tempfile.TemporaryDirectory() as tempfile.tempdir:
            yield
    finally:
        tempfile.tempdir = before


def _check_is_folder(name: str, root: pathlib.Path) -> None:
    """Raise DataError if `root` exists and is not a readable folder, or is the wrong one."""
    try:
        with os.scandir(root):
            pass
    except FileNotFoundError:
        return  # it is created when the dataset is prepared
    except OSError as error:
        why = f"is not a readable folder ({error.strerror})"
        raise DataError(f"{name}: --data-dir {root} {why}; choose another.") from error
    for own in (root, root.parent):  # a --data-dir may be too deep: the dataset's own folder, or that of its version
        if own.name == _in_tfds(name)[0] and any(own.glob("*/dataset_info.json")):
            raise DataError(f"{name}: --data-dir {root} is the dataset's own folder; give --data-dir {own.parent}.")


def _prepare(name: str, builder: Any, root: pathlib.Path, folder: pathlib.Path) -> None:
    """Download the dataset and write it to `folder`; DataError at once without TensorFlow or a network."""
    absent = f"{name} is not prepared in {root}{_other_versions(folder)}"
    missing = [m for m in ("tensorflow", "importlib_resources") if importlib.util.find_spec(m) is None]
    if missing:
        needs, where = f"preparing it needs {' and '.join(missing)}", ""
        if "tensorflow" in missing and sys.version_info[:2] > _NEWEST_WITH_TENSORFLOW:
            needs += f", which has no release for Python {sys.version_info[0]}.{sys.version_info[1]}"
            where = "with Python {}.{} ".format(*_NEWEST_WITH_TENSORFLOW)
        fix = f'{where}run `pip install -e ".[prepare]"`, then the same command again, or choose another --data-dir'
        raise DataError(f"{absent}, and {needs}: {fix}.")
    command = (
        f'`pip install -e ".[prepare]"` and `python train/main.py --dataset {name} --data-dir {shlex.quote(str(root))}`'
    )
    fix = f"run {command} where there is a network, or copy a prepared {folder.parent.name} folder into {root}"
    urls = list(builder.url_infos or ())  # None for a builder without a package
    if urls and not _any_download(root, builder.name):
        _check_network(absent, urls[0], fix)
    log.info("Preparing %s in %s: it is downloaded once and takes a few minutes.", name, root)
    try:
        _download_and_prepare(builder)
    except Exception as error:  # network, disk, permissions, checksum, ...: TFDS documents none
        raise DataError(f"{absent}, and preparing it failed ({brief(error)}); fix that, or {fix}.") from error


def _other_versions(folder: pathlib.Path) -> str:
    """A remark on other versions of the dataset, which this TFDS cannot use."""
    found = sorted(path.parent.name for path in folder.parent.glob("[0-9]*/dataset_info.json"))
    return f" in version {folder.name}, only {', '.join(found)}" if found else ""


def _any_download(root: pathlib.Path, tfds_name: str) -> bool:
    """Whether TFDS may have downloaded files already, so that no network is needed."""
    return any(any((root / "downloads" / folder).glob("*")) for folder in (tfds_name, "manual"))


def _check_network(absent: str, url: str, fix: str) -> None:
    """Raise DataError if this file cannot be requested; TFDS would first import TensorFlow and then retry."""
    import requests

    try:
        with requests.get(url, stream=True, timeout=_PROBE_SECONDS) as response:
            response.raise_for_status()
    except OSError as error:  # RequestException is one, as is the error of a missing certificate bundle
        why = type(error).__name__ if isinstance(error, requests.RequestException) else brief(error)
        host = url.split("/")[2]
        raise DataError(f"{absent}, and {host} cannot be reached ({why}); {fix}.") from error


def _download_and_prepare(builder: Any) -> None:
    """Run TFDS' own preparation, with its progress bars only on a terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # otherwise TensorFlow announces it on stderr
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    tf.config.set_visible_devices([], "GPU")  # otherwise it takes the memory that JAX needs
    downloader.MAX_RETRIES = 2  # of 10, which take 200 seconds
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        has_array_record = importlib.util.find_spec("array_record")
        builder.download_and_prepare(file_format="array_record" if has_array_record else None)


def _read_split(
    name: str, builder: Any, split: str, image: str, label: str, limit: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The first `limit` (None: all) examples of a split, in file order: uint8 (N, h, w, c) and int32 (N,)."""
    folder = pathlib.Path(builder.data_dir)
    available = builder.info.splits[split].num_examples if split in builder.info.splits else 0
    if available == 0:
        raise _unusable(name, folder, f"its {split} split is empty")
    count = available if limit is None else min(limit, available)
    try:
        images, labels = _read(builder, split, image, label, count)
    except Exception as error:  # RuntimeError, TypeError, OSError, DecodeError, ...
        files = ", ".join(sorted(os.path.basename(path) for path in builder.info.splits[split].filepaths))
        raise _unusable(name, folder, f"{files} is missing or damaged ({brief(error)})") from error
    if labels.min() < 0:
        raise DataError(f"{name}: not all labels of its {split} split are known; choose another set.")
    return images, labels


def _read(builder: Any, split: str, image: str, label: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Read and decode `count` examples. Decoding the PNGs here takes two thirds of TFDS' time."""
    from PIL import Image

    images = np.empty((count, *builder.info.features[image].shape), np.uint8)
    labels = np.empty(count, np.int32)
    examples = _from_array_record if builder.info.file_format.value == "array_record" else _through_tensorflow
    for i, example in enumerate(examples(builder, f"{split}[:{count}]", count, image)):
        picture = Image.open(io.BytesIO(example[image]))
        images[i] = np.asarray(picture.convert("L" if images.shape[-1] == 1 else "RGB")).reshape(
            *picture.size[::-1], -1
        )
        labels[i] = example[label]
    return images, labels


def _from_array_record(builder: Any, split: str, count: int, image: str) -> Iterator[Any]:
    """The examples, with pictures as encoded files."""
    import tensorflow_datasets as tfds

    source = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
    for start in range(0, count, _BATCH):
        yield from source.__getitems__(range(start, min(start + _BATCH, count)))


def _through_tensorflow(builder: Any, split: str, count: int, image: str) -> Iterator[Any]:
    """The same, from TFDS' default format."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")  # otherwise it takes the memory that JAX needs
    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    decoders = {image: tfds.decode.SkipDecoding()}
    dataset = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False, read_config=in_order)
    yield from tfds.as_numpy(dataset.take(count))
