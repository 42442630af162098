"""The rows of `tables` as people read them: titles and texts in place of fields and data, as Markdown and CSV."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any

from paper import tables
from paper.results import EPOCHS, Departure

Value = str | int | float
# The titles of a table's columns; a title is its field's name, but for those in _FIELDS.
SUMMARY = (
    "model|optimizer|whose|seeds|epoch|validation accuracy|spread|best|loss|epochs to target|seconds to target|remarks"
)
DISTANCE = "dataset|model|optimizer|epoch|metric|seeds|ours|spread|published|ours - published|in spreads|remarks"
MISSING = "dataset|model|optimizer|ours|remarks"
PUBLISHED = "dataset|model|gravity|adam|rmsprop|Gravity's lead|swing, gravity|swing, adam|swing, rmsprop|remarks"
STUDY = "dataset|variant|whose|seeds|epochs|loss after epoch 1|final loss|validation accuracy|spread|best|remarks"
_FIELDS = {
    "ours - published": "difference",
    "Gravity's lead": "lead",
    "variant": "optimizer",
    "epochs": "epoch",
    "loss after epoch 1": "first_loss",
    "final loss": "loss",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and rows; numbers are rounded when shown and whole in the CSV."""

    columns: list[str]
    rows: list[tuple[Value, ...]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *([shown(x) for x in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines) + "\n"

    def csv(self) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()


def shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def texts(departures: Iterable[Departure]) -> list[str]:
    """For instance ["limit 128"]."""
    return [f"{departure.name.replace('_', ' ')} {departure.value}" for departure in departures]


def table(titles: str, rows: Sequence[Any], target: float = 0.0) -> Table:
    """Rows of one class under the titles of one of the tables above; `target` is SUMMARY's."""
    columns = titles.split("|")
    cells = [tuple(_value(title, row) for title in columns) for row in rows]
    return Table([title.replace("target", f"{target:g}") for title in columns], cells)


def _value(title: str, row: Any) -> Value:
    match title, row:
        case "ours", tables.MissingRow():
            ours = f"{row.epochs} of {EPOCHS} epochs" if row.epochs else "no run"
            return ours + (f"; {row.others} of another kind ({', '.join(texts(row.departures))})" if row.others else "")
        case "remarks", tables.MissingRow():
            return f"published: a {row.mark}" if row.mark else ""
        case "remarks", tables.PublishedRow():
            return f"gravity: {row.mark}" if row.mark else ""
    match value := getattr(row, _FIELDS.get(title) or title.replace(", ", "_").replace(" ", "_")):
        case None:
            return "not recorded" if title == "seconds to target" else "not available"
        case tables.Missed(reached, seeds):
            return f"{reached} of {seeds} seeds" if reached else "not reached"
        case tuple():
            return ", ".join(texts(value))
    return value
