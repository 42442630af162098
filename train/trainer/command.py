"""What all commands go through: streams, logging, signals, exit codes, and what jax is told before its first use.

Nothing heavy is imported here, so that `--help` answers at once.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from trainer import standard_streams
from trainer.config import ResolvedConfig, UserError

log = logging.getLogger("train")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 128 + signal.SIGINT


def run(work: Callable[[list[str]], int]) -> int:
    """The exit code of `work` on the command line's arguments; an error that the user can fix is one line.

    Streams, signal handlers and the logger are afterwards as they were: in a notebook the process goes on.
    """
    with standard_streams.unbreakable(), _signals_as_before(), _logging():
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
    """Ends the process; in IPython and Jupyter, which show any SystemExit as an error, only a failure raises it."""
    if code or not interactive():
        sys.exit(code)


def interactive() -> bool:
    """Whether IPython or a Jupyter kernel runs this process, which must then live on."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None


def in_notebook() -> bool:
    """Whether a Jupyter kernel does (Colab's is one), and so shows what is written."""
    return interactive() and "ipykernel" in sys.modules


def on_stop(handler: Callable[[int, Any], object], *numbers: signal.Signals) -> None:
    """Has these signals handled until the command ends, but for a SIGHUP that nohup has told to be ignored."""
    for number in numbers:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # only the main thread may, and a caller may have another
                signal.signal(number, handler)


def prepare_jax(config: ResolvedConfig | None = None) -> str | None:
    """Before jax is first used: the platform, other processes (`config`), and settings meant for other programs.

    Returns a line for the log; None where there is nothing to say. UserError for a platform that is not available.
    """
    from trainer.jaxlib_fault import work_around

    if in_notebook():
        _tqdm()  # before a library imports it
    line = work_around()  # before jax is imported
    from trainer import devices

    if config:
        devices.join_processes(config)
    else:
        devices.find_devices()
    devices.override_settings()
    devices.check_arithmetic()
    return line


def progress_bar(**options: Any) -> Any:
    """A tqdm bar on a terminal and in a notebook; one that shows nothing elsewhere."""
    import shutil

    if in_notebook():
        return _tqdm()(**options)
    # The size is given, because on a terminal that does not tell its own tqdm would show nothing.
    size = {"ncols": shutil.get_terminal_size().columns, "nrows": 2}
    return _tqdm()(**{"disable": not sys.stderr.isatty(), **size} | options)


def _tqdm() -> Any:
    """The class that suits where this runs. Without ipywidgets a notebook's bar is text, which tqdm warns of."""
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
        with contextlib.suppress(ValueError):  # likewise
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
    log.propagate = False  # libraries may give the root logger a handler of its own
    try:
        yield
    finally:
        handler.flush()
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def end_now(code: int) -> None:
    """Ends the process though threads are at work."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
