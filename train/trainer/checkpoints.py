"""Checkpoints: written atomically in the background and read newest first. No other module uses Orbax.

A checkpoint is the arrays of the training state and a JSON text, the progress. Checksums of both are stored with them,
because the file format does not detect every flipped bit.
"""

import contextlib
import functools
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from trainer.config import UsageError, UserError, brief

Arrays = dict[str, np.ndarray]

log = logging.getLogger("train")

_UNFINISHED = ".orbax-checkpoint-tmp"
# Orbax treats paths as patterns, and tensorstore a backslash as a slash.
_PATTERN = frozenset("[]*?\\")
_OPEN_FILES = "/proc/self/fd"  # Linux: the names of open files and folders, deleted ones too
_SECONDS_TO_REPLACE = 1.0  # the longest that a run takes to delete a checkpoint


class Checkpoints:
    """The checkpoints of a run in one folder (local, or any path that Orbax takes), named by rising numbers.

    For one process: with several, only process 0 may have one.
    """

    def __init__(self, folder: epath.Path, keep: int):
        """Creates the folder. The `keep` newest checkpoints are kept."""
        self.folder, self.keep = epath.Path(folder), keep
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} is not a folder ({error.strerror}); move it away.") from error
        for path in self.folder.iterdir():
            if _UNFINISHED in path.name:
                log.warning(f"the checkpoint {path} is unfinished; it is skipped and will be replaced")
        self._closing = contextlib.ExitStack()
        self._path = self._closing.enter_context(_plain_name(self.folder))
        self._manager = _manager(
            self._path,
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            create=False,
            cleanup_tmp_directories=True,
        )

    @property
    def newest(self) -> int | None:
        """The number of the newest checkpoint, even if it is still being written."""
        return self._manager.latest_step()

    def check_space(self, size: int) -> None:
        """UserError without room for `keep` checkpoints of `size` bytes and one being written (local folders only)."""
        if "://" in str(self.folder):
            return
        free = shutil.disk_usage(self.folder).free
        needed = (self.keep + 1 - min(self.keep, len(self._manager.all_steps()))) * size
        if free < needed:
            raise UserError(
                f"--workdir is {self.folder.parent}, where {free / 1e6:.0f} MB are free and the checkpoints need"
                f" {needed / 1e6:.0f} MB (--keep is {self.keep}); free some space or choose another folder."
            )

    def save(self, number: int, arrays: Arrays, progress: dict[str, Any]) -> None:
        """Begins to write; waits only for the previous checkpoint. The arrays must not change afterwards."""
        item: dict[str, Any] = {"progress": progress, "arrays": _checksums(arrays)}
        item["itself"] = _checksum(item)
        what = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(item))
        try:
            saved = self._manager.save(number, args=what)
        except Exception as error:  # of the file system, tensorstore or a background thread
            raise self._unwritten(error) from error
        assert saved, f"checkpoint {number} was not written after {self.newest}"

    def wait(self) -> None:
        """Waits until everything is written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self) -> tuple[Arrays, dict[str, Any]] | None:
        """The newest intact checkpoint; None if there are no checkpoints, UserError if all are damaged.

        Damaged ones that are newer are named in a warning and deleted, since their numbers will be used again.
        """
        damaged: list[int] = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = read_one(self.folder, number)
            except UserError:
                raise
            except Exception as error:  # anything may be raised for a damaged file
                log.warning(f"the checkpoint {self.folder / str(number)} is damaged ({_why(error)}); it is skipped")
                damaged.append(number)
                continue
            for newer in damaged:
                self._manager.delete(newer)
            return found
        if damaged:
            raise UserError(
                f"--workdir is {self.folder.parent}, and none of the checkpoints in {self.folder} can be read; nothing"
                " was deleted: put an intact one there, or choose another --workdir to start afresh."
            )
        return None

    def close(self) -> None:
        """Finishes what is being written and ends the background threads."""
        self._manager.close()
        self._closing.close()

    def _unwritten(self, error: Exception) -> UserError:
        left = list(self._manager.all_steps(read=True)) if (exists := self.folder.is_dir()) else []
        kept = f"checkpoint {max(left)} is the last one" if left else "there is none yet"
        kept = kept if exists else f"the folder {self.folder} is gone"
        full = any(text in str(error) for text in ("No space left", "quota exceeded", "File too large"))
        return UserError(
            f"--workdir is {self.folder.parent}, where a checkpoint could not be written ({_why(error)});"
            f" {kept}. {'Free some space' if full else 'Fix the cause'}, then resume with --resume."
        )


class ReadCheckpoints:
    """The checkpoints in a folder that another process may be writing to. It changes nothing there."""

    def __init__(self, folder: epath.Path):
        """UserError if there are none."""
        self.folder = epath.Path(folder)
        _numbers(self.folder)

    def read(self, number: int | None) -> tuple[int, Arrays, dict[str, Any]]:
        """Checkpoint `number` (default: the newest), its arrays and progress; UserError if it cannot be read.

        If the newest is replaced while it is being read, its replacement is read instead.
        """
        while True:
            numbers = _numbers(self.folder)
            if number is not None and number not in numbers:
                available = ", ".join(map(str, numbers))
                raise UserError(f"--checkpoint is {number}, which is not in {self.folder}; choose one of {available}.")
            chosen = numbers[-1] if number is None else number
            try:
                return chosen, *read_one(self.folder, chosen)
            except UserError:
                raise
            except Exception as error:  # anything may be raised for a damaged file
                if _being_deleted(self.folder, chosen):
                    continue
                others = ", ".join(str(other) for other in numbers if other != chosen)
                fix = f"choose another with --checkpoint: {others}" if others else "there is no other"
                raise UserError(f"checkpoint {chosen} in {self.folder} is damaged ({_why(error)}); {fix}.") from error


def _numbers(folder: epath.Path) -> list[int]:
    """The numbers of the checkpoints in a folder, ascending; UserError if there are none."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if numbers := sorted(int(name) for name in names if name.isdecimal()):
        return numbers
    raise UserError(f"WORKDIR is {folder.parent}, which has no checkpoint yet.")


