"""Standard output and error that may be missing, or lose their reader, without harm to the program.

A daemon has none, `| head` goes away, and the disk behind `> file` fills up.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Unbreakable:
    """A stream from which, once it can no longer be written, everything goes to the null device."""

    def __init__(self, stream: io.TextIOWrapper):
        self._stream = stream
        stream.reconfigure(errors="backslashreplace")

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


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """Within it, the standard streams cannot break. What a caller or a notebook put in their place stays."""
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:  # it takes the place of one that is missing
        pass
    os.close(null)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_protected(stream, number) for number, stream in enumerate(before, start=1))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # closed
            sys.stdout.flush()
        sys.stdout, sys.stderr = (now if was is None else was for was, now in zip(before, _now(), strict=True))


def _now() -> tuple[Any, Any]:
    return sys.stdout, sys.stderr


def _protected(stream: TextIO | None, number: int) -> Any:
    stream = stream or os.fdopen(number, "w", closefd=False)
    return Unbreakable(stream) if isinstance(stream, io.TextIOWrapper) else stream
