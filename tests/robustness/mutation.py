"""Mutation testing: how many small faults, put into the code one at a time, do the tests notice?

    pip install cosmic-ray
    python tests/robustness/mutation.py [MODULE ...] [--tests TESTS] [--sample 100] [--seed 0] [--python PYTHON]

Cosmic Ray changes one operator, number, keyword or condition at a time in a copy of the tree, in a temporary folder.
The modules are gravity_optax by default; of the trainer,

    train/trainer/{steps,optimizers,layers,evaluation}.py --tests "tests/trainer -n 0"

have the arithmetic. A mutant survives if the tests pass with it. Type annotations are left out, since no test can
notice them. Prints each survivor as a diff, and the score: the share of the sample that did not survive.
"""
# ruff: noqa: T201

import argparse
import ast
import os
import pathlib
import random
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The fast tests, which notice most, come first.
TESTS = "tests/library/test_gravity.py tests/library/test_errors.py tests/library gravity_optax -n 0"


def copy_tree(folder):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def annotations(path):
    """The (first, last) positions of all type annotations of a module, each (line, column)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST):
                found.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    return found


def choose(session, folder, sample, seed):
    """Leaves a random sample of the mutants in the session; the rest is deleted."""
    from cosmic_ray.work_db import WorkDB, use_db

    with use_db(session, WorkDB.Mode.open) as database:
        items = sorted(database.work_items, key=lambda item: (str(item.mutations), item.job_id))
        ranges = {}
        counted = []
        for item in items:
            (mutation,) = item.mutations
            path = folder / mutation.module_path
            ranges.setdefault(path, annotations(path))
            if not any(first <= mutation.start_pos < last for first, last in ranges[path]):
                counted.append(item)
        chosen = random.Random(seed).sample(counted, min(sample, len(counted)))
        database.clear()
        database.add_work_items(chosen)
    print(f"{len(chosen)} of {len(counted)} mutants, seed {seed}", flush=True)


def report(session):
    """Prints the survivors and the score."""
    from cosmic_ray.work_db import WorkDB, use_db

    with use_db(session, WorkDB.Mode.open) as database:
        results = [result for _, result in database.results]
    survived = [result for result in results if not result.is_killed]
    for result in survived:
        print(result.diff)
    slow = sum(result.output == "timeout" for result in results)  # which Cosmic Ray counts as noticed
    killed, known = len(results) - len(survived) - slow, max(1, len(results) - slow)
    print(f"{killed} of {known} mutants noticed: {killed / known:.1%}; {slow} more ran into --timeout")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=["gravity_optax"], help="files or folders to change")
    parser.add_argument("--tests", default=TESTS, help="arguments of pytest")
    parser.add_argument("--sample", type=int, default=100, help="how many mutants, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the tests")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds until the tests of a mutant are stopped")
    options = parser.parse_args()
    python = os.path.abspath(shutil.which(options.python))
    with tempfile.TemporaryDirectory() as work:
        folder, session = pathlib.Path(work, "tree"), str(pathlib.Path(work, "session.sqlite"))
        copy_tree(folder)
        command = f"{shlex.quote(python)} -m pytest -x -q -p no:cacheprovider {options.tests}"
        (folder / "mutation.toml").write_text(
            "[cosmic-ray]\n"
            f"module-path = {options.modules!r}\n"
            f"timeout = {options.timeout}\n"
            "excluded-modules = []\n"
            f"test-command = {command!r}\n"
            '[cosmic-ray.distributor]\nname = "local"\n'
        )
        # The copy comes before an installed package; programs that a mutant does not change are compiled once.
        os.environ["PYTHONPATH"] = os.pathsep.join(str(folder / name) for name in ("", "train", "notebooks"))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(work, "programs"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
        cosmic_ray = lambda *arguments: subprocess.run(
            [sys.executable, "-m", "cosmic_ray.cli", *arguments], cwd=folder, check=True
        )
        subprocess.run(shlex.split(command), cwd=folder, check=True)  # they must pass without a mutant
        cosmic_ray("init", "mutation.toml", session)
        os.chdir(folder)
        choose(session, folder, options.sample, options.seed)
        cosmic_ray("exec", "mutation.toml", session)
        report(session)


if __name__ == "__main__":
    main()