def _being_deleted(folder: epath.Path, number: int) -> bool:
    """Whether the run that writes to the folder is deleting this checkpoint, files first."""
    end = time.monotonic() + _SECONDS_TO_REPLACE
    while (exists := (folder / str(number)).exists()) and time.monotonic() < end:
        time.sleep(0.02)
    return not exists


def read_one(folder: epath.Path, number: int) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and progress of a checkpoint; an exception of any kind if it is damaged."""
    what = ocp.args.Composite(arrays=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore())
    with _held(folder, number) as held, contextlib.closing(_manager(held, read_only=True)) as manager:
        found = manager.restore(number, args=what)
    arrays, item = dict(found["arrays"]), dict(found["progress"])
    if _checksum({key: item[key] for key in ("progress", "arrays")}) != item["itself"]:
        raise ValueError("the checksum of its progress is wrong")
    checksums, expected = _checksums(arrays), item["arrays"]
    wrong = sorted(name for name in checksums | expected if checksums.get(name) != expected.get(name))
    if wrong:
        raise ValueError(f"the checksum of {wrong[0]} is wrong")
    return arrays, item["progress"]


@contextlib.contextmanager
def _held(folder: epath.Path, number: int) -> Iterator[epath.Path]:
    """A folder with links to the open files of a checkpoint, which stay readable if it is deleted meanwhile."""
    if "://" in str(folder):
        yield folder
        return
    source = pathlib.Path(folder) / str(number)
    with contextlib.ExitStack() as stack:
        try:
            target = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gravity-optax-")))
        except OSError as error:
            raise UserError(
                f"no temporary folder can be created ({brief(error)}); set TMPDIR to a folder with free space."
            ) from error
        (target / source.name).mkdir()
        for part, inside in _parts(source):
            for path in part.rglob("*"):
                link = target / source.name / inside / path.relative_to(part)
                if path.is_dir():
                    link.mkdir(parents=True, exist_ok=True)
                elif not link.exists():
                    file = stack.enter_context(path.open("rb"))
                    open_file = f"{_OPEN_FILES}/{file.fileno()}"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(open_file if os.path.exists(open_file) else path.absolute())
        yield stack.enter_context(_plain_name(epath.Path(target)))


def _parts(checkpoint: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """The folders that hold a checkpoint's files, and where in it they belong.

    If the path has a character of _PATTERN, earlier versions left the arrays where they were first written.
    """
    yield checkpoint, ""
    if not (checkpoint / "arrays" / "manifest.ocdbt").exists():
        unfinished = f"{checkpoint.absolute()}{_UNFINISHED}/arrays{_UNFINISHED}".replace("\\", "/")
        for written in (checkpoint / "arrays", pathlib.Path(unfinished)):
            yield written / "ocdbt.process_0", "arrays"


@contextlib.contextmanager
def _plain_name(folder: epath.Path) -> Iterator[epath.Path]:
    """A name of this folder without characters of _PATTERN; UsageError if the system has none."""
    path = folder if "://" in str(folder) else folder.absolute()
    if "://" in str(folder) or not _PATTERN & set(str(path)):
        yield path
        return
    if not os.path.isdir(_OPEN_FILES):
        found = " ".join(sorted(_PATTERN & set(str(path))))
        raise UsageError(
            f"--workdir is {folder.parent}, and on this system no checkpoint can be written where the path has {found};"
            " choose another folder."
        )
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield epath.Path(f"{_OPEN_FILES}/{handle}")
    finally:
        os.close(handle)


def _why(error: Exception) -> str:
    return brief(error)[:150]


def _manager(folder: epath.Path, **options: Any) -> ocp.CheckpointManager:
    """For this process alone, even if the run has several."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # where Orbax logs the errors that it raises
    _ignore_late_errors()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="read" if "read_only" in options else "train"
    )
    made = ocp.CheckpointManagerOptions(**options, multiprocessing_options=alone)
    return ocp.CheckpointManager(folder, options=made)


@functools.cache
def _ignore_late_errors() -> None:
    """Orbax stops at the first array that fails; errors of the others, whose event loop is closed, are not shown."""
    report = sys.unraisablehook

    def hook(unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            report(unraisable)

    sys.unraisablehook = hook


def _checksums(arrays: Arrays) -> dict[str, int]:
    as_bytes = lambda array: np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return {name: zlib.crc32(as_bytes(array)) for name, array in arrays.items()}


def _checksum(item: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(item, sort_keys=True).encode())
