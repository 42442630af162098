"""Paths given to benchmark.py, compare.py, report.py and evaluate.py: empty, in a bucket, in the home folder."""

import pytest

import benchmark
import compare
import evaluate
import report

OTHER_COMMANDS = [
    (benchmark.main, ["--workdir", "{}"]),
    (benchmark.main, ["--workdir", "R", "--data-dir", "{}"]),
    (compare.main, ["--workdir", "{}"]),
    (compare.main, ["--workdir", "{}", "--report"]),
    (compare.main, ["--workdir", "R", "--data-dir", "{}"]),
    (report.main, ["{}"]),
    (evaluate.main, ["{}"]),
    (evaluate.main, ["R", "--data-dir", "{}"]),
    (evaluate.main, ["R", "--predictions", "{}"]),
    (evaluate.main, ["R", "--export", "{}"]),
]


@pytest.fixture
def other_command(monkeypatch, capfd):
    """Calls the main function of another command: its exit code and its one line of error."""

    def call(main_of, *words):
        monkeypatch.setattr("sys.argv", ["command", *words])
        code = main_of()
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return code, line

    return call


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("main_of, words", OTHER_COMMANDS)
def test_the_other_commands_refuse_an_empty_path_too(other_command, monkeypatch, tmp_path, main_of, words, value):
    monkeypatch.chdir(tmp_path)
    code, line = other_command(main_of, *[word.format(value) for word in words])
    assert code == 2 and " is empty" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "main_of, words", [(benchmark.main, ["--workdir"]), (compare.main, ["--workdir"]), (report.main, [])]
)
def test_results_of_the_other_commands_lie_in_a_local_folder(other_command, monkeypatch, tmp_path, main_of, words):
    monkeypatch.chdir(tmp_path)
    code, line = other_command(main_of, *words, "gs://bucket/results")
    assert code == 2 and "gs://bucket/results" in line and "local folder" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "main_of, words", [(compare.main, ["--workdir", "~/none", "--report"]), (report.main, ["~/none"])]
)
def test_the_other_commands_expand_a_tilde(other_command, monkeypatch, tmp_path, main_of, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    _, line = other_command(main_of, *words)
    assert f"is {tmp_path / 'none'}, " in line
    assert list(tmp_path.iterdir()) == []
