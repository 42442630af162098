"""A run's claim on its folder: a lock on the file `lock` in it, held as long as the process lives.

Nothing heavy is imported here. Object storage has no such locks, and some file systems lack them too.
"""

import datetime
import fcntl
import logging
import os
import pathlib
import socket
import time

from trainer.config import UserError

log = logging.getLogger("train")

_TRIES, _SECONDS_BETWEEN = 10, 0.05  # `is_owned` holds a lock for an instant


class Ownership:
    """The lock of this process on a folder."""

    def __init__(self, folder: pathlib.Path):
        """Takes it and records the owner in the file. UserError if another process holds it; OSError if that fails."""
        self._path = folder / "lock"
        for _ in range(_TRIES):
            self._file = open(self._path, "a+")  # noqa: SIM115 (it stays open as long as this process owns the folder)
            if _lock(self._file.fileno()):
                break
            self._file.seek(0)
            owner = self._file.read().strip()
            self._file.close()
            time.sleep(_SECONDS_BETWEEN)
        else:
            raise UserError(
                f"--workdir is {folder}, which another run is using ({owner});"
                " wait until it has ended, or choose another folder."
            )
        self._file.truncate(0)
        self._file.write(f"host {socket.gethostname()}, process {os.getpid()}, since {_now()}\n")
        self._file.flush()

    def release(self) -> None:
        """Releases the folder."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def is_owned(folder: pathlib.Path) -> bool:
    """Whether a run is using this folder."""
    try:
        with open(folder / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks
        return False
    return False


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning(f"this file system has no locks ({error.strerror}): nothing protects the folder from another run")
        return True
    return os.fstat(file).st_nlink > 0  # its owner may have deleted it since it was opened here


def _now() -> str:
    return f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
