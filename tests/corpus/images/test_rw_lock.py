"""Read-write lock: exclusive access, and no starvation."""

from __future__ import annotations

import threading

from stages.corpus.images.rw_lock import ReadWriteLock


def test_exclusive_access_excludes_readers_and_no_thread_starves() -> None:
    lock = ReadWriteLock()
    readers: list[None] = []
    observed: list[int] = []

    def read() -> None:
        for _ in range(200):
            with lock.shared():
                readers.append(None)
                readers.pop()

    def write() -> None:
        for _ in range(50):
            with lock.exclusive():
                observed.append(len(readers))

    threads = [threading.Thread(target=work) for work in (read, read, read, write, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert observed == [0] * 100
