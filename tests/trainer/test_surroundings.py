"""A run's environment: closed output, platforms, plugins, debugging settings, a bucket."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from trainer import checkpoints, data

TRAIN = pathlib.Path(__file__).parents[2] / "train"
SMALL = "--model softmax --limit 128 --batch-size 8 --epochs 2"
COMMANDS = ("main", "evaluate", "benchmark", "compare")


def shell(line, cwd, **environment):
    """`line` of bash, where `main` and the others are commands."""
    names = "".join(f'{name}() {{ "{sys.executable}" "{TRAIN}/{name}.py" "$@"; }}\n' for name in COMMANDS)
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_DTYPE_PROMOTION": "standard", **environment}
    command = ["bash", "-c", names + line]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)


@pytest.mark.parametrize("where", [">&- 2>&-", "| head -n 1"])
def test_a_run_does_not_depend_on_its_output(tmp_path, where):
    done = shell(f"set -o pipefail; main {SMALL} --workdir run {where}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1


@pytest.mark.parametrize("where", ["2>&-", ">/dev/full 2>/dev/full"])
def test_invalid_flags_are_exit_code_2_with_any_output(tmp_path, where):
    line = "".join(f"{call} {where}; test $? = 2 || exit 3\n" for call in ("main --epochs x", "compare --epochs x"))
    done = shell(f"{line}benchmark --workdir R --list {where} || exit 4", tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({"JAX_PLATFORMS": "tpu"}, "evaluate run"),
        ({"JAX_PLATFORMS": "", "JAX_PLATFORM_NAME": "nonsense"}, "main --workdir run"),
    ],
)
def test_a_platform_that_is_not_available_is_one_line(tmp_path, variables, command):
    done = shell(command, tmp_path, **variables)
    (line,) = (done.stdout + done.stderr).splitlines()
    name, value = list(variables.items())[-1]
    assert done.returncode == 1
    assert line.startswith(f"error: {name} is {value}, which ") and "platforms: cpu; set it to one" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("platform", "start"),
    [
        ("", "raise RuntimeError('no driver')"),
        ("broken", "from jax._src import xla_bridge; xla_bridge.register_plugin('broken', library_path='/gone.so')"),
    ],
)
def test_a_plugin_that_does_not_start_is_one_line(tmp_path, start, platform):
    plugin = tmp_path / "jax_plugins" / "broken"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(f"def initialize():\n    {start}\n")
    done = shell("main --workdir run", tmp_path, JAX_PLATFORMS=platform, PYTHONPATH=str(tmp_path))
    (line,) = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1 and line.startswith("error: JAX_PLATFORMS is ")
    assert "platforms: cpu;" in line and ("no driver" in line or "/gone.so" in line)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The folder behind `fake://`, a scheme that epath knows from then on."""
    folder = tmp_path_factory.mktemp("bucket")

    class FakePath(epath.Path):
        def __fspath__(self):
            return f"fake://{super().__str__().removeprefix('fake:/').lstrip('/')}"

        __str__ = __fspath__

        @property
        def real(self):
            return folder / str(self).removeprefix("fake://")

        def is_dir(self):
            return self.real.is_dir()

        def exists(self):
            return self.real.exists()

        def glob(self, pattern):
            return [FakePath("fake://", path.relative_to(folder)) for path in self.real.glob(pattern)]

        def read_bytes(self):
            return self.real.read_bytes()

    FakePath.__abstractmethods__ = frozenset()  # no more is needed here
    epath.register_path_cls("fake://")(FakePath)
    return folder


def test_a_prepared_dataset_is_read_from_a_bucket(tiny_tfds, bucket, monkeypatch):
    (bucket / "sets").symlink_to(tiny_tfds)
    monkeypatch.setenv("TFDS_DATA_DIR", "fake://sets")
    for data_dir in ("fake://sets", None):
        found, expected = data.load("mnist", data_dir), data.load("mnist", tiny_tfds)
        np.testing.assert_array_equal(found.train_images, expected.train_images)
        np.testing.assert_array_equal(found.test_labels, expected.test_labels)
    with pytest.raises(data.DataError, match="cifar10 is not prepared in fake://other; prepare it in a local folder"):
        data.load("cifar10", "fake://other")


def test_a_checkpoint_that_cannot_be_written_names_the_cause(tmp_path):
    kept = checkpoints.Checkpoints(epath.Path(tmp_path / "checkpoints"), 1)
    for cause, fix in (("No space left on device", "Free some space"), ("Permission denied", "Fix the cause")):
        message = str(kept._unwritten(OSError(cause)))
        assert cause in message and fix in message
    (tmp_path / "checkpoints").rmdir()
    assert f"the folder {tmp_path / 'checkpoints'} is gone" in str(kept._unwritten(ValueError("NOT_FOUND")))


@pytest.mark.slow
def test_debugging_settings_stop_no_command(tmp_path):
    options = "--model softmax --limit 40 --epochs 1 --optimizers sgd --rates 3 --widen 0 --search-seeds 1 --seeds 1"
    line = f"main {SMALL} --workdir run && evaluate run && compare --workdir c {options}"
    done = shell(line, tmp_path, JAX_DISABLE_JIT="1", JAX_TRANSFER_GUARD="disallow")
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    assert done.stdout.count("JAX_DISABLE_JIT is set and has no effect here") == 3
    assert (tmp_path / "c" / "report.md").exists() and "accuracy" in done.stdout
