"""The commands in a Jupyter kernel, by `%run`, more than once; an interrupt ends the run and not the kernel."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from processes import MAIN

TRAIN = MAIN.parent
SMALL = "--model softmax --limit 48 --batch-size 16"
INTERRUPT = """import os, pathlib, signal, threading, time
def interrupt():
    while not pathlib.Path("stopped/history.csv").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
"""
CELLS = {
    "main": f"%run {TRAIN}/main.py {SMALL} --epochs 1 --workdir run",
    "main again": f"%run {TRAIN}/main.py {SMALL} --epochs 2 --workdir run --resume",
    "help": f"%run {TRAIN}/main.py --help",
    "usage error": f"%run {TRAIN}/main.py --epochs x",
    "thread": INTERRUPT,
    "interrupt": f"%run {TRAIN}/main.py {SMALL} --epochs 100000 --workdir stopped",
    "evaluate": f"%run {TRAIN}/evaluate.py run",
    "evaluate again": f"%run {TRAIN}/evaluate.py run",
    "benchmark": f"%run {TRAIN}/benchmark.py --workdir results --list",
    "compare": f"%run {TRAIN}/compare.py --workdir comparison --list --optimizers sgd",
    "report": f"%run {TRAIN}/report.py results",
}
FAILING = {"usage error": "2", "interrupt": "130", "report": "2"}  # the exit codes


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """By the name of the cell: its standard output, its standard error, and the error that ended it."""
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    resources = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    notebook, options = nbformat.v4.new_notebook(cells=cells), {"coalesce_streams": True, "allow_errors": True}
    client = NotebookClient(notebook, timeout=600, resources=resources, **options)
    client.execute(env=environment)
    found = {}
    for name, cell in zip(CELLS, client.nb.cells, strict=True):
        streams = {output.name: output.text for output in cell.outputs if output.output_type == "stream"}
        errors = [f"{o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error"]
        found[name] = streams.get("stdout", ""), streams.get("stderr", ""), errors
    return found


def test_only_a_failure_ends_a_cell_with_an_error(ran):
    for name, (out, err, errors) in ran.items():
        assert errors == ([f"SystemExit: {FAILING[name]}"] if name in FAILING else []), f"{name}: {out}{err}"
        assert "Traceback" not in out + err, name


def test_each_line_is_logged_once_in_every_run(ran):
    for name, epoch in (("main", "1"), ("main again", "2")):
        lines = [line for line in ran[name][0].splitlines() if line.strip()]
        assert [line.split()[0] for line in lines[-2:]] == [epoch, "results"], lines
        assert len(set(lines)) == len(lines)
    assert ran["evaluate"][0] and ran["evaluate"][0] == ran["evaluate again"][0]


def test_an_interrupt_stops_the_run_with_a_checkpoint(ran):
    assert "stopped on an interrupt after epoch" in ran["interrupt"][0]
    assert "accuracy" in ran["evaluate"][0], "the kernel is gone"
