"""The file of a comparison's runs."""

import math

import pytest

from fake_outcomes import only, outcome
from lab import runs, search
from trainer.config import UserError


def test_the_file_gives_back_what_was_written(tmp_path):
    file = tmp_path / "runs.csv"
    assert runs.read(file) == {}
    one = only(optimizers=("gravity:beta=0.99,alpha=0.1", "adam"), limit=300, settings=("precision=default",), epochs=2)
    first, second = search.known(one, {})[:2]
    expected = {
        first: outcome(0.25, 0.5),
        second: outcome(0.25, 0.125, losses=(2.5, math.inf), seconds=None),
        second._replace(part="final"): outcome(0.25, 0.125, test=0.75),
        second._replace(limit=None, settings=""): outcome(1.0, 0.0),
        second._replace(width=0.123456789): outcome(1.0, 0.0),
    }
    runs.write(file, expected)
    assert runs.read(file) == expected
    whole = file.read_text()
    assert whole.splitlines()[0].startswith("dataset,model,optimizer,learning_rate,seed,part,")
    file.write_text(whole[:-5])  # half a line does not count
    assert list(runs.read(file)) == list(expected)[:-1]
    file.write_text("".join(line.rpartition(",")[0] + "\n" for line in whole.splitlines()))  # times may be cut off
    assert {outcome.seconds for outcome in runs.read(file).values()} == {None}


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",".join(runs.COLUMNS) + "\ndigits,vgg11,gravity,x\n"])
def test_a_file_of_another_kind_is_named_with_its_line(tmp_path, text):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(UserError, match=r"runs\.csv, line [12] "):
        runs.read(tmp_path / "runs.csv")
