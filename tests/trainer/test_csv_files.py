"""CSV files as spreadsheets save them."""

import codecs

import pytest

from lab import cells, runs
from trainer import csv_files
from trainer.config import UserError

TEXT = "a,b\n1,x\n2,y\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.encode("utf-16"),
        b"\n" + TEXT.encode() + b",\n\n",
        TEXT.replace("1", '"1"').encode() + b"3,unfini",
    ],
    ids=["ours", "BOM", "CRLF", "UTF-16", "empty rows", "unfinished"],
)
def test_what_is_not_in_doubt_is_read(tmp_path, content):
    (tmp_path / "f.csv").write_bytes(content)
    rows = [row for _, row in csv_files.read(tmp_path / "f.csv", ("a", "b"), ("a",))]
    assert rows == [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        (TEXT.replace(",", ";"), "utf-8", "line 1 .*it has no column a"),
        (TEXT + "3,é\n", "latin-1", "line 4 .*it is not UTF-8"),
        (TEXT + "\n3\n", "utf-8", "line 5 .*it has 1 cells, not 2"),
        (TEXT + '"1,5",z\n', "utf-8", "line 4 .*a is '1,5', not a number"),
    ],
)
def test_what_is_in_doubt_is_named_with_file_and_line(tmp_path, text, encoding, message, end):
    path = tmp_path / "f.csv"
    path.write_bytes(text.replace("\n", end).encode(encoding))
    with pytest.raises(UserError, match=rf"^{path}, {message}.*move it away\.$"):
        csv_files.read(path, ("a", "b"), ("a",))


def test_the_readers_of_results_use_it(tmp_path):
    (tmp_path / "history.csv").write_text("epoch;loss\n1;2,5\n")
    for read in (lambda: cells.history(tmp_path), lambda: runs.read(tmp_path / "history.csv")):
        with pytest.raises(UserError, match=r"history\.csv, line 1"):
            read()
