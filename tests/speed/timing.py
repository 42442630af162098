"""What the speed scripts share: interleaved timing, an aligned table, a JSON file that says where and with what."""

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

PACKAGES = [
    "jax",
    "jaxlib",
    "libtpu",
    "optax",
    "flax",
    "numpy",
    "torch",
    "pytorch_optimizer",
    "tensorflow-cpu",
    "keras",
]
PAUSE = 0.02  # seconds between two runs, in which idle threads that still spin fall asleep


def arguments(description: str, rounds: int, **more: str) -> argparse.Namespace:
    """--rounds and --json, which every script takes, and `more` flags with a text, by name and help."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"timed runs of each candidate (default {rounds})")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    for name, text in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=text)
    return parser.parse_args()


def interleaved(candidates: dict[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each run; the candidates take turns, so that a drift of the machine affects all of them equally."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warmup + rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


Candidates = Callable[[], tuple[dict[str, Callable[[], object]], dict]]


def in_processes(
    frameworks: dict[str, Candidates], rounds: int, warmup: int = 2, settle: bool = False
) -> tuple[dict[str, list[float]], dict]:
    """As `interleaved`, with the candidates of each framework in a process of their own, where no other threads are.

    A framework is a function (of a module, by name) to be called there; it gives its candidates, and figures to hand
    on, which come back together. With `settle`, each timed run comes right after one that is not timed: a process that
    has waited for the others begins slowly, which can double a run of tenths of a second.
    """
    context = multiprocessing.get_context("spawn")
    turns, figures = [], {}
    for make in frameworks.values():
        connection, other = context.Pipe()
        context.Process(target=_serve, args=(make, other, settle), daemon=True).start()
        other.close()  # so that a process that dies is noticed
        names, more = connection.recv()
        turns += [(name, connection) for name in names]
        figures |= more
    seconds: dict[str, list[float]] = {name: [] for name, _ in turns}
    for number in range(warmup + rounds):
        for name, connection in turns:
            connection.send(name)
            elapsed = connection.recv()
            time.sleep(PAUSE)
            if number >= warmup:
                seconds[name].append(elapsed)
    for _, connection in turns:
        connection.close()
    return seconds, figures


def _serve(make: Candidates, connection, settle: bool) -> None:
    runs, figures = make()
    connection.send((list(runs), figures))
    with contextlib.suppress(EOFError):
        while True:
            name = connection.recv()
            if settle:
                runs[name]()
            start = time.perf_counter()
            runs[name]()
            connection.send(time.perf_counter() - start)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and spread (the quartiles) in milliseconds."""
    low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": median, "low_ms": low, "high_ms": high}


def table(rows: list[dict]) -> str:
    """Aligned columns under their names."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    first, *others = widths
    return "\n".join(
        "  ".join([line[0].ljust(first), *(text.rjust(w) for text, w in zip(line[1:], others, strict=True))])
        for line in cells
    )


def write(path: pathlib.Path | None, figures: dict) -> None:
    """The figures beside machine and versions, where a path was given."""
    if path:
        path.write_text(json.dumps(machine() | figures, indent=2) + "\n")


def report(path: pathlib.Path | None, figures: dict[str, list[dict]]) -> None:
    """Each table on standard output, and all of them in a file where a path was given."""
    sys.stdout.write("".join(f"{table(rows)}\n\n" for rows in figures.values()))
    write(path, figures)


def machine() -> dict:
    """Processor, cores and versions of what is installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = [x for x in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "cpu": cpu[0].split(": ")[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
