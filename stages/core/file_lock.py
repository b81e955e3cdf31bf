"""Exclusive and shared file locks (flock) between processes, and between threads of one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MAX_HOLDER_BYTES: Final = 4096


class LockedError(Exception):
    """Another process or thread holds the lock; the message is the holder's name."""


@contextmanager
def exclusive_lock(
    path: Path,
    *,
    on_conflict: Callable[[str], Exception] | None = None,
    holder: str = "",
    mode: int = 0o666,
) -> Iterator[int]:
    """Lock a file exclusively; yields the descriptor that carries the lock.

    The kernel releases the lock when the last copy of the descriptor is closed, however its owner
    ends: a child that inherits it (`pass_fds`) extends the lock over its own life.

    Args:
        path: The file to lock, created with its folder where missing. Its content stays.
        on_conflict: None waits. Otherwise a locked file raises on_conflict(holder) at once, with
            "unknown" if the holder wrote no name; LockedError is such a function.
        holder: Name of this holder, which replaces the file's content.
        mode: Permissions of a file that is created, before the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open_locked(path, on_conflict, mode, fcntl.LOCK_EX)
    try:
        if holder:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)  # no LOCK_UN: that would release a child's lock too


@contextmanager
def shared_lock(
    path: Path, *, on_conflict: Callable[[str], Exception] | None = None, mode: int = 0o666
) -> Iterator[int]:
    """Lock a file against `exclusive_lock`, with any number of others; otherwise as that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _open_locked(path, on_conflict, mode, fcntl.LOCK_SH)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # as above


def _open_locked(
    path: Path, on_conflict: Callable[[str], Exception] | None, mode: int, kind: int
) -> int:
    operation = kind if on_conflict is None else kind | fcntl.LOCK_NB
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
        try:
            fcntl.flock(descriptor, operation)
            # while this waited, the file may have been renamed or deleted by its holder
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError:
            name = os.pread(descriptor, _MAX_HOLDER_BYTES, 0).decode(errors="replace").strip()
            os.close(descriptor)
            assert on_conflict is not None, "only a lock that does not wait is refused"
            raise on_conflict(name or "unknown") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
