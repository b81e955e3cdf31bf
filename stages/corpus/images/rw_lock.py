"""Work that goes on side by side, and now and then has to be alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """A place that many threads share, and one can have to itself: a lock for readers and writers,
    who go first.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing, self._wanted, self._taken = 0, 0, False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Beside others who share it; waits while somebody has it, or wants it, alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not self._wanted)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """With nobody else there; not to be asked for by one who shares it."""
        with self._changed:
            self._wanted += 1
            self._changed.wait_for(lambda: not self._taken and not self._sharing)
            self._wanted -= 1
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
