"""The README's example runs and does what its comment says."""

import pathlib
import re

import jax
import numpy as np

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_ends_where_its_comment_says():
    (example,) = re.findall(r"## Use\n\n```python\n(.*?)```", README, re.DOTALL)
    namespace = {}
    exec(example.replace("print(w)", "w"), namespace)
    np.testing.assert_allclose(namespace["w"], [0.5, -0.25], atol=0.01)
    assert len([line for line in example.splitlines() if line and not line.startswith("import")]) <= 15


def test_both_set_up_commands_stand_alone():
    commands = re.findall(r"```\n(python3 -m venv .*)\n```", README)
    assert [command.rsplit("&& ", 1)[1] for command in commands] == ["python train/main.py", "pytest"]


def test_the_example_of_minimize_converges_and_draws(monkeypatch, tmp_path):
    (example,) = re.findall(r"```python\n(import jax.numpy as jnp, optax\nfrom helpers.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    with jax.numpy_dtype_promotion("standard"):  # Adam raises a float to an int32
        exec(re.sub(r"^print.*$", "", example, flags=re.MULTILINE), namespace)
    path = namespace["path"]
    assert path.converged
    np.testing.assert_allclose(path.positions[path.steps_taken], [0, 4], atol=1e-3)
    assert (tmp_path / "paths.png").stat().st_size > 0
    assert len([line for line in example.splitlines() if line]) <= 11
