"""What `--watch` costs in the default run: once at the start, to compile, and once per epoch, to measure.

    pip install -e ".[train]" && python tests/speed/watch_cost.py [--json FILE]

The start is the building of the trainer (data, compilation, initial state) without and with `--watch`; "processor" is
the time of all cores. An epoch is its training alone. A measurement is a forward and a backward pass on one batch, and
reading the numbers back. They take turns.
"""

import pathlib
import statistics
import sys
import time

import timing

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "train"))


def main() -> None:
    options = timing.arguments(__doc__, rounds=5)
    from trainer.jax_setup import work_around

    work_around()
    from trainer import data, loop
    from trainer.config import Config, resolve

    digits = data.load("digits", None, None)
    starts = []
    for watch in (False, False, True):  # the first one also compiles what all of them share
        start, processor = time.perf_counter(), time.process_time()
        trainer = loop.Trainer(resolve(Config(watch=watch)), digits)
        taken = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
        starts.append({"start": "with --watch" if watch else "without", **taken})
    runs = {"an epoch": lambda: trainer.train_epoch(1), "a measurement": lambda: trainer.watch(1)}
    times = timing.interleaved(runs, options.rounds)
    epochs = [{"": name, **timing.summary(seconds)} for name, seconds in times.items()]
    share = statistics.median(times["a measurement"]) / statistics.median(times["an epoch"])
    figures = {"starts": starts[1:], "epochs": epochs, "shares": [{"a measurement, of an epoch": f"{share:.1%}"}]}
    timing.report(options.json, figures)


if __name__ == "__main__":
    main()
