"""What all commands share: standard streams, logging, signals, exit codes, progress bars, and preparing jax.

Nothing heavy is imported here, so that `--help` answers at once. What jax is told is in `jax_setup`.
"""

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from trainer.config import ResolvedConfig, UserError

log = logging.getLogger("train")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 128 + signal.SIGINT


def run(work: Callable[[list[str]], int]) -> int:
    """The exit code of `work` on the command line's arguments; an error that the user can fix is one line.

    Streams, signal handlers and the logger are restored afterwards: in a notebook the process keeps running.
    """
    with unbreakable(), _signals_as_before(), _logging():
        try:
            return work(sys.argv[1:])
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.exit_code
        except OSError as error:
            if not error.filename:
                raise
            sys.stderr.write(f"error: {error.filename} could not be read or written ({error.strerror}).\n")
            return 1
        except KeyboardInterrupt:
            sys.stderr.write("error: interrupted\n")
            return INTERRUPTED
        except SystemExit as leaving:  # after --help
            return leaving.code if isinstance(leaving.code, int) else 0


def leave(code: int) -> None:
    """Ends the process. In IPython and Jupyter, which show any SystemExit as an error, only a failure raises it."""
    if code and not interactive():
        end_now(code)  # Orbax's threads wait for minutes for a checkpoint that cannot be written
    if code or not interactive():
        sys.exit(code)


def interactive() -> bool:
    """Whether this process is IPython or a Jupyter kernel, and must outlive the command."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel, such as Colab's."""
    return interactive() and "ipykernel" in sys.modules


def on_stop(handler: Callable[[int, Any], object], *numbers: signal.Signals) -> None:
    """Handles these signals until the command ends, except a SIGHUP that nohup has set to be ignored."""
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # only the main thread may set handlers
                signal.signal(number, handler)


def prepare_jax(config: ResolvedConfig | None = None) -> str | None:
    """Prepares jax before its first use; with `config`, joins the other processes of the run.

    Returns a line to log, or None. UserError for a platform that is not available.
    """
    if in_notebook():
        _tqdm()  # before a library imports it
    from trainer import devices, jax_setup

    line = jax_setup.work_around()
    if config:
        devices.join_processes(config)
    jax_setup.find_devices()
    jax_setup.override_settings()
    jax_setup.check_arithmetic()
    return line


def progress_bar(**options: Any) -> Any:
    """A tqdm bar on a terminal and in a notebook; one that shows nothing elsewhere."""
    import shutil

    if in_notebook():
        return _tqdm()(**options)
    # Without a size tqdm shows nothing on a terminal that does not report its own.
    size = {"ncols": shutil.get_terminal_size().columns, "nrows": 2}
    return _tqdm()(**{"disable": not sys.stderr.isatty(), **size} | options)


def _tqdm() -> Any:
    """The class for a terminal or a notebook. Without ipywidgets a notebook's bar is text; tqdm warns about that."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """The log is standard output."""
    handler = logging.StreamHandler(sys.stdout)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # libraries may add a handler to the root logger
    try:
        yield
    finally:
        handler.flush()
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def end_now(code: int) -> None:
    """Ends the process without waiting for its threads."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Unbreakable:
    """A stream that writes to the null device once it can no longer be written to."""

    def __init__(self, stream: io.TextIOWrapper):
        self._stream = stream
        stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Never fails; nor does `flush`."""
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

    def close(self) -> None:
        """Nothing: absl's log handler closes any stream that is no standard stream any more."""

    def _give_up(self, error: OSError) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        if self is sys.stdout:
            sys.stderr.write(f"standard output is gone ({error.strerror}); the program continues without it.\n")


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """Within this context the standard streams may be missing, lose their reader (`| head`) or fill a disk.

    Replacements made by a caller or a notebook are kept.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:  # it takes the number of a missing stream
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
