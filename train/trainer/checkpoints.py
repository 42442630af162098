"""Checkpoints, and the one module that knows Orbax: written in the background, whole or not at all, newest first read.

A checkpoint is the arrays of the training state and a JSON text, the progress. Checksums of both lie beside them,
because the file format does not notice every flipped bit.
"""

import functools
import json
import logging
import shutil
import sys
import zlib
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from trainer.config import UserError, brief

Arrays = dict[str, np.ndarray]

log = logging.getLogger("train")

_UNFINISHED = "*.orbax-checkpoint-tmp*"


class Checkpoints:
    """The checkpoints of a run in one folder (local, or any path that Orbax takes), named by rising numbers.

    For one process: with several, only process 0 may have one.
    """

    def __init__(self, folder: epath.Path, keep: int):
        """Makes the folder. The `keep` newest checkpoints stay."""
        self.folder, self.keep = epath.Path(folder), keep
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(_UNFINISHED):
            log.warning(f"the checkpoint {path} was not finished; it is left out and will be replaced")
        self._manager = _manager(
            self.folder,
            max_to_keep=keep,
            create=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="train"
            ),
        )

    @property
    def newest(self) -> int | None:
        """The number of the newest checkpoint, which may still be being written."""
        return self._manager.latest_step()

    def check_space(self, size: int) -> None:
        """UserError if `keep` checkpoints of `size` bytes, and one that is being written, find no room (local only)."""
        if "://" in str(self.folder):
            return
        free = shutil.disk_usage(self.folder).free
        needed = (self.keep + 1 - min(self.keep, len(self._manager.all_steps()))) * size
        if free < needed:
            raise UserError(
                f"--workdir is {self.folder.parent}, where {free / 1e6:.0f} MB are free and the checkpoints need"
                f" {needed / 1e6:.0f} MB (--keep is {self.keep}); make room or choose another folder."
            )

    def save(self, number: int, arrays: Arrays, progress: dict[str, Any]) -> None:
        """Begins to write; waits only for the checkpoint before. The arrays must not change any more."""
        item: dict[str, Any] = {"progress": progress, "arrays": _checksums(arrays)}
        item["itself"] = _checksum(item)
        what = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(item))
        try:
            saved = self._manager.save(number, args=what)
        except Exception as error:  # of the file system, of tensorstore, of a background thread
            raise self._unwritten(error) from error
        assert saved, f"checkpoint {number} was not written after {self.newest}"

    def wait(self) -> None:
        """Until everything is written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self) -> tuple[Arrays, dict[str, Any]] | None:
        """The newest checkpoint that is whole; None if there is none at all, UserError if none is whole.

        Newer ones, which are not, are named in a warning and deleted, since their numbers will come again.
        """
        damaged: list[int] = []
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._read(number)
            except Exception as error:  # whatever a damaged file leads to
                log.warning(
                    f"the checkpoint {self.folder / str(number)} is damaged ({brief(error)[:150]}); it is left out"
                )
                damaged.append(number)
                continue
            for newer in damaged:
                self._manager.delete(newer)
            return found
        if damaged:
            raise UserError(
                f"--workdir is {self.folder.parent}, and none of the checkpoints in {self.folder} can be read; nothing"
                " was deleted: put a whole one there, or choose another --workdir to start anew."
            )
        return None

    def close(self) -> None:
        """Ends the background threads; what is being written is finished."""
        self._manager.close()

    def _read(self, number: int) -> tuple[Arrays, dict[str, Any]]:
        what = ocp.args.Composite(arrays=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore())
        found = self._manager.restore(number, args=what)
        arrays, item = dict(found["arrays"]), dict(found["progress"])
        if _checksum({key: item[key] for key in ("progress", "arrays")}) != item["itself"]:
            raise ValueError("the checksum of its progress is wrong")
        checksums, expected = _checksums(arrays), item["arrays"]
        wrong = sorted(name for name in checksums | expected if checksums.get(name) != expected.get(name))
        if wrong:
            raise ValueError(f"the checksum of {wrong[0]} is wrong")
        return arrays, item["progress"]

    def _unwritten(self, error: Exception) -> UserError:
        left = list(self._manager.all_steps(read=True)) if (there := self.folder.is_dir()) else []
        kept = f"checkpoint {max(left)} is the last one" if left else "there is none yet"
        kept = kept if there else f"the folder {self.folder} is gone"
        full = any(text in str(error) for text in ("No space left", "quota exceeded", "File too large"))
        return UserError(
            f"--workdir is {self.folder.parent}, where a checkpoint could not be written ({brief(error)[:150]});"
            f" {kept}. {'Make room there' if full else 'Mend that'}, then resume with --resume."
        )


class ReadCheckpoints(Checkpoints):
    """Those of a folder that may be another process's: read one by one, nothing is made, changed or deleted."""

    def __init__(self, folder: epath.Path):
        """UserError if there are none."""
        self.folder = epath.Path(folder)
        numbers = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        if not any(name.isdecimal() for name in numbers):
            raise UserError(f"WORKDIR is {self.folder.parent}, which has no checkpoint yet.")
        self._manager = _manager(self.folder, read_only=True)

    def read(self, number: int | None) -> tuple[int, Arrays, dict[str, Any]]:
        """Checkpoint `number` (default: the newest), its arrays and progress; UserError if it cannot be read."""
        numbers = sorted(self._manager.all_steps())
        if number is not None and number not in numbers:
            there = ", ".join(map(str, numbers))
            raise UserError(f"--checkpoint is {number}, which is not in {self.folder}; choose one of {there}.")
        number = numbers[-1] if number is None else number
        try:
            return number, *self._read(number)
        except Exception as error:  # whatever a damaged file leads to
            others = ", ".join(str(other) for other in numbers if other != number)
            mend = f"choose another with --checkpoint: {others}" if others else "there is no other"
            raise UserError(
                f"checkpoint {number} in {self.folder} is damaged ({brief(error)[:150]}); {mend}."
            ) from error


def _manager(folder: epath.Path, **options: Any) -> ocp.CheckpointManager:
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs errors there that it also raises
    _ignore_late_errors()
    path = folder if "://" in str(folder) else folder.absolute()
    made = ocp.CheckpointManagerOptions(**options)
    return ocp.CheckpointManager(path, options=made, item_names=("arrays", "progress"))


@functools.cache
def _ignore_late_errors() -> None:
    """Orbax gives up at the first array that fails; the others then complain that its event loop is closed."""
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
