"""PNG files, drawn with matplotlib's default settings: the user's may fail, and no run should end because of a picture.

Nothing heavy is imported here. The figures themselves are drawn where their numbers are.
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
    """The Figure that `draw` returns as a PNG file's content; None, after a warning, if it cannot be drawn.

    `name` is the file's, for the warning.
    """
    try:
        with _own_settings():
            content = io.BytesIO()
            draw().savefig(content, format="png", dpi=dpi)
    except Exception as error:  # from matplotlib, its fonts, its configuration
        log.warning(f"{name} was not drawn ({brief(error)[:150]})")
        return None
    return content.getvalue()


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    if "matplotlib" not in sys.modules:
        _first_import()
    import matplotlib

    kept = ("backend", "backend_fallback", "interactive", "toolbar")  # about windows, a notebook's or the user's
    with matplotlib.rc_context():
        dict.update(
            matplotlib.rcParams,
            {name: value for name, value in dict.items(matplotlib.rcParamsDefault) if name not in kept},
        )
        yield


def _first_import() -> None:
    """Imports matplotlib without the user's matplotlibrc and MPLBACKEND, which may be invalid."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    before = {name: os.environ.pop(name, None) for name in ("MATPLOTLIBRC", "MPLBACKEND")}
    os.environ["MATPLOTLIBRC"] = str(pathlib.Path(spec.origin).parent / "mpl-data" / "matplotlibrc")
    try:
        import matplotlib.figure  # noqa: F401
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in before.items() if value is not None})
