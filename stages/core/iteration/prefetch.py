"""Bounded prefetch: results of a thread pool in order, a limited amount ahead of who uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int | None,
    budget: int,
    weight: Callable[[Item], int] = lambda _: 1,
) -> Generator[Result, None, None]:
    """Map a function over items on threads; yields the results in the order of the items.

    Close the generator (`contextlib.closing`) if it may not be used to its end: what has not begun
    is then dropped. An exception of the function is raised in place of its result.

    Args:
        function: Called on one of the threads.
        items: Taken one by one, as they are handed out.
        threads: How many; as many as ThreadPoolExecutor takes by itself if None.
        budget: Total weight of the items that are handed out and whose result was not yet taken;
            an item that exceeds it alone is handed out when nothing else is.
        weight: Of an item; by default each counts 1.
    """
    waiting: deque[tuple[int, Future[Result]]] = deque()
    total = 0
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            size = weight(item)
            while waiting and total + size > budget:
                total -= waiting[0][0]
                yield waiting.popleft()[1].result()  # no name keeps the result alive meanwhile
            waiting.append((size, pool.submit(function, item)))
            total += size
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)
