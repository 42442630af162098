"""What all commands share: captured streams, logging, signals, exit codes, paths. Notebooks are in test_kernel.py."""

import contextlib
import io
import logging
import os
import pathlib
import signal
import sys
import types

import pytest

import benchmark
import compare
import evaluate
import main
import report
from trainer import command
from trainer.config import UsageError, UserError
from trainer.preemption import StopRequest

TRAIN = pathlib.Path(main.__file__).parent
COMMANDS = (main, evaluate, benchmark, compare, report)
log = logging.getLogger("train")


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_a_caller_may_capture_the_output(monkeypatch, module):
    monkeypatch.setattr("sys.argv", ["command", "--help"])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert module.main() == 0
        assert sys.stdout is out
    assert "usage: train/" in out.getvalue()


def test_a_second_run_in_the_same_process_logs_each_line_once():
    before = list(log.handlers), log.level, log.propagate
    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert command.run(lambda arguments: log.info("a line") or 0) == 0
        assert out.getvalue() == "a line\n"
    assert (log.handlers, log.level, log.propagate) == before


def raising(error):
    def work(arguments):
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("wrong."), 2, "error: wrong.\n"),
        (UserError("broken."), 1, "error: broken.\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "error: /x/y could not be read or written"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (SystemExit(0), 0, ""),
    ],
)
def test_exit_codes(capsys, error, code, line):
    assert command.run(raising(error)) == code
    written = capsys.readouterr().err
    assert written.startswith(line) and written.count("\n") == bool(line)


def test_an_error_of_the_program_stays_a_traceback():
    with pytest.raises(ZeroDivisionError):
        command.run(raising(ZeroDivisionError()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_for_a_checkpoint_and_handlers_are_put_back(number):
    notice = StopRequest()
    notice.watched = True
    before = signal.getsignal(number)

    def work(arguments):
        notice.listen()
        os.kill(os.getpid(), number)
        return 0

    assert command.run(work) == 0
    assert notice.given and notice.reason == number.name
    assert signal.getsignal(number) is before


def test_nohup_keeps_its_meaning():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        StopRequest().listen()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_progress_is_shown_in_a_notebook_and_not_in_a_pipe(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=object))
    monkeypatch.setitem(sys.modules, "ipykernel", types.SimpleNamespace())
    with command.progress_bar(total=2) as bar:
        assert not bar.disable
    monkeypatch.delitem(sys.modules, "ipykernel")
    with command.progress_bar(total=2) as bar:
        assert bar.disable


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (benchmark, ["--workdir", "{}", "--datasets", "digits", "--models", "vgg11", "--optimizers", "sgd"]),
        (report, ["{}"]),
        (compare, ["--workdir", "{}/digits", "--report"]),
        (main, ["--workdir", "{}/digits"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch, capsys, tmp_path, module, words):
    """A file is where the folder should be, which stops root too."""
    (tmp_path / "digits").write_text("")
    (tmp_path / "report").write_text("")
    monkeypatch.setattr("sys.argv", ["command", *(word.format(tmp_path) for word in words)])
    assert module.main() in (1, 2)
    said = capsys.readouterr()
    (line,) = [line for line in (said.out + said.err).splitlines() if line.startswith("error: ")]
    assert str(tmp_path) in line and "Traceback" not in said.out + said.err


# Paths: empty, in a bucket, in the home folder


EMPTY = {
    benchmark: ("--workdir {}", "--workdir R --data-dir {}"),
    compare: ("--workdir {}", "--workdir {} --report", "--workdir R --data-dir {}"),
    report: ("{}",),
    evaluate: ("{}", "R --data-dir {}", "R --predictions {}", "R --export {}"),
}
PATHS = [
    *((module, words, "", " is empty") for module, every in EMPTY.items() for words in every),
    (benchmark, "--workdir {}", "gs://bucket/results", "local folder"),
    (compare, "--workdir {}", "gs://bucket/results", "local folder"),
    (report, "{}", "gs://bucket/results", "local folder"),
    (compare, "--workdir {} --report", "~/none", "HOME/none, "),
    (report, "{}", "~/none", "HOME/none, "),
]


@pytest.mark.parametrize(("module", "words", "path", "said"), PATHS)
def test_paths_of_the_other_commands(monkeypatch, capfd, tmp_path, module, words, path, said):
    """An empty one is refused, as is one in a bucket where results must be local; a tilde is the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["command", *(path if word == "{}" else word for word in words.split())])
    code = module.main()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and said.replace("HOME", str(tmp_path)) in line
    assert code == 2 or path.startswith("~")
    assert list(tmp_path.iterdir()) == []
