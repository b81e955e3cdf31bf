"""Locks that outlived those who took them: DVC's, the flow's, and those of slots."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from flows.doctor.findings import Finding
from flows.doctor.processes import guarded_record, holders, is_locked, is_stopped, say
from flows.scheduling.slots import host_folder
from stages.core import layout
from stages.core.errors import InputError
from stages.core.file_lock import exclusive_lock

REPOSITORY_LOCK: Final = Path(".dvc/tmp/lock")
PATH_LOCKS: Final = Path(".dvc/tmp/rwlock")
FLOWS: Final = layout.SCRATCH / "flows"
PATIENCE: Final = 2.0
"""Seconds in which a flow that just took a slot begins its stage."""


def dvc_locks(root: Path) -> list[Finding]:
    """DVC's lock of the repository, and its list of paths that are read or written (rwlock)."""
    return [_repository_lock(root), _path_locks(root)]


def flow_lock(root: Path) -> list[Finding]:
    """The lock of the flow that has this workspace."""
    found = []
    for path in sorted((root / FLOWS).glob("*lock")):
        for process in holders(path):
            if is_stopped(process):
                found.append(
                    _stopped(f"flow lock {path.name}", process, "no other flow can begin here")
                )
    return found or [Finding("flow lock", "ok", "no flow that stands still has this workspace")]


def slots(root: Path) -> list[Finding]:
    """GPU slots of this host and workspace that are locked although no stage runs in them."""
    files = [
        *sorted(host_folder().glob("*.lock")),
        *sorted((root / FLOWS / "slots").glob("*.lock")),
    ]
    leaks = {path: _leak(path) for path in files}
    if any(leaks.values()):
        time.sleep(PATIENCE)
    found = [finding for path, leaked in leaks.items() if leaked and (finding := _leak(path))]
    used = []
    for path in files:
        records = filter(None, map(guarded_record, holders(path)))
        used += [f"{path.stem} by {record.stem}" for record in records]
    return found or [
        Finding(
            "slots", "ok", f"in use: {', '.join(dict.fromkeys(used))}" if used else "all are free"
        )
    ]


def _repository_lock(root: Path) -> Finding:
    name, path = "DVC lock", root / REPOSITORY_LOCK
    by = holders(path)
    if stopped := [process for process in by if is_stopped(process)]:
        return _stopped(name, stopped[0], "every DVC command here waits for it")
    if by:
        return Finding(name, "ok", f"held by {say(by[0])}, as it is while DVC plans and records")
    if is_locked(path):
        return Finding(
            name,
            "warning",
            f"{REPOSITORY_LOCK} is held by a process that this user cannot see",
            "wait for it, or look as the user it runs as",
        )
    if path.is_file() and "/" in path.read_text(encoding="utf-8", errors="replace"):
        # core.hardlink_lock: the file itself is the lock, and DVC sets none that expires
        return Finding(
            name,
            "problem",
            f"{REPOSITORY_LOCK} is a hard-link lock (core.hardlink_lock), which outlives a DVC that"
            " was killed; every command waits for it",
            f"if no DVC runs here on any host: rm {REPOSITORY_LOCK}",
        )
    return Finding(name, "ok", "free")


def _path_locks(root: Path) -> Finding:
    name, path = "DVC path locks", root / PATH_LOCKS
    try:
        entries = list(_entries(_read(path)))
        written = path.stat().st_mtime
    except FileNotFoundError:
        return Finding(name, "ok", "none")
    except ValueError as error:
        return Finding(
            name,
            "problem",
            f"{PATH_LOCKS} is broken ({error}): DVC refuses every stage",
            f"when no DVC runs here: rm {PATH_LOCKS}",
            partial(_edit, root, partial(_set_aside, path)),
        )
    dead = {entry["pid"]: entry["cmd"] for entry in entries if not psutil.pid_exists(entry["pid"])}
    reused = {
        pid: each["cmd"]
        for each in entries
        if (pid := each["pid"]) not in dead and _began(pid) > written + 1
    }
    gone = dead | reused
    if not gone:
        return Finding(
            name,
            "ok",
            (
                f"held by {len({each['pid'] for each in entries})} processes, all alive"
                if entries
                else "none"
            ),
        )
    shown = ", ".join(f"{pid} ({command})" for pid, command in sorted(gone.items()))
    means = (
        "DVC takes those for alive, and refuses what overlaps"
        if reused
        else "DVC drops them when it meets them"
    )
    return Finding(
        name,
        "problem" if reused else "warning",
        f"{PATH_LOCKS} lists processes that are gone: {shown}; {means}",
        "drop them: --fix",
        partial(_edit, root, partial(_drop, path, set(gone))),
    )


def _read(path: Path) -> dict[str, Any]:
    """The list of path locks; ValueError if it is none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        if all(
            isinstance(entry["pid"], int) and isinstance(entry["cmd"], str)
            for entry in _entries(content)
        ):
            return content
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"unexpected form: {error!r}") from error
    raise ValueError("pid or cmd of another type")


def _entries(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each process listed, once for each path."""
    yield from content.get("write", {}).values()
    for readers in content.get("read", {}).values():
        yield from readers


def _began(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def _edit(root: Path, change: Callable[[], str]) -> str:
    """Change the list of path locks as DVC does, under its lock; InputError if DVC has it now."""

    def busy(_: str) -> InputError:
        return InputError(
            f"DVC is running in {root}: nothing was changed; try again when it has ended"
        )

    path_locks = exclusive_lock(root / f"{PATH_LOCKS}.lock", on_conflict=busy)
    with path_locks, exclusive_lock(root / REPOSITORY_LOCK, on_conflict=busy):
        return change()


def _drop(path: Path, gone: set[int]) -> str:
    content = _read(path)
    content["write"] = {
        key: entry for key, entry in content.get("write", {}).items() if entry["pid"] not in gone
    }
    readers = {
        key: [entry for entry in entries if entry["pid"] not in gone]
        for key, entries in content.get("read", {}).items()
    }
    content["read"] = {key: entries for key, entries in readers.items() if entries}
    path.write_text(json.dumps(content), encoding="utf-8")
    return f"dropped {', '.join(map(str, sorted(gone)))} from {PATH_LOCKS}"


def _set_aside(path: Path) -> str:
    aside = path.with_name(path.name + ".broken")
    path.replace(aside)
    return f"moved {PATH_LOCKS} to {aside.name}"


def _leak(path: Path) -> Finding | None:
    """What is wrong with the lock of one slot, if anything is."""
    by = holders(path)
    if not by and is_locked(path):
        return Finding(
            "slots",
            "warning",
            f"slot {path.stem} is held by a process that this user cannot see",
            "look as its user",
        )
    if not by or any(guarded_record(process) for process in by):
        return None
    pids = " ".join(str(process.pid) for process in by)
    return Finding(
        "slots",
        "problem",
        f"slot {path.stem} is held by {', '.join(map(say, by))}, but no stage runs in it: stages"
        " that need a GPU wait for it",
        f"see what it is, then end it: kill {pids}",
    )


def _stopped(check: str, process: psutil.Process, means: str) -> Finding:
    return Finding(
        check,
        "problem",
        f"held by {say(process)}, which is stopped: {means}",
        f"let it go on: kill -CONT {process.pid}; or end it",
    )
