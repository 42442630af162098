"""Reading CSV files that a spreadsheet may have saved again.

A byte order mark and empty rows are ignored. Anything ambiguous, such as semicolons (with decimal commas), is an error
that names the file and the line. Nothing heavy is imported here.
"""

import codecs
import csv
import io
import pathlib
from collections.abc import Collection

from trainer.config import UserError

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(
    path: pathlib.Path, columns: Collection[str], numbers: Collection[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Each row with its line number; a last line without a newline, which is still being written, is skipped.

    `columns` are required, and those in `numbers` must hold numbers. FileNotFoundError if there is no file; UserError
    if it cannot be read.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _unreadable(path, line, "it is not UTF-8") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    reader = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]), strict=True)
    header: list[str] = []
    rows = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                if missing := [name for name in columns if name not in header]:
                    raise _unreadable(path, reader.line_num, f"it has no column {missing[0]} between commas")
                continue
            row = dict(zip(header, cells, strict=False))
            if len(cells) != len(header):
                raise _unreadable(path, reader.line_num, f"it has {len(cells)} cells, not {len(header)}")
            for name in numbers:
                try:
                    float(row[name])
                except ValueError as error:
                    raise _unreadable(path, reader.line_num, f"{name} is {row[name]!r}, not a number") from error
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise _unreadable(path, reader.line_num, str(error)) from error
    return rows


def _unreadable(path: pathlib.Path, line: int, why: str) -> UserError:
    return UserError(
        f"{path}, line {line} cannot be read ({why}); save it as CSV with commas and in UTF-8, or move it away."
    )
