"""The layout holds: who may import whom, a unique name for every module and class, and no sys.path by hand.

Arrows go helpers -> lab -> trainer -> library, never back; no module imports a command.
"""

import ast
import json
import pathlib
import re
from typing import get_args

import pytest

from lab import frames, palette, rules, tables
from trainer import config

ROOT = pathlib.Path(__file__).parents[1]
# Each may import itself and what stands before it.
LAYERS = {
    "gravity_optax": ROOT / "gravity_optax",
    "trainer": ROOT / "train" / "trainer",
    "lab": ROOT / "train" / "lab",
    "helpers": ROOT / "notebooks" / "helpers",
}
COMMANDS = sorted((ROOT / "train").glob("*.py"))
MODULES = [path for folder in LAYERS.values() for path in sorted(folder.rglob("*.py"))] + COMMANDS
OURS = {*LAYERS, *(path.stem for path in COMMANDS)}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def nodes(source, *kinds):
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def imported(source):
    """The top-level packages that it imports, wherever in the file."""
    names = [alias.name for node in nodes(source, ast.Import) for alias in node.names]
    names += [node.module for node in nodes(source, ast.ImportFrom) if node.module]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_itself_and_those_below(layer):
    below = [*LAYERS][: [*LAYERS].index(layer) + 1]
    paths = sorted(LAYERS[layer].rglob("*.py"))
    assert len(paths) > 1
    for path in paths:
        assert imported(path.read_text()) & OURS <= {*below}, path


def test_only_devices_knows_how_work_is_spread_over_devices():
    spreading = {"pmap", "shard_map", "psum", "pmean", "pmax", "all_gather", "axis_index", "NamedSharding", "AXIS"}
    knowing = set()
    for path in [path for path in MODULES if path.is_relative_to(ROOT / "train")]:
        source = path.read_text()
        names = {node.attr for node in nodes(source, ast.Attribute)} | {node.id for node in nodes(source, ast.Name)}
        names |= {alias.name for node in nodes(source, ast.ImportFrom) for alias in node.names}
        if names & spreading:
            knowing.add(path.stem)
    assert knowing == {"devices"}


def test_notebooks_use_the_layers_and_no_command():
    for path in NOTEBOOKS:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
        code = "\n".join(line for line in lines if not line.startswith("%"))
        assert imported(code) & OURS <= {*LAYERS}, path


def test_every_module_and_every_class_has_a_name_of_its_own():
    modules = [path.stem for path in MODULES if path.name not in ("__init__.py", "__main__.py")]
    classes = [node.name for path in MODULES for node in nodes(path.read_text(), ast.ClassDef)]
    assert len(classes) > 20
    assert sorted(modules) == sorted({*modules}) and sorted(classes) == sorted({*classes})


def test_the_laboratory_has_an_entry_for_every_dataset_network_and_optimizer_of_the_trainer():
    assert {*rules.RULES} == {*frames.DATASET_NAMES} == {*tables.TARGETS} == {*get_args(config.DatasetName)}
    assert {*frames.MODEL_NAMES} == {*get_args(config.ModelName)}
    assert {*palette.COLOURS} == {*get_args(config.OptimizerName)}


def test_no_notebook_and_no_readme_touches_sys_path():
    readmes = [path for pattern in ("README.md", "*/README.md", "*/*/README.md") for path in ROOT.glob(pattern)]
    assert len(readmes) > 3
    for path in [*NOTEBOOKS, *readmes]:
        assert not re.search(r"sys\.path|PYTHONPATH", path.read_text()), path
