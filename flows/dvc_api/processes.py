"""Processes that guards started: find them, also those whose guard is gone, and end them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from stages.core import layout

RECORDS: Final = layout.FLOWS / "running"
"""Folder with one file per running stage."""
_GUARD: Final = Path(__file__).with_name("guard.py")
_ROUNDS: Final = 5
"""How often ended processes are looked for again: one may have forked just before it ended."""


def guarded(command: Iterable[str], record: Path) -> list[str]:
    """The command that runs `command` behind a guard, which writes its process id to `record`."""
    return [sys.executable, "-I", "-S", str(_GUARD), str(record), *command]


def processes_of(record: Path) -> list[psutil.Process]:
    """Processes started by the guard with this record, whatever their parent is now."""
    return [process for process, path in guarded_processes() if path == str(record)]


def guarded_processes() -> list[tuple[psutil.Process, str]]:
    """All processes of this user that a guard started, each with the path of its record."""
    processes = []
    for process in psutil.process_iter():
        try:
            record = process.environ().get("FLOW_RECORD")
        except (psutil.Error, OSError):
            continue
        if record and process.pid != os.getpid():
            processes.append((process, record))
    return processes


def find_orphans(root: Path) -> list[tuple[psutil.Process, str]]:
    """Processes of this workspace's stages whose guard is gone, each with its record's path."""
    folder = str((root / RECORDS).resolve())
    # stages before guards: a guard that starts in between makes no orphan
    staged = [each for each in guarded_processes() if str(Path(each[1]).parent) == folder]
    guards = [
        " ".join(process.cmdline()) for process in psutil.process_iter() if _is_guard(process)
    ]
    return [
        (process, record)
        for process, record in staged
        if not any(record in guard for guard in guards)
    ]


def end_processes(processes: Iterable[psutil.Process], patience: float = 10.0) -> None:
    """Interrupt processes, and kill those still alive after `patience` seconds."""
    remaining = list(processes)
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in remaining:
            with suppress(psutil.Error):
                process.send_signal(number)
        _, remaining = psutil.wait_procs(remaining, timeout=patience)


def end_stages(records: Iterable[Path]) -> list[int]:
    """End all processes that the guards with these records started; their process ids."""
    paths = {str(record) for record in records}
    pids: set[int] = set()
    for _ in range(_ROUNDS):
        remaining = [process for process, path in guarded_processes() if path in paths]
        if not remaining:
            break
        pids.update(process.pid for process in remaining)
        end_processes(remaining)
    return sorted(pids)


def _is_guard(process: psutil.Process) -> bool:
    try:
        return str(_GUARD) in process.cmdline()
    except (psutil.Error, OSError):
        return False
