"""Locks that outlived their owners: DVC's, the flow's, and those of GPU slots."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from flows.doctor.findings import Finding
from flows.doctor.processes import (
    describe_process,
    guarded_record,
    is_locked,
    is_stopped,
    lock_holders,
)
from flows.scheduling.slots import host_folder, lock_files
from stages.core import layout
from stages.core.errors import InputError
from stages.core.file_lock import exclusive_lock

REPOSITORY_LOCK: Final = Path(".dvc/tmp/lock")
PATH_LOCKS: Final = Path(".dvc/tmp/rwlock")
STAGE_START_SECONDS: Final = 2.0
"""Time within which a flow that has acquired a slot starts its stage."""


def dvc_locks(root: Path) -> list[Finding]:
    """DVC's repository lock, and its list of paths being read or written (rwlock)."""
    return [_repository_lock(root), _path_locks(root)]


def flow_lock(root: Path) -> list[Finding]:
    """Locks of this workspace that are held by a stopped flow."""
    problems = []
    for path in sorted((root / layout.FLOWS).glob("*lock")):
        for process in filter(is_stopped, lock_holders(path)):
            check = f"flow lock {path.name}"
            problems.append(_stopped(check, process, "no other flow can start here"))
    return problems or [Finding("flow lock", "ok", "no stopped flow holds this workspace")]


def slots(root: Path) -> list[Finding]:
    """GPU slots of this host and workspace that are locked although no stage runs in them."""
    files = lock_files(host_folder()) | lock_files(root / layout.FLOWS / "slots")
    suspects = [path for path, name in files.items() if _leak(path, name)]
    if suspects:
        # a flow locks its slot shortly before the guard of its stage starts: look twice
        time.sleep(STAGE_START_SECONDS)
    # a slot of several per GPU has several files
    leaks = list(dict.fromkeys(leak for path in suspects if (leak := _leak(path, files[path]))))
    used = []
    for path, name in files.items():
        records = filter(None, map(guarded_record, lock_holders(path)))
        used += [f"{name} by {record.stem}" for record in records]
    what = f"in use: {', '.join(dict.fromkeys(used))}" if used else "all are free"
    return leaks or [Finding("slots", "ok", what)]


def _repository_lock(root: Path) -> Finding:
    name = "DVC lock"
    path = root / REPOSITORY_LOCK
    processes = lock_holders(path)
    if stopped := list(filter(is_stopped, processes)):
        return _stopped(name, stopped[0], "every DVC command here waits for it")
    if processes:
        holder = describe_process(processes[0])
        return Finding(name, "ok", f"held by {holder}, as usual while DVC plans and records")
    if is_locked(path):
        return Finding(
            name,
            "warning",
            f"{REPOSITORY_LOCK} is held by a process of another user",
            "wait for it, or run this check as the user who owns it",
        )
    if path.is_file() and "/" in path.read_text(encoding="utf-8", errors="replace"):
        # core.hardlink_lock: the file itself is the lock, and DVC sets no expiry
        return Finding(
            name,
            "problem",
            f"{REPOSITORY_LOCK} is a hard-link lock (core.hardlink_lock), which outlives a killed"
            " DVC; every command waits for it",
            f"if no DVC runs here on any host: rm {REPOSITORY_LOCK}",
        )
    return Finding(name, "ok", "free")


def _path_locks(root: Path) -> Finding:
    name = "DVC path locks"
    path = root / PATH_LOCKS
    try:
        entries = list(_entries(_read(path)))
        written = path.stat().st_mtime
    except FileNotFoundError:
        return Finding(name, "ok", "none")
    except ValueError as error:
        return Finding(
            name,
            "problem",
            f"{PATH_LOCKS} is corrupt ({error}): DVC refuses every stage",
            f"when no DVC runs here: rm {PATH_LOCKS}",
            partial(_edit, root, partial(_set_aside, path)),
        )
    commands = {entry["pid"]: entry["cmd"] for entry in entries}
    dead = {pid for pid in commands if not psutil.pid_exists(pid)}
    # a process younger than the list has only the same id as the one that was listed
    reused = {pid for pid in commands.keys() - dead if _start_time(pid) > written + 1}
    stale = dead | reused
    if not stale:
        what = f"held by {len(commands)} processes, all alive" if commands else "none"
        return Finding(name, "ok", what)
    listed = ", ".join(f"{pid} ({commands[pid]})" for pid in sorted(stale))
    effect = (
        "DVC takes them for alive, and refuses stages that need these paths"
        if reused
        else "DVC drops them when it finds them"
    )
    return Finding(
        name,
        "problem" if reused else "warning",
        f"{PATH_LOCKS} lists processes that are gone: {listed}; {effect}",
        "drop them: --fix",
        partial(_edit, root, partial(_drop, path, stale)),
    )


def _read(path: Path) -> dict[str, Any]:
    """The list of path locks; ValueError if it has another form."""
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        if all(
            isinstance(entry["pid"], int) and isinstance(entry["cmd"], str)
            for entry in _entries(content)
        ):
            return content
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"unexpected form: {error!r}") from error
    raise ValueError("pid or cmd has another type")


def _entries(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each process listed, once per path."""
    yield from content.get("write", {}).values()
    for readers in content.get("read", {}).values():
        yield from readers


def _start_time(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def _edit(root: Path, change: Callable[[], str]) -> str:
    """Change the list of path locks under DVC's own locks; InputError if DVC holds them."""

    def busy(_: str) -> InputError:
        return InputError(f"DVC is running in {root}: nothing was changed; retry when it has ended")

    path_locks = exclusive_lock(root / f"{PATH_LOCKS}.lock", on_conflict=busy)
    with path_locks, exclusive_lock(root / REPOSITORY_LOCK, on_conflict=busy):
        return change()


def _drop(path: Path, stale: set[int]) -> str:
    content = _read(path)
    content["write"] = {
        key: entry for key, entry in content.get("write", {}).items() if entry["pid"] not in stale
    }
    readers = {
        key: [entry for entry in entries if entry["pid"] not in stale]
        for key, entries in content.get("read", {}).items()
    }
    content["read"] = {key: entries for key, entries in readers.items() if entries}
    path.write_text(json.dumps(content), encoding="utf-8")
    return f"dropped {', '.join(map(str, sorted(stale)))} from {PATH_LOCKS}"


def _set_aside(path: Path) -> str:
    aside = path.with_name(path.name + ".broken")
    path.replace(aside)
    return f"moved {PATH_LOCKS} to {aside.name}"


def _leak(path: Path, name: str) -> Finding | None:
    """What is wrong with a lock of the slot `name`, if anything is."""
    processes = lock_holders(path)
    if not processes and is_locked(path):
        return Finding(
            "slots",
            "warning",
            f"slot {name} is held by a process of another user",
            "run this check as the user who owns it",
        )
    if not processes or any(map(guarded_record, processes)):
        return None
    holders = ", ".join(map(describe_process, processes))
    pids = " ".join(str(process.pid) for process in processes)
    return Finding(
        "slots",
        "problem",
        f"slot {name} is held by {holders}, but no stage runs in it: stages that need a GPU"
        " wait for it",
        f"check what it is, then end it: kill {pids}",
    )


def _stopped(check: str, process: psutil.Process, effect: str) -> Finding:
    return Finding(
        check,
        "problem",
        f"held by {describe_process(process)}, which is stopped: {effect}",
        f"resume it: kill -CONT {process.pid}; or end it",
    )
