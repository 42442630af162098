"""The commands, run in the test's process."""

import pytest


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs a command, its module, with these flags: its exit code, output and errors."""

    def main(command, *flags):
        monkeypatch.setattr("sys.argv", [f"{command.__name__}.py", *map(str, flags)])
        return command.main(), *capfd.readouterr()

    return main
