"""Who holds a locked file, and whether a process is what a note says it is, as /proc has it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import psutil

_LOCKED: Final = re.compile(r"^lock:.*\bFLOCK\b", re.MULTILINE)


def holders(path: Path) -> list[psutil.Process]:
    """Processes of this user that hold a file's flock, taken or inherited."""
    try:
        wanted = path.stat()
    except OSError:
        return []
    return [process for process in psutil.process_iter() if _holds(process.pid, wanted)]


def is_locked(path: Path) -> bool:
    """Whether anybody at all on this host has locked a file (flock), seen through /proc/locks."""
    try:
        inode = path.stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return any(f":{inode} " in line and " FLOCK " in line and "->" not in line for line in lines)


def say(process: psutil.Process) -> str:
    """A process for people: "4711 (dvc repro -s train@ct)"."""
    try:
        command = " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        command = "ended"
    return f"{process.pid} ({command if len(command) <= 100 else command[:97] + '...'})"


def is_stopped(process: psutil.Process) -> bool:
    """Whether a process is held, as by Ctrl-Z, and will do nothing until it is told to go on."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def guarded_record(process: psutil.Process) -> Path | None:
    """The record of the stage that a process guards.

    None if it is not a guard (flows.dvc_api.guard).
    """
    try:
        command = process.cmdline()
    except psutil.Error:
        return None
    for number, part in enumerate(command[:-1]):
        if part.endswith("flows/dvc_api/guard.py"):
            return Path(command[number + 1])
    return None


def _holds(pid: int, wanted: os.stat_result) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    found = os.stat(entry.path)
                    if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino):
                        continue
                    # the file may be open more than once, by those who wait for it too
                    if _LOCKED.search(
                        Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text(encoding="ascii")
                    ):
                        return True
                except OSError:
                    continue
    except OSError:  # ended, or somebody else's
        return False
    return False
