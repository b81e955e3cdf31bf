"""Leftovers of killed runs: orphaned processes, their records, half-written outputs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from flows.doctor.findings import Finding
from flows.doctor.processes import command_words, describe_process, guarded_record
from flows.dvc_api.preloading import SERVER
from flows.dvc_api.processes import RECORDS, end_processes, end_stages, find_orphans, processes_of
from flows.prefect_api.client import orphaned_servers

_SKIPPED_FOLDERS: Final = {".git", ".dvc", ".venv", "node_modules", "__pycache__"}
"""Folders in which no stage writes."""
_IDLE_SECONDS: Final = 600.0
"""Age since the last write at which a temporary file of the cache counts as abandoned."""


def orphaned_processes(root: Path) -> list[Finding]:
    """Processes of stages whose guard is gone."""
    stages: dict[Path, list[psutil.Process]] = {}
    for process, record in find_orphans(root):
        stages.setdefault(Path(record), []).append(process)
    return [
        Finding(
            "orphans",
            "problem",
            f"{record.stem}: {', '.join(map(describe_process, processes))} still runs though its"
            " guard is gone: no flow waits for it, and its slot is used by others",
            f"end it: kill -INT {' '.join(str(process.pid) for process in processes)}; the next"
            " flow does so too",
            partial(_end_stage, record),
        )
        for record, processes in stages.items()
    ] or [Finding("orphans", "ok", "every process of a stage belongs to a flow")]


def temporary_servers(root: Path) -> list[Finding]:
    """Temporary Prefect servers of any workspace that outlived the flow that started them."""
    servers = orphaned_servers()
    if not servers:
        return [Finding("temporary servers", "ok", "none outlived its flow")]
    return [
        Finding(
            "temporary servers",
            "warning",
            f"{', '.join(map(describe_process, servers))} still runs though the flow that started"
            " it was killed, and wastes 200 MB of memory",
            "end it: --fix; the next flow does so too",
            partial(_end, servers),
        )
    ]


def records(root: Path) -> list[Finding]:
    """Records of running stages for which no process exists."""
    guards = {record for process in psutil.process_iter() if (record := guarded_record(process))}
    stale = [
        path
        for path in sorted((root / RECORDS).resolve().glob("*.pid"))
        if path not in guards and not processes_of(path)
    ]
    if not stale:
        return [Finding("records", "ok", "every recorded stage runs")]
    names = ", ".join(path.stem for path in stale)
    return [
        Finding(
            "records",
            "warning",
            f"{RECORDS} lists {names}, which does not run: its guard was killed",
            "remove the records: --fix",
            partial(_remove, root, stale),
        )
    ]


def incomplete_outputs(root: Path) -> list[Finding]:
    """Outputs under their temporary name that no process writes any more."""
    leftovers = sorted([*_incomplete(root), *_half_cached(root)])
    if not leftovers:
        return [Finding("incomplete outputs", "ok", "none")]
    names = ", ".join(os.path.relpath(path, root) for path in leftovers)
    if writers := _writers(root):
        processes = ", ".join(map(describe_process, writers))
        return [Finding("incomplete outputs", "ok", f"{names}: being written by {processes}")]
    return [
        Finding(
            "incomplete outputs",
            "warning",
            f"a killed stage left {names}: it wastes space, and makes a folder that is an input"
            " look changed",
            "remove them: --fix; re-running the stage removes its own",
            partial(_remove, root, leftovers),
        )
    ]


def _incomplete(root: Path) -> Iterator[Path]:
    """Files and folders named like the temporary outputs of stages.core.outputs."""
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            if name.startswith(".") and name.endswith(".incomplete"):
                yield Path(folder) / name
        names[:] = [
            name
            for name in names
            if name not in _SKIPPED_FOLDERS and not name.endswith(".incomplete")
        ]


def _half_cached(root: Path) -> Iterator[Path]:
    """Half-written files in DVC's cache, of a kill or a full disk, which `dvc gc` ignores."""
    # only this workspace's own cache, and no file that a transfer started by hand may be writing
    for path in (root / ".dvc" / "cache" / "files" / "md5").glob("**/.*.tmp"):
        if path.is_file() and time.time() - path.stat().st_mtime > _IDLE_SECONDS:
            yield path


def _writers(root: Path) -> list[psutil.Process]:
    """Processes that may be writing an output here: children of DVC, and stages run by hand."""
    writers = []
    for process in psutil.process_iter():
        try:
            by_dvc = process.environ().get("DVC_ROOT") == str(root.resolve())
            by_hand = (
                any(
                    part.startswith("stages.") and part != SERVER for part in command_words(process)
                )
                and Path(process.cwd()) == root.resolve()
            )
        except (psutil.Error, OSError):
            continue
        if (by_dvc or by_hand) and process.pid != os.getpid():
            writers.append(process)
    return writers


def _end_stage(record: Path) -> str:
    return f"ended {', '.join(map(str, end_stages({record})))}"


def _end(processes: list[psutil.Process]) -> str:
    end_processes(processes)
    return f"ended {', '.join(str(process.pid) for process in processes)}"


def _remove(root: Path, paths: list[Path]) -> str:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return f"removed {', '.join(os.path.relpath(path, root) for path in paths)}"
