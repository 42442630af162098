"""What the READMEs say is true: their commands run, their examples end as they say, their flags, paths and links exist.

A command that is in no README yet must be added to one of the groups below, or `test_every_command_is_run` fails.
"""

import dataclasses
import json
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser
from sklearn.datasets import load_digits

from lab.grid import BenchmarkOptions
from trainer.config import Config, flag

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for pattern in ("*.md", ".github/*.md", "*/*.md", "*/*/*.md")
    for path in sorted(ROOT.glob(pattern))
    if not path.relative_to(ROOT).parts[0].startswith(".") or pattern.startswith(".github")
}
README = PAGES["README.md"]

# Commands that .ci/run runs, and how they read there where that differs.
IN_CI = ["ruff check .", "mypy", "pytest -m prepare", "pytest -m peers", "pytest -m slow", "pytest -m database -n 0"]
IN_CI += ["pytest -m browser -n 0", ". .venv/bin/activate", "pytest tests/library"]
IN_CI = dict(zip(IN_CI, IN_CI, strict=True)) | {
    ".ci/run": "passed",
    "pytest": "$test_command",
    "python3 -m venv .venv": "python3 -m venv",
    "ruff format .": "ruff format --check .",
    "pytest -n 0 -m tpu_compile tests/trainer/test_tpu_compile.py": 'pytest -n 0 -m "${target}_compile"',
    "pytest -n 0 -m gpu_compile tests/trainer/test_gpu_compile.py": 'pytest -n 0 -m "${target}_compile"',
}
SHORT = "--epochs 1 --limit 64"
TINY = f"{SHORT} --width 0.05"
DENSE = f"{TINY} --model mlp"  # which compiles in seconds
COMPARED = f"{DENSE} --optimizers gravity adam --rates 3 --widen 0 --search-seeds 1 --seeds 2"
# Run here, one after another, with these flags added; other commands of benchmark.py and compare.py with --list.
TRAINING = {
    "python train/main.py --help": "",
    "python train/main.py": f"{TINY} --workdir WORKDIR",
    "python train/evaluate.py WORKDIR": "",
    "python train/evaluate.py WORKDIR --predictions pictures.csv --export weights.safetensors": "",
    "python train/main.py --dataset cifar10 --data-dir DATA": DENSE,
    "python train/benchmark.py --workdir RESULTS --data-dir DATA": f"--datasets digits --models mlp {SHORT}",
    "python train/report.py RESULTS": "",
    "python train/compare.py --workdir FOLDER": COMPARED,
}
# They time things for minutes, or need a separate compiler: only their --help runs here.
SCRIPTS = re.compile(r"python tests/(speed|robustness)/\w+\.py")
# They need an account, a TPU or a GPU, or change the machine: the page says that no test runs them.
NOT_RUN = re.compile(r"gcloud |sudo |python3\.11 |python train/main\.py .* ~/|(pip install )?pre-commit")


def commands(page):
    """Those of a page's code blocks without a language, and those in backticks; `a && b` is two."""
    fenced = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
    blocks = [code for language, code in fenced.findall(page) if not language and not code.startswith("@")]
    lines = [line for code in blocks for line in re.findall(r'(?:[^\n"]|"[^"]*")+', code)]
    starts = r"(python\S* [-\w]|pip install |pre-commit |sudo |gcloud |ruff |pytest( |$)|mypy$|\.ci/run$)"
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", fenced.sub("", page))]
    lines += [code for code in inline if re.match(starts, code)]
    return [command for line in lines for command in re.split(r' && (?=(?:[^"]*"[^"]*")*[^"]*$)', line)]


ALL = [(name, command) for name, page in PAGES.items() for command in commands(page)]
for _, command in ALL:
    if re.match(r"python train/(benchmark|compare)\.py ", command):
        TRAINING.setdefault(command, "" if command.endswith(" --list") else "--list")


def test_every_command_is_run():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, command in ALL:
        if NOT_RUN.match(command):
            assert re.search(r"no\s+test\s+runs", PAGES[name], re.IGNORECASE), name
        elif command in IN_CI:
            assert IN_CI[command] in (ROOT / ".ci" / "run").read_text(), command
        elif install := re.match(r'pip install (?:-e "\.\[(.*?)\]"|\.$)', command):
            assert set((install[1] or "test").split(",")) <= extras.keys(), command
        else:
            assert command in TRAINING or SCRIPTS.match(command), f"{name}: {command}"
    assert IN_CI.keys() | TRAINING.keys() <= {command for _, command in ALL}, "a command that no page has"


def example(page, start):
    """The page's Python block that begins with `start`."""
    (code,) = re.findall(rf"```python\n({start}.*?)```", PAGES[page], re.DOTALL)
    return code


