"""Standard output and error that may be missing, or lose their reader, without harm to the program.

A daemon has none, `| head` goes away, and the disk behind `> file` fills up.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


class Unbreakable:
    """A stream from which, once it can no longer be written, everything goes to the null device."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Never fails; likewise `flush`."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        if self is sys.stdout:
            sys.stderr.write(f"standard output is gone ({error.strerror}); the program runs on without it.\n")


def run(main: Callable[[], int]) -> int:
    """`main()` with standard streams that cannot break."""
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:  # it takes the place of one that is missing
        pass
    os.close(null)
    streams = (sys.stdout or os.fdopen(1, "w", closefd=False), sys.stderr or os.fdopen(2, "w", closefd=False))
    sys.stdout, sys.stderr = (Unbreakable(stream) for stream in streams)
    try:
        return main()
    finally:
        with contextlib.suppress(ValueError):  # closed
            sys.stdout.flush()
