"""One run owns its folder as long as its process lives: a lock on the file `lock` there, which ends with the process.

Nothing heavy is imported here. Object storage has no such locks; file systems may lack them too.
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
        """Takes it, and says in the file who has it. UserError if another process does; OSError if it cannot write."""
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
                f"--workdir is {folder}, where another run is at work ({owner});"
                " wait until it has ended, or choose another folder."
            )
        self._file.truncate(0)
        self._file.write(f"host {socket.gethostname()}, process {os.getpid()}, since {_now()}\n")
        self._file.flush()

    def release(self) -> None:
        """Leaves the folder to others."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def is_owned(folder: pathlib.Path) -> bool:
    """Whether a run is at work in this folder."""
    try:
        with open(folder / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or there are no locks
        return False
    return False


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning(f"this file system has no locks ({error.strerror}): nothing keeps another run out of the folder")
        return True
    return os.fstat(file).st_nlink > 0  # its owner may have deleted it after it was opened here


def _now() -> str:
    return f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