@pytest.mark.slow
def test_the_commands_train_and_report(tmp_path, tiny_tfds, monkeypatch):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment, "timeout": 1800}
    for command, more in TRAINING.items():
        words = [tiny_tfds if word == "DATA" else word for word in shlex.split(f"{command} {more}")]
        done = subprocess.run([sys.executable, ROOT / words[1], *words[2:]], **options)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1
    monkeypatch.chdir(tmp_path)
    code = example("train/README.md", "from flax")
    names = {"images": load_digits().images[..., None].astype(np.uint8)}
    with jax.numpy_dtype_promotion("standard"):
        exec(code.replace("0.25", "0.05"), names)
    assert names["logits"].shape == (1797, 10)
    assert (tmp_path / "RESULTS" / "report.html").stat().st_size > 0
    assert (tmp_path / "FOLDER" / "report.md").stat().st_size > 0


def test_the_scripts_start(monkeypatch, capsys):
    monkeypatch.setattr("sys.path", [*sys.path])
    for script in sorted({SCRIPTS.match(command)[0].split()[1] for _, command in ALL if SCRIPTS.match(command)}):
        monkeypatch.setattr("sys.argv", [script, "--help"])
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert "usage:" in capsys.readouterr().out, script


@pytest.mark.slow
def test_accelerator_measures_every_part_with_little_installed(tmp_path):
    """PyTorch, whose first steps take long, is left out too; with it the script was tried by hand."""
    script, unneeded = ROOT / "tests" / "speed" / "accelerator.py", ("orbax.checkpoint", "matplotlib", "torch")
    blocked = dict.fromkeys(["tensorflow_datasets", "tyro", "sklearn", "tqdm", *unneeded])
    arguments = [str(script), "--tiny", "--out", str(tmp_path)]
    code = f"import sys, runpy; sys.modules |= {blocked}; sys.argv = {arguments}; "
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(script.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "accelerator.json").read_text())
    assert [row["right"] for row in figures["correctness"]] == [True] * 3
    assert len(figures["training"]) == len(figures["evaluation"]) == 3  # precisions
    for row in (*figures["evaluation"], *figures["optimizer"], *figures["side_by_side"]):
        assert all(value > 0 for value in row.values() if isinstance(value, float))
    assert "30 cells x 100 epochs" in (tmp_path / "accelerator.txt").read_text()


@pytest.mark.slow
def test_the_library_installs_alone(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True, timeout=1800)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".dist-info"} == {"gravity_optax"}


def test_the_readmes_equations_render():
    for equation in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", README):
        MathTextParser("path").parse("$" + "".join(equation) + "$")


def test_links_and_paths_lead_somewhere():
    for name, page in PAGES.items():
        folder = (ROOT / name).parent
        links = [link for link in re.findall(r"\]\(([^)#\s]+)", page) if not link.startswith("http")]
        assert [link for link in links if not (folder / link).exists()] == [], name
        paths = re.findall(r"(?<!`)`((?:tests|train|notebooks|gravity_optax|trainer|helpers)/[\w./]*)`", page)
        assert [path for path in paths if not ((folder / path).exists() or (ROOT / path).exists())] == [], name


def table_flags(page):
    """The flags in the first column of a page's tables."""
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `--")]
    return {name for cell in cells for name in re.findall(r"--[a-z-]+", cell)}


def test_the_tables_of_flags_are_whole():
    assert table_flags(PAGES["train/README.md"]) == {flag(field.name) for field in dataclasses.fields(Config)}
    names = {field.name.removesuffix("_only") for field in dataclasses.fields(BenchmarkOptions)}
    assert table_flags(PAGES["train/paper/README.md"]) | {"--workdir", "--data-dir", "--list"} == set(map(flag, names))


def ran(page, start):
    """What the names in such an example are after it, without what it prints."""
    names = {}
    exec(re.sub(r"^print.*$", "", example(page, start), flags=re.MULTILINE), names)
    return names


def test_the_first_example_ends_where_its_comment_says():
    np.testing.assert_allclose(ran("README.md", "import jax\n")["w"], [0.5, -0.25], atol=0.01)


def test_the_example_of_frames_has_a_row_per_epoch(monkeypatch):
    monkeypatch.chdir(ROOT)
    epochs = ran("train/lab/README.md", "import pathlib")["epochs"]
    assert {*epochs[epochs["dataset"] == "cifar100_fine"]["epoch"]} == {1, 2, 3, 4, 5}


def test_the_example_of_minimize_converges_and_draws(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # Adam raises a float to an int32
        path = ran("notebooks/README.md", "import jax.numpy as jnp, optax\nfrom helpers")["path"]
    assert path.converged
    np.testing.assert_allclose(path.positions[path.steps_taken], [0, 4], atol=1e-3)
    assert (tmp_path / "paths.png").stat().st_size > 0
