"""Pictures are PNG files with any settings of matplotlib. One that cannot be drawn is in test_evaluation.py."""

import os
import subprocess
import sys

import matplotlib
import pytest
from matplotlib.figure import Figure

from trainer import pictures

PNG = b"\x89PNG"


def draw():
    figure = Figure()
    figure.subplots().set(title="$x$", xlabel="a title")
    return figure


def test_it_is_drawn_with_our_own_settings(monkeypatch):
    """A notebook's own settings are unchanged."""
    plain = pictures.png("a.png", draw)
    for name, value in {"savefig.format": "pdf", "text.usetex": True, "figure.facecolor": "red"}.items():
        monkeypatch.setitem(matplotlib.rcParams, name, value)
    before = dict(matplotlib.rcParams)
    assert plain.startswith(PNG) and pictures.png("a.png", draw) == plain
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("where", "settings", "environment", "drawn"),
    [
        ("rc", b"text.usetex: True\n# caf\xe9\n", {"MATPLOTLIBRC": "rc", "MPLBACKEND": "nonsense"}, True),
        (".", b"# caf\xe9\n", {}, False),  # matplotlib looks in the current folder first
    ],
)
def test_settings_that_are_there_before_it_is_imported(tmp_path, where, settings, environment, drawn):
    (tmp_path / where).mkdir(exist_ok=True)
    (tmp_path / where / "matplotlibrc").write_bytes(settings)
    program = (
        "import os; from trainer import pictures; before = dict(os.environ)\n"
        "def draw():\n    from matplotlib.figure import Figure\n    return Figure()\n"
        "print((pictures.png('a.png', draw) or b'none')[:4], dict(os.environ) == before)"
    )
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": {**os.environ, **environment}}
    done = subprocess.run([sys.executable, "-c", program], timeout=600, **options)
    assert done.stdout == f"{PNG if drawn else b'none'} True\n", done.stderr
    assert "Traceback" not in done.stderr and ("a.png was not drawn" in done.stderr) != drawn
