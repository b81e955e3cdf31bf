"""Progress of long work: a bar on a terminal, otherwise a line every ten seconds with the ETA.

`MED_R1_PROGRESS_SECONDS` sets another interval, for a flow that shows the lines of several stages.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

EVERY = 10.0
"""Seconds between two lines, by default."""
EVERY_VARIABLE: Final = "MED_R1_PROGRESS_SECONDS"


_LINE: Final = re.compile(
    r"(?P<name>\S[^:]*): (?P<unit>\w+) (?P<done>\d+) of (?P<total>\d+), (?:(?P<note>.*),"
    r" )?(?P<left>\d+) s to go"
)


@dataclass(frozen=True)
class Progress:
    """Where some work is: `done` of `total`, with `left` seconds to go by its own reckoning."""

    name: str
    unit: str
    done: int
    total: int
    note: str
    left: int


def read_progress(line: str) -> Progress | None:
    """What a line that `progress_reporter` printed says; None for any other line."""
    match = _LINE.fullmatch(line.strip())
    if not match:
        return None
    return Progress(
        match["name"],
        match["unit"],
        int(match["done"]),
        int(match["total"]),
        match["note"] or "",
        int(match["left"]),
    )


def counted(items: Iterable[Item], total: int, name: str, unit: str) -> Iterator[Item]:
    """The same items, with their progress on standard error."""
    with tqdm(items, desc=name, total=total, unit=unit, disable=not sys.stderr.isatty()) as bar:
        report, start = progress_reporter(name, total, unit), time.monotonic()
        for count, item in enumerate(bar, start=1):
            yield item
            if bar.disable:
                report(count, f"{count / max(time.monotonic() - start, 1e-9):.1f} a second, ")


def progress_reporter(
    name: str, total: int, unit: str, *, done: int = 0, every: float | None = None
) -> Callable[[int, str], None]:
    """A function (count, note) that prints progress at most once every `every` seconds.

    By default every `EVERY` seconds, or as MED_R1_PROGRESS_SECONDS says. `done`: how much was there
    before the work began, as when it is resumed.
    """
    if every is None:
        every = float(os.environ.get(EVERY_VARIABLE) or EVERY)
    start = last = time.monotonic()

    def report(count: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every:
            last = now
            remaining = (now - start) / max(count - done, 1) * (total - count)
            print(
                f"{name}: {unit} {count} of {total}, {note}{remaining:.0f} s to go",
                file=sys.stderr,
                flush=True,
            )

    return report
