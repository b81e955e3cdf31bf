"""How far long work has come: a bar on a terminal, elsewhere a line every ten seconds with the time still to go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

EVERY = 10.0
"""Seconds between two lines."""


def counted(items: Iterable[Item], total: int, name: str, unit: str) -> Iterator[Item]:
    """The same items, with their progress on standard error."""
    with tqdm(items, desc=name, total=total, unit=unit, disable=not sys.stderr.isatty()) as bar:
        tell = teller(name, total, unit)
        for count, item in enumerate(bar, start=1):
            yield item
            if bar.disable:
                tell(count, "")


def teller(name: str, total: int, unit: str, *, done: int = 0, every: float = EVERY) -> Callable[[int, str], None]:
    """A function (count, note) that prints where the work is, at most once in `every` seconds from now on.

    `done`: how much was there before the work began, as when it is resumed.
    """
    start = last = time.monotonic()

    def tell(count: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            left = (now - start) / max(count - done, 1) * (total - count)
            print(f"{name}: {unit} {count} of {total}, {note}{left:.0f} s to go", file=sys.stderr, flush=True)

    return tell
