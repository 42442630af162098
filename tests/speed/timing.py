"""What the speed scripts share: their command line, timing in turns, an aligned table, where and with what they ran."""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

PACKAGES = re.compile("jax|jaxlib|libtpu|optax|flax|torch|pytorch_optimizer|tensorflow-cpu|keras")
PAUSE = 0.02  # seconds between two runs, in which idle threads that still spin fall asleep
Runs = dict[str, Callable[[], object]]
Framework = Callable[[], tuple[Runs, dict]]


def main(description: str, *parts: Callable[[argparse.Namespace], Iterable[dict]], **flags: Any) -> dict:
    """Measures, row by row, the parts that the command line names; each is a table under its docstring's first line.

    A part gets the options, whose `figures` are the rows so far; `flags` are the script's own: a default, or as for
    argparse.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    names = [part.__name__ for part in parts]
    parser.add_argument("parts", nargs="*", choices=[*names, []], metavar="|".join(names), help="default: all")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the tables, and for the same as JSON, row by row")
    for name, settings in flags.items():
        settings = settings if isinstance(settings, dict) else {"type": type(settings), "default": settings}
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    options = parser.parse_args()
    options.figures, tables = {}, []
    for part in (part for part in parts if part.__name__ in (options.parts or names)):
        rows = options.figures[part.__name__] = []
        tables.append("")
        for row in part(options):
            rows.append(row)
            tables[-1] = f"{part.__doc__.splitlines()[0]}\n{table(rows)}\n\n"
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                file = options.out / pathlib.Path(sys.argv[0]).name
                file.with_suffix(".json").write_text(json.dumps(machine() | options.figures, indent=2) + "\n")
                file.with_suffix(".txt").write_text("".join(tables))
        sys.stdout.write(tables[-1])
        sys.stdout.flush()
    return options.figures


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(
    runs: Runs, rounds: int, warmup: int = 2, clock: Callable[..., float] = seconds_of
) -> dict[str, list[float]]:
    """Seconds of each run; the runs take turns, so that a drift of the machine affects all of them equally."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warmup + rounds):
        for name, run in runs.items():
            elapsed = clock(run)
            if number >= warmup:
                seconds[name].append(elapsed)
    return seconds


def in_processes(
    frameworks: Iterable[Framework], rounds: int, warmup: int = 2, settle: bool = False
) -> tuple[dict[str, list[float]], dict]:
    """As `interleaved`, with the runs of each framework in a separate process, where no other threads are.

    A framework is a function of a module, called there, that returns its runs and some figures; the figures of all are
    returned. With `settle`, each timed run follows one that is not timed: after a wait a process starts slowly, and a
    run of tenths of a second may take twice as long.
    """
    runs, figures = {}, {}
    with contextlib.ExitStack() as stack:
        for make in frameworks:
            pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            names, more = stack.enter_context(pool).submit(_make, make).result()
            runs |= {name: functools.partial(pool.submit, _run, name, settle) for name in names}
            figures |= more
        return interleaved(runs, rounds, warmup, lambda run: run().result()), figures


_runs: Runs = {}  # in a framework's process


def _make(make: Framework) -> tuple[list[str], dict]:
    runs, figures = make()
    _runs.update(runs)
    return list(runs), figures


def _run(name: str, settle: bool) -> float:
    seconds = [seconds_of(_runs[name]) for _ in range(1 + settle)]
    time.sleep(PAUSE)
    return seconds[-1]


def summary(seconds: list[float], steps: int = 1) -> dict[str, float]:
    """Median and spread (the quartiles), in milliseconds, of a step, from runs of so many steps."""
    low, median, high = (1e3 / steps * np.quantile(seconds, [0.25, 0.5, 0.75])).tolist()
    return {"median ms": median, "low ms": low, "high ms": high}


def table(rows: list[dict]) -> str:
    """Aligned columns under their names."""
    text = lambda value: f"{value:.3g}" if isinstance(value, float) else str(value)
    lines = [list(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join("  ".join([line[0].ljust(first), *map(str.rjust, line[1:], widths)]) for line in lines)


def machine() -> dict:
    """Processor, cores and versions of what is installed."""
    versions = {d.name: d.version for d in importlib.metadata.distributions() if PACKAGES.fullmatch(d.name)}
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    where = {"cpu": cpu and cpu[1], "cores": os.cpu_count(), "python": platform.python_version()}
    return where | {"versions": versions}
