"""The README's example runs and does what its comment says."""

import pathlib
import re

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
