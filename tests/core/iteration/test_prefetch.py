"""Results come in order, and no more is under way than the budget allows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from stages.core.iteration.prefetch import prefetch


def items(count: int, taken: list[int]) -> Iterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


def test_results_come_in_the_order_of_the_items() -> None:
    def late_first(number: int) -> int:
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number * number

    results = list(prefetch(late_first, range(20), threads=4, budget=8))
    assert results == [number * number for number in range(20)]


def test_as_many_are_under_way_as_the_budget_allows() -> None:
    barrier = threading.Barrier(3)  # broken, and an error here, unless three run at once

    def meet(number: int) -> int:
        barrier.wait(30)
        return number

    taken: list[int] = []
    stream = prefetch(meet, items(6, taken), threads=3, budget=3)
    assert next(stream) == 0
    assert taken == [0, 1, 2, 3], "one more is taken, to see whether it fits"
    assert list(stream) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("budget", "most"), [(10, 10), (4, 7)])
def test_weights_are_added_up_and_an_item_beyond_the_budget_goes_alone(
    budget: int, most: int
) -> None:
    weights = [5, 1, 7, 3, 2, 2, 3]
    under_way, peaks, lock = 0, [0], threading.Lock()

    def work(weight: int) -> int:
        nonlocal under_way
        with lock:
            under_way += weight
            peaks.append(under_way)
        time.sleep(0.01)
        return weight

    for weight in prefetch(work, weights, threads=7, budget=budget, weight=lambda each: each):
        with lock:
            under_way -= weight
    assert 7 <= max(peaks) <= most


def test_an_error_comes_in_the_place_of_its_result() -> None:
    stream = prefetch(lambda number: 1 // number, [1, 0, 1], threads=2, budget=4)
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_what_has_not_begun_when_it_is_closed_never_begins() -> None:
    begun: list[int] = []
    release = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number:
            release.wait(30)

    stream = prefetch(work, range(50), threads=1, budget=50)
    next(stream)
    threading.Timer(0.1, release.set).start()
    stream.close()
    assert len(begun) <= 2
