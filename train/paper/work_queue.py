"""The state of the work queue: how far each cell is, read from its folder, and the time that is left.

Nothing heavy is imported here.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Literal

from trainer import csv_files
from trainer.config import ResolvedConfig, as_recorded, flag, same_run
from trainer.ownership import is_owned

_NUMBERS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "val_seconds")

Pace = dict[tuple[str, ...], tuple[float, int]]  # (dataset, model, optimizer) -> seconds that so many epochs took


@dataclasses.dataclass(frozen=True)
class State:
    """How far a cell is."""

    kind: Literal["done", "running", "under way", "to do", "failed", "other run"]
    epochs: int  # finished
    text: str  # for people


def labels(cell: ResolvedConfig) -> tuple[str, ...]:
    """Dataset, model, optimizer (or variant of the tuning study) and seed_<n>: the last parts of its folder."""
    return cell.folder.parts[-4:]


def state(cell: ResolvedConfig) -> State:
    """How far a cell is, read from its folder."""
    folder = cell.folder
    epochs = len(history(folder))
    progress = f"{epochs} of {cell.epochs} epochs"
    if differences := _differences(cell, folder):
        return State(
            "other run", 0, f"another run is in this folder: {'; '.join(differences)}; choose another --workdir"
        )
    if epochs >= cell.epochs:
        return State("done", epochs, f"done: {epochs} epochs")
    if is_owned(folder):
        return State("running", epochs, f"under way: {progress}, running now")
    if (folder / "failed.txt").exists():
        return State("failed", epochs, f"failed after {progress}: {(folder / 'failed.txt').read_text().strip()}")
    if epochs or (folder / "config.json").exists():
        return State("under way", epochs, f"under way: {progress}, stopped")
    return State("to do", 0, f"to do: {cell.epochs} epochs")


def history(folder: pathlib.Path) -> list[dict[str, str]]:
    """The complete rows of history.csv, all of numbers; UserError for a file that is not one of ours."""
    try:
        return [row for _, row in csv_files.read(folder / "history.csv", _NUMBERS, _NUMBERS)]
    except FileNotFoundError:
        return []


def _differences(cell: ResolvedConfig, folder: pathlib.Path) -> list[str]:
    """Settings in which the run in this folder differs from this cell."""
    try:
        stored = as_recorded(json.loads((folder / "config.json").read_text()))
    except (FileNotFoundError, json.JSONDecodeError):  # none yet, or half written when the machine went down
        return []
    return [
        f"{flag(name)} was {stored[name]}, now {getattr(cell, name)}"
        for name in same_run(cell)
        if name in stored and stored[name] != getattr(cell, name)
    ]


def listing(cells: list[ResolvedConfig]) -> str:
    """A line per cell, and the totals."""
    states = [state(cell) for cell in cells]
    rows = [["dataset", "model", "optimizer", "seed", "state"]]
    for cell, s in zip(cells, states, strict=True):
        *names, seed = labels(cell)
        rows.append([*names, seed.removeprefix("seed_"), s.text])
    widths = [max(len(row[i]) for row in rows) for i in range(4)] + [0]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    kinds = [s.kind for s in states]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    done, total = epochs_done(cells, states), sum(cell.epochs for cell in cells)
    left = time_left(cells, states, recorded_pace(cells))
    lines.append(f"{len(cells)} cells: {counts}; {done:,} of {total:,} epochs; time left: {left}")
    return "\n".join(lines) + "\n"


def epochs_done(cells: list[ResolvedConfig], states: list[State]) -> int:
    """Of the epochs asked for; a cell may have more."""
    return sum(min(s.epochs, cell.epochs) for cell, s in zip(cells, states, strict=True))


def recorded_pace(cells: list[ResolvedConfig]) -> Pace:
    """From the seconds in the recorded histories, whatever machine they come from."""
    pace: Pace = {}
    for cell in cells:
        if rows := history(cell.folder):
            add(pace, cell, rows)
    return pace


def add(pace: Pace, cell: ResolvedConfig, rows: list[dict[str, str]]) -> None:
    before = pace.get(labels(cell)[:3], (0.0, 0))
    pace[labels(cell)[:3]] = (before[0] + seconds_of(rows), before[1] + len(rows))


def seconds_of(rows: list[dict[str, str]]) -> float:
    return sum(float(row["seconds"]) + float(row["val_seconds"]) for row in rows)


def time_left(cells: list[ResolvedConfig], states: list[State], pace: Pace, start_ups: Sequence[float] = ()) -> str:
    """At the measured pace of the same dataset, model and optimizer, else of the same model, else of all.

    `start_ups` are the seconds that cells took before their first epoch; their mean is added for each cell not started.
    """
    if not pace:
        return "not measured yet"
    seconds = 0.0
    for cell, s in zip(cells, states, strict=True):
        if s.kind in ("done", "other run"):
            continue
        same_model = {name: value for name, value in pace.items() if name[1] == labels(cell)[1]}
        alike = {name: value for name, value in pace.items() if name == labels(cell)[:3]} or same_model or pace
        took, epochs = (sum(x) for x in zip(*alike.values(), strict=True))
        seconds += (cell.epochs - s.epochs) * took / epochs
        if s.kind != "running" and start_ups:
            seconds += sum(start_ups) / len(start_ups)
    return f"about {duration(seconds)}"


def duration(seconds: float) -> str:
    """In two units: 3 d 4 h, 2 h 10 min, 5 min 20 s, 8 s."""
    whole = round(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s"
