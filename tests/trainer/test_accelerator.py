"""tests/speed/accelerator.py goes through all of its parts, with small networks, and needs little to be installed."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "speed" / "accelerator.py"
NOT_NEEDED = ("tensorflow_datasets", "tyro", "sklearn", "tqdm", "orbax.checkpoint", "matplotlib")


@pytest.mark.slow
def test_a_tiny_run_measures_every_part(tmp_path):
    # PyTorch is left out too: its first steps take long. With it the script was tried by hand.
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in (*NOT_NEEDED, "torch"))
    code = f"import sys, runpy; {blocked}sys.argv = {[str(SCRIPT), '--tiny', '--out', str(tmp_path / 'out')]!r}; "
    code += f"sys.path.insert(0, {str(SCRIPT.parent)!r}); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out" / "accelerator.json").read_text())
    assert [row["right"] for row in figures["correctness"]] == [True] * 3
    assert {row["optimizer step"] for row in figures["optimizer"]} >= {"gravity", "optax.adam", "a pass in place"}
    precisions = [row["training step"] for row in figures["training"]]
    assert precisions == ["vgg11, float32", "vgg11, default", "vgg11, bfloat16"]
    assert [row["runs at once"] for row in figures["side_by_side"]] == [1, 2]
    assert len(figures["evaluation"]) == 3
    for row in (*figures["evaluation"], *figures["optimizer"], *figures["side_by_side"]):
        assert all(value > 0 for value in row.values() if isinstance(value, float))
    assert "30 cells x 100 epochs" in (tmp_path / "out" / "accelerator.txt").read_text()
