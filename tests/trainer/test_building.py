"""How an epoch is cut into chunks of steps."""

import pytest

from trainer.loop import chunk_lengths


@pytest.mark.parametrize("count", [1, 3, 7, 8, 45, 391, 469, 1009, 10_000])
def test_chunks_cover_an_epoch_with_at_most_two_programs(count):
    lengths = chunk_lengths(count)
    assert sum(lengths) == count
    assert len(set(lengths)) <= 2
    assert max(lengths) <= 128
    assert len(lengths) <= 10 * max(8, -(-count // 128))


def test_the_papers_epochs_need_one_program():
    assert len(set(chunk_lengths(391))) == len(set(chunk_lengths(469))) == 1
