"""A long run with checkpoints, watched from outside: does it use more memory or files, or slow down, as it goes on?

    python tests/robustness/soak.py [--epochs 200] [--width 0.01] [--runs 3]

Trains on the digits with a checkpoint after each epoch. Compares the epochs from 20 to 60, after the warm-up, with the
last 40: resident memory and threads (medians of samples), open files (the fewest), training speed (history.csv), and
the speed with everything included. Exit code 1 if memory grows by 5%, a speed falls by 5%, or files are added, in the
median of the runs: one takes half a minute, in which a machine may change its own speed.
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

WARM, COUNT = 20, 40  # epochs before the first window; epochs in each window


def compared(workdir, epochs, width):
    """What is compared, of an early and of a late window of a run."""
    process = processes.start("--width", width, "--epochs", epochs, "--workdir", workdir)
    watched, samples = psutil.Process(process.pid), []
    with contextlib.suppress(psutil.Error):  # it has just ended
        while process.poll() is None:
            now = watched.memory_info().rss / 1e6, watched.num_fds(), watched.num_threads()
            samples.append((processes.rows(workdir), time.monotonic(), *now))
            time.sleep(0.1)
    processes.finish(process)
    samples = pd.DataFrame(samples, columns=["epoch", "seconds", "memory", "files", "threads"])
    speeds = pd.read_csv(f"{workdir}/history.csv").images_per_second
    for first in (WARM, epochs - COUNT):
        inside = samples[samples.epoch.between(first, first + COUNT - 1)]
        yield {
            "resident memory, MB": inside.memory.median(),
            "open files": inside.files.min(),  # more while a checkpoint is written
            "threads": inside.threads.median(),
            "images/s": speeds[first : first + COUNT].median(),
            "epochs/s, all included": (inside.epoch.iloc[-1] - inside.epoch.iloc[0])
            / (inside.seconds.iloc[-1] - inside.seconds.iloc[0]),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, default in {"epochs": 200, "width": 0.01, "runs": 3}.items():
        parser.add_argument(f"--{flag}", type=type(default), default=default)
    options, windows = parser.parse_args(), []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as workdir:
            windows.append([*compared(workdir, options.epochs, options.width)])
    early, late = (pd.DataFrame(rows) for rows in zip(*windows, strict=True))
    changes = (late / early - 1).T.add_prefix("change of run ")
    table = pd.DataFrame({"early": early.median(), "late": late.median()})
    sys.stdout.write(f"{table.join(changes.map('{:+.1%}'.format)).to_string(float_format='{:.1f}'.format)}\n")
    change = changes.median(axis=1)
    speed = min(change["images/s"], change["epochs/s, all included"])
    return not (change["resident memory, MB"] < 0.05 and change["open files"] <= 0 and speed > -0.05)


if __name__ == "__main__":
    sys.exit(main())
