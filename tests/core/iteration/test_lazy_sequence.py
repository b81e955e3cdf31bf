"""Items are computed when they are accessed, by indices from 0 up."""

from __future__ import annotations

import pytest

from stages.core.iteration.lazy_sequence import LazySequence


def test_it_is_indexed_as_a_list_is() -> None:
    squares = LazySequence(5, lambda index: index * index)
    assert len(squares) == 5
    assert [*squares] == [0, 1, 4, 9, 16]
    assert (squares[3], squares[-1]) == (9, 16)
    assert (squares[1:3], squares[::-2], squares[9:]) == ([1, 4], [16, 4, 0], [])
    assert 9 in squares
    for index in (5, -6):
        with pytest.raises(IndexError):
            squares[index]


def test_an_item_is_computed_at_each_access_and_no_other_is() -> None:
    computed: list[int] = []
    sequence = LazySequence(3, computed.append)
    sequence[1], sequence[-2]
    assert computed == [1, 1]
    next(iter(sequence))
    assert computed == [1, 1, 0]


def test_an_index_error_of_an_item_does_not_end_the_iteration_silently() -> None:
    empty: list[int] = []
    with pytest.raises(IndexError):
        list(LazySequence(2, empty.__getitem__))
