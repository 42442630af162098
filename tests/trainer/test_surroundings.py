"""A run's environment: closed output, platforms, plugins, debugging settings, a bucket."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from etils.epath import testing

from trainer import checkpoints, data

TRAIN = pathlib.Path(__file__).parents[2] / "train"
SMALL = "--model softmax --limit 128 --batch-size 8 --epochs 2"


def shell(line, cwd, **environment):
    """`line` of bash, where `main` and the others are commands."""
    names = [f'{name}() {{ "{sys.executable}" "{TRAIN}/{name}.py" "$@"; }}' for name in ("main", "evaluate", "compare")]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_DTYPE_PROMOTION": "standard", **environment}
    command = ["bash", "-c", "\n".join([*names, line])]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)


def test_a_run_does_not_depend_on_its_output(tmp_path):
    done = shell(f"set -o pipefail; main {SMALL} --workdir run 2>&- | head -n 1", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3
    assert len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stdout


@pytest.mark.parametrize("where", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_invalid_flags_are_exit_code_2_with_any_output(tmp_path, where):
    done = shell(f"main --epochs x {where}; test $? = 2 || exit 3; compare --workdir R --list {where}", tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr


BROKEN = "from jax._src import xla_bridge; xla_bridge.register_plugin('broken', library_path='/gone.so')"


@pytest.mark.parametrize(
    ("command", "variables", "start", "says"),
    [
        ("evaluate run", {"JAX_PLATFORMS": "tpu"}, "pass", "JAX_PLATFORMS is tpu, which "),
        ("main", {"JAX_PLATFORMS": "", "JAX_PLATFORM_NAME": "no"}, "pass", "JAX_PLATFORM_NAME is no, which "),
        ("main", {"JAX_PLATFORMS": ""}, "raise RuntimeError('no driver')", "no driver"),
        ("main", {"JAX_PLATFORMS": "broken"}, BROKEN, "/gone.so"),
    ],
)
def test_a_platform_that_is_not_available_or_does_not_start_is_one_line(tmp_path, command, variables, start, says):
    plugin = tmp_path / "plugins" / "jax_plugins" / "broken"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(f"def initialize():\n    {start}\n")
    done = shell(command, tmp_path, PYTHONPATH=str(tmp_path / "plugins"), **variables)
    (line,) = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1 and line.startswith("error: JAX_PLATFORM") and says in line
    assert "platforms: cpu;" in line and "to one of them" in line
    assert [path.name for path in tmp_path.iterdir()] == ["plugins"]


def test_a_prepared_dataset_is_read_from_a_bucket(tiny_tfds, monkeypatch):
    at_home = lambda path: os.fspath(path).replace("gs://sets", tiny_tfds).replace("gs://other", "/nowhere")
    here = lambda original, path, *mode: original(at_home(path), *mode)
    glob = lambda original, path: [found.replace(tiny_tfds, "gs://sets") for found in original(at_home(path))]
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://sets")
    with testing.mock_epath(exists=here, isdir=here, open=here, glob=glob):
        for data_dir in ("gs://sets", None):
            found, expected = data.load("mnist", data_dir), data.load("mnist", tiny_tfds)
            np.testing.assert_array_equal(found.train_images, expected.train_images)
            np.testing.assert_array_equal(found.test_labels, expected.test_labels)
        with pytest.raises(data.DataError, match="cifar10 is not prepared in gs://other; prepare it in a local folder"):
            data.load("cifar10", "gs://other")


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
