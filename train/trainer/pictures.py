"""Pictures as PNG files, drawn with matplotlib's own settings: a user's may not work here, and a run outlives that.

Nothing heavy is imported here.
"""

import contextlib
import importlib.util
import io
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from trainer.config import brief

log = logging.getLogger("train")


def png(name: str, draw: Callable[[], Any], dpi: int = 100) -> bytes | None:
    """The content of a PNG file of the Figure that `draw` returns; None, and a warning, if it cannot be drawn.

    `name` is of the file, for the warning.
    """
    try:
        with _own_settings():
            content = io.BytesIO()
            draw().savefig(content, format="png", dpi=dpi)
    except Exception as error:  # of matplotlib, its fonts, its configuration
        log.warning(f"{name} is left out, it could not be drawn ({brief(error)[:150]})")
        return None
    return content.getvalue()


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    if "matplotlib" not in sys.modules:
        _first_import()
    import matplotlib

    theirs = ("backend", "backend_fallback", "interactive", "toolbar")  # of the windows that a notebook or user has
    with matplotlib.rc_context():
        dict.update(
            matplotlib.rcParams,
            {name: value for name, value in dict.items(matplotlib.rcParamsDefault) if name not in theirs},
        )
        yield


def _first_import() -> None:
    """At its import, matplotlib reads a matplotlibrc, which need not be valid, and takes MPLBACKEND, likewise."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    before = {name: os.environ.pop(name, None) for name in ("MATPLOTLIBRC", "MPLBACKEND")}
    os.environ["MATPLOTLIBRC"] = str(pathlib.Path(spec.origin).parent / "mpl-data" / "matplotlibrc")
    try:
        import matplotlib.figure  # noqa: F401
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in before.items() if value is not None})
