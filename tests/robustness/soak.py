"""A long run with checkpoints, watched from outside: does it use more memory or files, or slow down, as it goes on?

    python tests/robustness/soak.py [--epochs 200] [--width 0.01] [--runs 3]

Trains on the digits with a checkpoint after each epoch. Compares the epochs from 20 to 60, after the warm-up, with the
last 40: resident memory and threads (medians of samples), open files (the fewest), training speed (history.csv), and
the speed with everything included. Exit code 1 if memory grows by 5%, a speed falls by 5%, or files are added, in the
median of the runs: one takes half a minute, in which a machine may change its own speed.
"""

import argparse
import csv
import pathlib
import statistics
import sys
import tempfile
import time

import psutil

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2] / "train")]

import processes  # noqa: E402

WARM, COUNT = 20, 40  # epochs before the first window; epochs in each window


def watch(process, workdir):
    """(epochs that are done, seconds, resident bytes, open files, threads) ten times a second, as long as it runs."""
    watched, samples = psutil.Process(process.pid), []
    while process.poll() is None:
        try:
            now = watched.memory_info().rss, watched.num_fds(), watched.num_threads()
        except psutil.Error:  # it has just ended
            break
        samples.append((processes.rows(workdir), time.monotonic(), *now))
        time.sleep(0.1)
    return samples


def medians(samples, speeds, epochs):
    """What is compared, over the window of these epochs."""
    inside = [sample for sample in samples if sample[0] in epochs]
    _, seconds, memory, files, threads = zip(*inside, strict=True)
    return {
        "resident memory, MB": statistics.median(memory) / 1e6,
        "open files": min(files),  # more while a checkpoint is written
        "threads": statistics.median(threads),
        "images/s": statistics.median(speeds[epoch] for epoch in epochs),
        "epochs/s, all included": (inside[-1][0] - inside[0][0]) / (seconds[-1] - seconds[0]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--width", type=float, default=0.01)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    runs = [one_run(arguments) for _ in range(arguments.runs)]
    changes = {name: [late[name] / early[name] for early, late in runs] for name in runs[0][0]}
    sys.stdout.write(f"{'':24} {'early':>10} {'late':>10}  change, of each run\n")
    for name, ratios in changes.items():
        values = (statistics.median(window[i][name] for window in runs) for i in (0, 1))
        all_of_it = ", ".join(f"{100 * (ratio - 1):+.1f}%" for ratio in ratios)
        sys.stdout.write("{:24} {:10.1f} {:10.1f}  {}\n".format(name, *values, all_of_it))
    ratio = {name: statistics.median(ratios) for name, ratios in changes.items()}
    speed = min(ratio["images/s"], ratio["epochs/s, all included"])
    return not (ratio["resident memory, MB"] < 1.05 and ratio["open files"] <= 1 and speed > 0.95)


def one_run(arguments):
    """What is compared, of an early and of a late window."""
    with tempfile.TemporaryDirectory() as workdir:
        flags = ("--width", arguments.width, "--epochs", arguments.epochs, "--workdir", workdir)
        process = processes.start(*flags)
        samples = watch(process, workdir)
        processes.finish(process)
        with open(f"{workdir}/history.csv", newline="") as file:
            speeds = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    early = medians(samples, speeds, range(WARM, WARM + COUNT))
    return early, medians(samples, speeds, range(arguments.epochs - COUNT, arguments.epochs))


if __name__ == "__main__":
    sys.exit(main())
