"""The commands in a Jupyter kernel, by `%run`, more than once; an interrupt ends the run and not the kernel."""

import os

import nbformat
from nbclient import NotebookClient

from processes import MAIN

SMALL = "--model softmax --limit 48 --batch-size 16"
INTERRUPT = """import os, pathlib, signal, threading, time
def interrupt():
    while not pathlib.Path("stopped/history.csv").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
"""
# A cell's source or command -> the exit code with which it fails.
CELLS = {
    f"main.py {SMALL} --epochs 1 --workdir run": None,
    f"main.py {SMALL} --epochs 2 --workdir run --resume": None,
    "main.py --help": None,
    "main.py --epochs x": 2,
    INTERRUPT: None,
    f"main.py {SMALL} --epochs 100000 --workdir stopped": 130,
    "evaluate.py run": None,
    "evaluate.py  run": None,
    "benchmark.py --workdir results --list": None,
    "compare.py --workdir comparison --list --optimizers sgd": None,
    "report.py results": 2,
}


def test_the_commands_run_more_than_once_and_only_a_failure_ends_a_cell_with_an_error(tmp_path):
    sources = [source if source == INTERRUPT else f"%run {MAIN.parent}/{source}" for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    options = {"coalesce_streams": True, "allow_errors": True, "resources": {"metadata": {"path": str(tmp_path)}}}
    client = NotebookClient(notebook, timeout=600, **options)
    client.execute(env={**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_DTYPE_PROMOTION": "standard"})
    found = []
    for (source, code), cell in zip(CELLS.items(), client.nb.cells, strict=True):
        streams = {output.name: output.text for output in cell.outputs if output.output_type == "stream"}
        errors = [f"{o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error"]
        assert errors == ([] if code is None else [f"SystemExit: {code}"]), f"{source}: {streams}"
        assert "Traceback" not in "".join(streams.values()), source
        found.append(streams.get("stdout", ""))
    for out, epoch in zip(found[:2], ("1", "2"), strict=True):
        lines = [line for line in out.splitlines() if line.strip()]
        assert [line.split()[0] for line in lines[-2:]] == [epoch, "results"], lines
        assert len(set(lines)) == len(lines), "a line was logged twice"
    assert "stopped on an interrupt after epoch" in found[5]
    assert "accuracy" in found[6] == found[7], "the kernel is gone"
