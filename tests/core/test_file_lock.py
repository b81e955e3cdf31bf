"""A file lock has one holder, and is free once the holder and inheriting processes are gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stages.core.file_lock import LockedError, exclusive_lock


def test_a_second_holder_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    with exclusive_lock(path, holder="somebody else"), exclusive_lock(tmp_path / "b.lock"):
        with (
            pytest.raises(ValueError, match="^somebody else$"),
            exclusive_lock(path, on_conflict=ValueError),
        ):
            pass
        with (
            pytest.raises(LockedError, match="^unknown$"),
            exclusive_lock(tmp_path / "b.lock", on_conflict=LockedError),
        ):
            pass
    with exclusive_lock(path, on_conflict=LockedError, holder="me"):
        assert path.read_text(encoding="utf-8") == "me", (
            "a shorter name leaves nothing of a longer one"
        )


def test_the_content_of_a_file_that_is_locked_stays(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(b"content")
    with exclusive_lock(path):
        assert path.read_bytes() == b"content"


def test_a_child_that_inherits_the_lock_extends_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with exclusive_lock(path) as descriptor:
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[descriptor])
    with pytest.raises(LockedError), exclusive_lock(path, on_conflict=LockedError):
        pass
    child.communicate()
    with exclusive_lock(path, on_conflict=LockedError):
        pass


def test_who_waits_gets_the_file_that_is_there_then(tmp_path: Path) -> None:
    path = tmp_path / "part"
    seen: list[int] = []

    def wait() -> None:
        with exclusive_lock(path) as descriptor:
            seen.append(os.fstat(descriptor).st_ino)

    with exclusive_lock(path):
        first = path.stat().st_ino
        thread = threading.Thread(target=wait)
        thread.start()
        deadline = time.monotonic() + 2
        while not is_waited_for(first) and time.monotonic() < deadline:
            thread.join(0.01)
        path.replace(tmp_path / "whole")
    thread.join(60)
    assert seen == [path.stat().st_ino] != [first]


def is_waited_for(inode: int) -> bool:
    locks = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    return any(" -> " in line and f":{inode} " in line for line in locks)


def test_permissions_are_those_asked_for(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "a.lock", mode=0o600):
        assert (tmp_path / "a.lock").stat().st_mode & 0o777 == 0o600
