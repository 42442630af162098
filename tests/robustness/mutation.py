"""Mutation testing: how many small faults, put into the code one at a time, do the tests notice?

    pip install cosmic-ray
    python tests/robustness/mutation.py [MODULE ...] [--tests TESTS] [--sample 100] [--seed 0]

Cosmic Ray changes one operator, number, keyword or condition at a time in a copy of the tree, in a temporary folder.
The modules are gravity_optax by default; of the trainer,

    train/trainer/{steps,optimizers,layers,evaluation}.py --tests "tests/trainer -n 0"

have the arithmetic. A mutant survives if the tests pass with it. Every | is left alone: most are in type annotations,
where no test can notice it. Prints each survivor as a diff, and the score: the share of the sample that did not.
"""
# ruff: noqa: T201

import argparse
import os
import pathlib
import random
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The fast tests, which notice most, come first.
TESTS = "tests/library/test_gravity.py tests/library/test_errors.py tests/library gravity_optax -n 0"
SETTINGS = """[cosmic-ray]
module-path = {modules!r}
timeout = 900
excluded-modules = []
test-command = {command!r}
[cosmic-ray.distributor]
name = "local"
"""


def choose(database, sample, seed):
    """Leaves a random sample of the mutants in the session."""
    items = sorted(database.work_items, key=lambda item: (str(item.mutations), item.job_id))
    items = [item for item in items if "BitOr" not in item.mutations[0].operator_name]
    chosen = random.Random(seed).sample(items, min(sample, len(items)))
    print(f"{len(chosen)} of {len(items)} mutants, seed {seed}", flush=True)
    database.clear()
    database.add_work_items(chosen)


def report(database):
    """Prints the survivors and the score."""
    results = [result for _, result in database.results]
    survived = [result.diff for result in results if not result.is_killed]
    slow = sum(result.output == "timeout" for result in results)  # which Cosmic Ray counts as noticed
    killed, known = len(results) - len(survived) - slow, max(1, len(results) - slow)
    print(*survived, f"{killed} of {known} mutants noticed: {killed / known:.1%}; {slow} more ran too long", sep="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=["gravity_optax"], help="files or folders to change")
    parser.add_argument("--tests", default=TESTS, help="arguments of pytest")
    parser.add_argument("--sample", type=int, default=100, help="how many mutants, at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from cosmic_ray.work_db import WorkDB, use_db

    with tempfile.TemporaryDirectory() as work:
        folder, session = pathlib.Path(work, "tree"), f"{work}/session.sqlite"
        folder.mkdir()
        files = "git ls-files -z --cached --others --exclude-standard"
        subprocess.run(["bash", "-c", f"{files} | xargs -0 cp --parents -t {folder}"], cwd=ROOT, check=True)
        os.chdir(folder)
        command = f"{shlex.quote(sys.executable)} -m pytest -x -q -p no:cacheprovider {options.tests}"
        pathlib.Path("mutation.toml").write_text(SETTINGS.format(modules=options.modules, command=command))
        # The copy comes before an installed package; programs that a mutant does not change are compiled once.
        os.environ["PYTHONPATH"] = os.pathsep.join(str(folder / name) for name in ("", "train", "notebooks"))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{work}/programs"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
        cosmic_ray = [sys.executable, "-m", "cosmic_ray.cli"]
        subprocess.run(shlex.split(command), check=True)  # they must pass without a mutant
        subprocess.run([*cosmic_ray, "init", "mutation.toml", session], check=True)
        with use_db(session, WorkDB.Mode.open) as database:
            choose(database, options.sample, options.seed)
        subprocess.run([*cosmic_ray, "exec", "mutation.toml", session], check=True)
        with use_db(session, WorkDB.Mode.open) as database:
            report(database)


if __name__ == "__main__":
    main()
