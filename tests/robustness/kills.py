"""Kills the trainer at random moments, resumes it, and counts how often nothing but time was lost.

    python tests/robustness/kills.py [--kills 30] [--seed N]

Each run is killed (SIGKILL) once, with at least three epochs still to go, and then resumed with the same flags. Its
parameters, velocity and history.csv (all columns but the times) are compared, bit for bit, with those of a run that was
left alone. The kills come in turn before the first step, while data are read and programs compile; anywhere in the run;
while a checkpoint is being written; and just after a row of history.csv, before its checkpoint.
"""

import argparse
import pathlib
import random
import shutil
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2] / "train")]

import processes  # noqa: E402

EPOCHS = 12
FLAGS = ("--width", 0.1, "--epochs", EPOCHS)
# Seconds until the kill, at most, after the moment that is waited for.
WAIT = {"start": 4.0, "anywhere": 1.0, "checkpoint": 0.05, "history": 0.02}


def kill(kind, workdir, rng):
    """Whether a run was killed as asked; it may be faster."""
    after = 0 if kind == "start" else rng.randrange(1, EPOCHS - 3)  # rows of the history
    writes = lambda: kind != "checkpoint" or any((workdir / "checkpoints").glob("*tmp*"))
    process = processes.start(*FLAGS, "--workdir", workdir)
    if processes.wait_for(process, lambda: workdir.exists() and processes.rows(workdir) >= after and writes()):
        time.sleep(rng.uniform(0, WAIT[kind]))
    killed, rows = processes.kill_at(process, lambda: True), processes.rows(workdir)
    return killed and rows <= (0 if kind == "start" else EPOCHS - 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    rng, good = random.Random(arguments.seed), 0
    sys.stdout.write(f"seed {arguments.seed}\n")
    with tempfile.TemporaryDirectory() as folder:
        processes.finish(processes.start(*FLAGS, "--workdir", f"{folder}/whole"))
        whole, workdir = processes.result(f"{folder}/whole"), pathlib.Path(folder, "killed")
        for number in range(arguments.kills):
            kind = [*WAIT][number % len(WAIT)]
            while not kill(kind, workdir, rng):
                shutil.rmtree(workdir)
            left = f"rows {processes.rows(workdir)}, checkpoints {processes.whole(workdir)}"
            processes.finish(processes.start(*FLAGS, "--workdir", workdir, "--resume"))
            wrong = processes.differences(processes.result(workdir), whole)
            good += not wrong
            sys.stdout.write(f"{number:3} {kind:10} {f'DIFFERENT in {wrong}' if wrong else 'identical'}: {left}\n")
            sys.stdout.flush()
            shutil.rmtree(workdir)
    sys.stdout.write(f"{good} of {arguments.kills} resumed identically\n")
    return good != arguments.kills


if __name__ == "__main__":
    sys.exit(main())
