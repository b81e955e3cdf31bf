"""Lock holders and process states, read from /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import psutil

_FLOCK: Final = re.compile(r"^lock:.*\bFLOCK\b", re.MULTILINE)


def lock_holders(path: Path) -> list[psutil.Process]:
    """Processes of this user that hold a file's flock, taken or inherited."""
    try:
        file = path.stat()
    except OSError:
        return []
    return [process for process in psutil.process_iter() if _holds_lock(process.pid, file)]


def is_locked(path: Path) -> bool:
    """Whether any process on this host, of any user, holds a file's flock (from /proc/locks)."""
    try:
        inode = path.stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    # "->" marks processes that wait for the lock
    return any(f":{inode} " in line and " FLOCK " in line and "->" not in line for line in lines)


def command_words(process: psutil.Process) -> list[str]:
    """The command line of a process, cut at blanks; raises psutil.Error if the process has ended.

    A worker of a preloading server carries the command of its stage as one text.
    """
    return " ".join(process.cmdline()).split()


def describe_process(process: psutil.Process) -> str:
    """Process id and command: "4711 (dvc repro -s train@ct)"."""
    try:
        command = " ".join(command_words(process)) or process.name()
    except psutil.Error:
        command = "ended"
    return f"{process.pid} ({command if len(command) <= 100 else command[:97] + '...'})"


def is_stopped(process: psutil.Process) -> bool:
    """Whether a process is stopped, as by Ctrl-Z."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def guarded_record(process: psutil.Process) -> Path | None:
    """Record of the stage that a guard (flows.dvc_api.guard) runs; None for any other process."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return None
    for index, argument in enumerate(command[:-1]):
        if argument.endswith("flows/dvc_api/guard.py"):
            return Path(command[index + 1])
    return None


def _holds_lock(pid: int, file: os.stat_result) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(_is_locked_by(pid, entry, file) for entry in entries)
    except OSError:  # the process has ended, or belongs to another user
        return False


def _is_locked_by(pid: int, descriptor: os.DirEntry[str], file: os.stat_result) -> bool:
    """Whether this descriptor carries the lock: processes that wait have the file open too."""
    try:
        if not os.path.samestat(os.stat(descriptor.path), file):
            return False
        info = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text(encoding="ascii")
    except OSError:
        return False
    return _FLOCK.search(info) is not None
