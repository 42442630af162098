"""pyproject.toml and the workflows agree about what a release is."""

import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

import gravity_optax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
KNOWN = [line.split()[-1] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]


@pytest.mark.parametrize(
    ("tag", "changelog", "passes"),
    [
        ("v{version}", "## [{version}] - 2030-01-31", True),
        ("v{version}", "## [Unreleased]", False),
        ("{version}", "## [{version}] - 2030-01-31", False),
        ("v9.9.9", "## [{version}] - 2030-01-31", False),
    ],
)
def test_only_the_tag_of_the_version_in_the_changelog_is_published(tmp_path, tag, changelog, passes):
    """By the step of release.yml that compares them."""
    (step,) = (step for step in workflow("release")["build"]["steps"] if "tag" in step.get("name", ""))
    source, version = ROOT / PROJECT["tool"]["hatch"]["version"]["path"], gravity_optax.__version__
    (tmp_path / "gravity_optax").mkdir()
    (tmp_path / "gravity_optax" / "__init__.py").write_text(source.read_text())
    (tmp_path / "CHANGELOG.md").write_text(changelog.format(version=version))
    environment = {"GITHUB_REF_NAME": tag.format(version=version), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment)
    assert (done.returncode == 0) is passes


def test_nothing_is_published_before_the_tests_pass():
    jobs = workflow("release")
    assert {*jobs["publish"]["needs"]} == {"tests", "build"} == {*jobs} - {"publish"}
    assert jobs["tests"]["uses"] == "./.github/workflows/ci.yml"
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]


def test_ci_runs_the_pythons_that_the_classifiers_name():
    jobs = workflow("ci")
    assert jobs["library"]["strategy"]["matrix"]["python"] == KNOWN
    assert jobs["trainer"]["strategy"]["matrix"]["python"] == KNOWN[:-1]  # the newest only has the library
    (python,) = re.findall(r"for version in (3[\d. ]+);", (ROOT / ".ci" / "run").read_text())
    assert python.split() == KNOWN
