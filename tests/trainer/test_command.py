"""What all commands share: captured streams, logging, signals, exit codes, paths, notebooks."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import types

import nbformat
import pytest
from nbclient import NotebookClient

import benchmark
import compare
import evaluate
import report
from processes import MAIN
from trainer import command
from trainer.preemption import StopRequest

log = logging.getLogger("train")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), 1, "error: /x/y could not be read or written"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (PermissionError(13, "Permission denied"), None, ""),  # of the program: it stays a traceback
    ],
)
def test_exit_codes(capsys, error, code, line):
    def work(arguments):
        raise error

    before = list(log.handlers), log.level, log.propagate
    with contextlib.nullcontext() if code else pytest.raises(PermissionError):
        assert command.run(work) == code
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == bool(line)
    assert (log.handlers, log.level, log.propagate) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("nohup", [False, True])
def test_a_signal_asks_for_a_checkpoint_unless_nohup_ignores_it_and_handlers_are_put_back(number, nohup):
    notice, before = StopRequest(), signal.getsignal(number)
    notice.watched = True
    ignored = nohup and number == signal.SIGHUP
    if ignored:
        signal.signal(number, signal.SIG_IGN)

    def work(arguments):
        notice.listen()
        os.kill(os.getpid(), number)
        return 0

    try:
        assert command.run(work) == 0
        assert signal.getsignal(number) is (signal.SIG_IGN if ignored else before)
    finally:
        signal.signal(number, before)
    assert notice.given is not ignored and notice.reason == (number.name if notice.given else "SIGTERM")


ABSL = """import sys, threading, time
sys.path.insert(0, "TRAIN")
from trainer import command
def work(arguments):
    import absl.logging
    absl.logging.use_absl_handler()  # as Orbax's; it closes its stream
    return 3
threading.Thread(target=time.sleep, args=(600,)).start()
command.leave(command.run(work))"""


def test_a_failure_does_not_wait_for_threads():
    code = ABSL.replace("TRAIN", str(MAIN.parent))
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 3


def test_progress_is_shown_in_a_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=object))
    monkeypatch.setitem(sys.modules, "ipykernel", types.SimpleNamespace())
    with command.progress_bar(total=2) as bar:
        assert not bar.disable


@pytest.mark.parametrize(
    ("module", "words"),
    [(benchmark, "--workdir {} --datasets digits"), (report, "{}"), (compare, "--workdir {}/digits --report")],
)
def test_a_folder_that_cannot_be_written_is_one_line(call, tmp_path, module, words):
    """A file is where the folder should be, which stops root too."""
    (tmp_path / "digits").write_text("")
    (tmp_path / "report").write_text("")
    code, *_, line = call(module, *words.format(tmp_path).split())
    assert code in (1, 2) and str(tmp_path) in line


LOCAL = {benchmark: "--workdir {}", compare: "--workdir {}", report: "{}"}
EMPTY = [*LOCAL.items(), *((module, "--workdir R --data-dir {}") for module in (benchmark, compare))]
EMPTY += [(evaluate, words) for words in ("{}", "R --data-dir {}", "R --predictions {}", "R --export {}")]


@pytest.mark.parametrize(
    ("module", "words", "path", "said"),
    [(*one, "", " is empty") for one in EMPTY]
    + [(*one, "gs://bucket/results", "local folder") for one in LOCAL.items()],
)
def test_a_path_that_is_empty_or_in_a_bucket_where_results_must_be_local(call, tmp_path, module, words, path, said):
    code, line = call(module, *(path if word == "{}" else word for word in words.split()))
    assert code == 2 and said in line and list(tmp_path.iterdir()) == []


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
