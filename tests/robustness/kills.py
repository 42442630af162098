"""Kills the trainer at random moments, resumes it, and counts how often nothing but time was lost.

    python tests/robustness/kills.py [--kills 30] [--seed N]

Each run is killed (SIGKILL) once, with at least three epochs still to go, and then resumed with the same flags. Its
parameters, velocity and history.csv (all columns but the times) are compared, bit for bit, with those of a run that was
left alone. A third of the moments are before the first step, while data are read and programs compile; the others are
anywhere in the run, while a checkpoint is being written, or just after a row of history.csv, before its checkpoint.
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


def unfinished(workdir):
    """Whether a checkpoint is being written."""
    return any((workdir / "checkpoints").glob("*tmp*"))


def kill_and_resume(kind, workdir, whole, rng):
    """(where the results differ, what was there at the kill); None if the run was faster than a kill of this kind."""
    after = rng.randrange(EPOCHS - 3)  # rows of the history
    has_rows = lambda: processes.rows(workdir) >= after
    ready = {"start": workdir.exists, "checkpoint": lambda: has_rows() and unfinished(workdir)}
    flags = (*FLAGS, "--workdir", workdir, "--resume")
    process = processes.start(*flags)
    if processes.wait_for(process, ready.get(kind, has_rows)):
        time.sleep(rng.uniform(0, WAIT[kind]))
    if not processes.kill_at(process, lambda: True) or (kind == "start" and processes.rows(workdir)):
        return None
    rows, left, writing = processes.rows(workdir), processes.whole(workdir), unfinished(workdir)
    assert rows <= EPOCHS - 3, f"only {EPOCHS - rows} epochs were to go"
    out = processes.finish(processes.start(*flags))
    went_on = next((line for line in out.splitlines() if "resuming after" in line), "from the start")
    state = f"rows {rows}, checkpoints {left}, one being written: {writing}; {went_on}"
    return processes.differences(processes.result(workdir), whole), state


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    sys.stdout.write(f"seed {arguments.seed}\n")
    good = done = 0
    with tempfile.TemporaryDirectory() as folder:
        processes.finish(processes.start(*FLAGS, "--workdir", f"{folder}/whole"))
        whole = processes.result(f"{folder}/whole")
        while done < arguments.kills:
            kind = "start" if done % 3 == 0 else ("anywhere", "checkpoint", "history")[done // 3 % 3]
            workdir = pathlib.Path(folder, "killed")
            resumed = kill_and_resume(kind, workdir, whole, rng)
            shutil.rmtree(workdir)
            if resumed:
                wrong, state = resumed
                done, good = done + 1, good + (not wrong)
                sys.stdout.write(f"{done:3} {kind:10} {f'DIFFERENT in {wrong}' if wrong else 'identical'}: {state}\n")
                sys.stdout.flush()
    sys.stdout.write(f"{good} of {done} resumed identically\n")
    return good != done


if __name__ == "__main__":
    sys.exit(main())
