"""The notebooks run from top to bottom, and are committed as such a run left them."""

import itertools
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def output_kinds(cell):
    """One after another; what is printed may have come in several parts."""
    kinds = [output["output_type"] for output in cell.get("outputs", [])]
    return [kind for kind, _ in itertools.groupby(kinds)]


@every_notebook
def test_it_is_committed_as_one_run_from_top_to_bottom_left_it(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds and "error" not in kinds
    text = json.dumps([cell["outputs"] for cell in cells])
    assert str(ROOT) not in text and not re.search(r"/tmp/|/home/|Warning", text)
    assert path.stat().st_size < 2**20


@every_notebook
def test_it_opens_with_what_it_shows_and_how_long_it_takes(path):
    first = json.loads(path.read_text())["cells"][0]
    assert first["cell_type"] == "markdown"
    text = "".join(first["source"])
    assert text.startswith("# ") and re.search(r"take[s]? about .* (seconds|minutes?)", text)


# Their functions are what they show: the quickstart's training steps, and the one animation that is of no path.
DEFINE_FUNCTIONS = {"quickstart": 2, "optimizer_trajectories": 1}


@every_notebook
def test_it_defines_no_helper_that_belongs_in_a_module(path):
    lengths = [len("".join(cell["source"]).splitlines()) for cell in code_cells(path)]
    assert max(lengths) <= 25
    source = "\n".join("".join(cell["source"]) for cell in code_cells(path))
    assert not re.search(r"^class ", source, re.MULTILINE)
    assert len(re.findall(r"^ *def ", source, re.MULTILINE)) == DEFINE_FUNCTIONS.get(path.stem, 0)


def test_the_quickstart_is_under_40_lines():
    source = "\n".join("".join(cell["source"]) for cell in code_cells(ROOT / "notebooks" / "quickstart.ipynb"))
    assert len([line for line in source.splitlines() if line.strip()]) < 40


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
    NotebookClient(notebook, timeout=300, resources=resources, coalesce_streams=True).execute()
    assert [output_kinds(cell) for cell in notebook.cells] == kinds
