"""A long run with checkpoints, watched from outside: does it use more memory or files, or slow down, as it goes on?

    python tests/robustness/soak.py [--epochs 200]

Trains on the digits with a checkpoint after each epoch, three times. Compares the epochs from 20 to 60, after the
warm-up, with the last 40: resident memory (median of samples), open files (the fewest), training speed (history.csv),
and the speed with everything included. Exit code 1 if memory grows by 5%, a speed falls by 5%, or files are added, in
the median of the runs: one takes half a minute, in which a machine may change its own speed.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import time

import pandas as pd
import psutil

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2] / "train")]

import processes  # noqa: E402

WARM, COUNT, RUNS = 20, 40, 3  # epochs before the first window; epochs in each window; runs
# What is compared, and by which factor it may change.
LIMITS = {"MB resident": (0, 1.05), "open files": (0, 1), "images/s": (0.95, 9), "epochs/s, all included": (0.95, 9)}


def windows(epochs):
    """What is compared, of an early and of a late window of a run: two lists in the order of LIMITS."""
    with tempfile.TemporaryDirectory() as workdir:
        process = processes.start("--width", 0.01, "--epochs", epochs, "--workdir", workdir)
        watched, samples = psutil.Process(process.pid), []
        with contextlib.suppress(psutil.Error):  # it has just ended
            while process.poll() is None:
                now = watched.memory_info().rss / 1e6, watched.num_fds()
                samples.append((processes.rows(workdir), time.monotonic(), *now))
                time.sleep(0.1)
        processes.finish(process)
        speeds = pd.read_csv(f"{workdir}/history.csv").images_per_second
    samples = pd.DataFrame(samples, columns=["epoch", "seconds", "memory", "files"])
    for first in (WARM, epochs - COUNT):
        inside = samples[samples.epoch.between(first, first + COUNT - 1)]
        speed = inside.epoch.diff().sum() / inside.seconds.diff().sum()
        # More files are open while a checkpoint is written.
        yield [inside.memory.median(), inside.files.min(), speeds[first : first + COUNT].median(), speed]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    epochs = parser.parse_args().epochs
    runs = zip(*(windows(epochs) for _ in range(RUNS)), strict=True)
    early, late = (pd.DataFrame(rows, columns=[*LIMITS]) for rows in runs)
    changes = late / early
    table = pd.DataFrame({"early": early.median(), "late": late.median()})
    sys.stdout.write(
        f"{table.join(changes.T.add_prefix('late / early, run ')).to_string(float_format='{:.3f}'.format)}\n"
    )
    return not all(low <= changes[name].median() <= high for name, (low, high) in LIMITS.items())


if __name__ == "__main__":
    sys.exit(main())
