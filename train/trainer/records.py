"""The files in a run's folder: config.json, history.csv (a row per epoch), history.png and TensorBoard's event files.

The folder may be any path that `etils.epath` takes, such as gs://. Files are replaced atomically. Checkpoints are in
`checkpoints`, gradients.csv in `watch`.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import logging
import pathlib
import socket
import time
from typing import Any

from etils import epath

from trainer import pictures
from trainer.config import ResolvedConfig, UserError, as_recorded, brief, flag, same_run
from trainer.ownership import Ownership

log = logging.getLogger("train")

_PER_EPOCH = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_second")
_PREFIX = "events.out.tfevents."


@dataclasses.dataclass(frozen=True)
class Epoch:
    """A row of history.csv. Training figures are running means over the epoch's batches, as Keras reports them."""

    epoch: int  # from 1
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float  # training alone, without compilation and evaluation
    images_per_second: float  # training alone
    val_seconds: float
    learning_rate: float  # the schedule's at the epoch's end, with which the next epoch begins


class Workdir:
    """The folder of a run, which this process owns until `close`."""

    def __init__(self, config: ResolvedConfig):
        """Creates and claims the folder; it may hold a run only with `config.resume`, and only this run."""
        try:
            self.path = epath.Path(config.workdir) if config.workdir else _make_fresh(config)
            if "://" in (config.workdir or "") and "://" not in str(self.path):
                raise UserError(
                    f"--workdir is {config.workdir}, a scheme that cannot be written; choose another folder."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self._ownership = None if "://" in str(self.path) else Ownership(pathlib.Path(self.path))
        except UserError:
            raise
        except Exception as error:  # OSError, or an error of another file system's driver
            why = getattr(error, "strerror", None) or brief(error)
            raise UserError(
                f"--workdir is {config.workdir or 'runs'}, where nothing can be written ({why}); choose another folder."
            ) from error
        self._history: list[str] = []  # its lines, formatted once
        self._before: dict = {}  # config.json as it was found
        self._unbegun = False  # whether config.json is all that this run has written
        try:
            self._claim(config)
        except BaseException:
            self._release()
            raise

    def _claim(self, config: ResolvedConfig) -> None:
        """Writes config.json before anything can fail."""
        if not config.resume and any((self.path / name).exists() for name in ("config.json", "history.csv")):
            raise UserError(
                f"--workdir is {self.path}, which holds the results of a run already;"
                " choose another folder, or resume that run with --resume."
            )
        self._before = self._read_config()
        self._check_same(config)
        if not (self.path / "config.json").exists():
            self._write_config(config, {})
            self._unbegun = True

    def close(self) -> None:
        """Releases the folder. A run that failed before it began leaves no config.json in a folder that had none."""
        if self._unbegun:
            (self.path / "config.json").unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._ownership:
            self._ownership.release()

    @property
    def checkpoints(self) -> epath.Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def begin(self, config: ResolvedConfig, facts: dict) -> None:
        """Adds facts such as versions and devices to config.json.

        If the run is resumed, changed versions and devices are logged, and changed data are a UserError.
        """
        before = self._before
        for name in ("train_examples", "test_examples", "num_classes"):
            if before.get(name, facts[name]) != facts[name]:
                raise UserError(
                    f"--workdir is {self.path}, a run on other data: {name} was {before[name]} and is {facts[name]};"
                    " choose another folder, or give the --data-dir of that run."
                )
        if before.get("devices", facts["devices"]) != facts["devices"]:
            log.info(f"resuming on {_counted(facts['devices'])}, previously on {_counted(before['devices'])}")
        for package, version in facts["versions"].items():
            if (old := before.get("versions", {}).get(package, version)) != version:
                log.info(f"resuming with {package} {version}, previously {old}")
        self._write_config(config, facts)
        self._unbegun = False

    def _write_config(self, config: ResolvedConfig, facts: dict) -> None:
        text = json.dumps(dataclasses.asdict(config) | {"workdir": str(self.path)} | facts, indent=2)
        self.write("config.json", f"{text}\n".encode())

    def write_history(self, rows: list[Epoch]) -> None:
        """Writes history.csv with all rows: those of the last call, and any new ones."""
        if not self._history:
            self._history.append(",".join(field.name for field in dataclasses.fields(Epoch)))
        for row in rows[len(self._history) - 1 :]:
            self._history.append(",".join(str(v) if isinstance(v, int) else f"{v:.6g}" for v in vars(row).values()))
        self.write("history.csv", "".join(f"{line}\n" for line in self._history).encode())

    def write_figure(self, config: ResolvedConfig, history: list[Epoch]) -> None:
        """history.png: the paper's four panels (Figures 10-19)."""
        if picture := pictures.png("history.png", lambda: _figure(config, history)):
            self.write("history.png", picture)

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file atomically."""
        temporary = self.path / f".{name}.tmp"
        try:
            temporary.write_bytes(content)
            temporary.replace(self.path / name)
        except Exception as error:  # as above
            why = getattr(error, "strerror", None) or brief(error)
            raise UserError(
                f"--workdir is {self.path}, where {name} could not be written ({why});"
                " fix that (is the disk full?), then start again with --resume."
            ) from error

    def _read_config(self) -> dict:
        """The content of config.json; empty if the run did not get that far."""
        path = self.path / "config.json"
        if not path.exists():
            found = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
            if any(checkpoint.name.isdecimal() for checkpoint in found):
                raise UserError(f"--workdir is {self.path}, which has checkpoints but no config.json; put it back.")
            return {}
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"--workdir is {self.path}, whose config.json cannot be read ({brief(error)}); put it"
                " back, or choose another folder."
            ) from error

    def _check_same(self, config: ResolvedConfig) -> None:
        """UserError naming each field in which this run differs from the one in the folder."""
        now, before = dataclasses.asdict(config), as_recorded(self._before)
        other = [name for name in same_run(config) if before.get(name, now[name]) != now[name]]
        if other:
            values = "; ".join(f"{flag(name)} was {before[name]} and is {now[name]}" for name in other)
            raise UserError(
                f"--workdir is {self.path}, which holds another run: {values}."
                " Give the same values, or choose another folder."
            )


class EventFiles:
    """A new event file in a folder, over training steps; tensorboardX writes it without TensorFlow.

    TensorBoard shows a folder's files as one run. It ignores what earlier files hold beyond the step at which this one
    starts, such as epochs repeated after resuming.
    """

    def __init__(self, folder: epath.Path, step: int):
        """`step`: the number of training steps done."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._writer = RecordWriter(str(folder / f"{_PREFIX}{_next_number(folder):010d}.{socket.gethostname()}"))
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add_chunk(self, step: int, loss: float) -> None:
        """Adds the mean loss of a chunk that ended with `step`."""
        self._add("chunk/loss", loss, step)

    def add_epoch(self, step: int, row: Epoch) -> None:
        """Adds the row of an epoch that ended with `step`; it is on disk when this returns."""
        for name in _PER_EPOCH:
            self._add(f"epoch/{name}", getattr(row, name), step)
        self._writer.flush()

    def close(self) -> None:
        """Completes the file."""
        self._writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        from tensorboardX.summary import scalar

        self._write(step=step, summary=scalar(name, value))

    def _write(self, **what) -> None:
        self._writer.write(self._event(wall_time=time.time(), **what).SerializeToString())


def _next_number(folder: epath.Path) -> int:
    """Seconds since 1970, as usual, or more: TensorBoard reads files in order of name, and clocks may be set back."""
    numbers = [path.name.removeprefix(_PREFIX)[:10] for path in folder.iterdir() if path.name.startswith(_PREFIX)]
    return max(int(time.time()), *(int(number) + 1 for number in numbers if number.isdecimal()), 0)


def _figure(config: ResolvedConfig, history: list[Epoch]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    epochs = [row.epoch for row in history]
    panels = {"loss": "training loss", "accuracy": "training accuracy"}
    panels |= {"val_loss": "validation loss", "val_accuracy": "validation accuracy"}
    for axes, (field, label) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        axes.plot(epochs, [getattr(row, field) for row in history], marker=".", label=config.optimizer)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    model = f"{config.model} x {config.width:g}"
    figure.suptitle(f"{config.dataset}, {model}, {config.optimizer}, learning rate {config.learning_rate:g}")
    return figure


def _make_fresh(config: ResolvedConfig) -> epath.Path:
    """A new folder under runs/."""
    now = datetime.datetime.now()
    dataset = config.dataset.replace("/", "-").replace(":", "-")
    stem = f"{now:%Y%m%d-%H%M%S}-{dataset}-{config.model}-{config.optimizer}-seed{config.seed}"
    for number in itertools.count(1):
        path = epath.Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


def _counted(kinds: list[str]) -> str:
    """`["cpu", "cpu"]` as `2 x cpu`."""
    return " and ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
