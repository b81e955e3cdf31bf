"""A lock of which one process at a time is the holder, and which says who that is. The kernel's: free when its holder is gone."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, holder: str, taken: Callable[[str], Exception]) -> Iterator[int]:
    """Hold the lock at `path` as `holder`; gives its descriptor, which processes may inherit to hold it longer.

    If somebody has it, raises at once what `taken` makes of that holder's name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise taken(handle.read().strip() or "unknown") from None
        handle.truncate(0)
        handle.write(holder)
        handle.flush()
        yield handle.fileno()
