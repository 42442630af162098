"""The notebooks run from top to bottom, and are committed as such a run left them."""

import itertools
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def output_kinds(cell):
    """One after another; what is printed may have come in several parts."""
    return [kind for kind, _ in itertools.groupby(output["output_type"] for output in cell.get("outputs", []))]


@every_notebook
def test_it_is_committed_as_one_run_from_top_to_bottom_left_it(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds and "error" not in kinds
    text = json.dumps([cell["outputs"] for cell in cells])
    assert str(ROOT) not in text and not re.search(r"/tmp/|/home/|Warning", text)
    assert path.stat().st_size < 2**20


# From its own folder, and one from the root too.
FOLDERS = [*((path, "notebooks") for path in NOTEBOOKS), (ROOT / "notebooks" / "quickstart.ipynb", ".")]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "folder"), FOLDERS, ids=lambda value: getattr(value, "stem", value))
def test_it_runs_from_top_to_bottom(path, folder, monkeypatch):
    """As a reader opens it, from its folder or the root: the editable install alone finds what it imports."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as a reader has it
    monkeypatch.delenv("PYTHONPATH", raising=False)
    notebook = nbformat.read(path, as_version=4)
    kinds = [output_kinds(cell) for cell in notebook.cells]
    resources = {"metadata": {"path": str(ROOT / folder)}}
    NotebookClient(notebook, timeout=1800, resources=resources, coalesce_streams=True).execute()
    assert [output_kinds(cell) for cell in notebook.cells] == kinds
