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
from flows.doctor.processes import guarded_record, say
from flows.dvc_api.client import RECORDS, end_processes, end_stages, orphans, processes_of
from flows.prefect_api.client import left_servers

_NEVER: Final = {".git", ".dvc", ".venv", "node_modules", "__pycache__"}
"""Folders in which no stage writes."""
_STILL: Final = 600.0
"""Seconds for which a file has not grown that nobody writes any more."""


def orphaned_processes(root: Path) -> list[Finding]:
    """Processes of stages whose guard is gone."""
    stages: dict[Path, list[psutil.Process]] = {}
    for process, record in orphans(root):
        stages.setdefault(Path(record), []).append(process)
    return [
        Finding(
            "orphans",
            "problem",
            f"{record.stem}: {', '.join(map(say, processes))} goes on though its guard is gone: "
            "nobody waits for it, and its slot is given away",
            f"end it: kill -INT {' '.join(str(process.pid) for process in processes)}; the next"
            " flow does so too",
            partial(_end_stage, record),
        )
        for record, processes in stages.items()
    ] or [Finding("orphans", "ok", "no process of a stage is without its flow")]


def temporary_servers(root: Path) -> list[Finding]:
    """Temporary Prefect servers of any workspace that outlived the flow that started them."""
    left = left_servers()
    if not left:
        return [Finding("temporary servers", "ok", "none is left of a flow that is gone")]
    what = (
        f"{', '.join(map(say, left))} goes on though the flow that brought it was killed: 200 MB of"
        " memory for nothing"
    )
    return [
        Finding(
            "temporary servers",
            "warning",
            what,
            "end it: --fix; the next flow does so too",
            partial(_end, left),
        )
    ]


def records(root: Path) -> list[Finding]:
    """Records of stages that run, of which none does."""
    guards = {record for process in psutil.process_iter() if (record := guarded_record(process))}
    left = [
        path
        for path in sorted((root / RECORDS).resolve().glob("*.pid"))
        if path not in guards and not processes_of(path)
    ]
    if not left:
        return [Finding("records", "ok", "none is left of a stage that is gone")]
    names = ", ".join(path.stem for path in left)
    return [
        Finding(
            "records",
            "warning",
            f"{RECORDS} says that {names} runs, which is not so: a guard was killed",
            "remove them: --fix",
            partial(_remove, root, left),
        )
    ]


def incomplete_outputs(root: Path) -> list[Finding]:
    """Outputs under their temporary name, which nobody writes any more."""
    left = sorted([*_incomplete(root), *_half_cached(root)])
    if not left:
        return [Finding("incomplete outputs", "ok", "none")]
    names = ", ".join(os.path.relpath(path, root) for path in left)
    if writers := _writers(root):
        return [
            Finding(
                "incomplete outputs",
                "ok",
                f"{names}: being written by {', '.join(map(say, writers))}",
            )
        ]
    return [
        Finding(
            "incomplete outputs",
            "warning",
            f"a killed stage left {names}: room is taken for nothing, and a folder that is an input"
            " seems to have changed",
            "remove them: --fix; a stage that runs again removes its own",
            partial(_remove, root, left),
        )
    ]


def _incomplete(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            if name.startswith(".") and name.endswith(
                ".incomplete"
            ):  # as stages.core.outputs names them
                yield Path(folder) / name
        names[:] = [
            name for name in names if name not in _NEVER and not name.endswith(".incomplete")
        ]


def _half_cached(root: Path) -> Iterator[Path]:
    """Half-written files in DVC's cache, of a kill or a full disk.

    `dvc gc` does not know their names.
    """
    # only where no other workspace writes, and nothing that a transfer started by hand may be at
    for path in (root / ".dvc" / "cache" / "files" / "md5").glob("**/.*.tmp"):
        if path.is_file() and time.time() - path.stat().st_mtime > _STILL:
            yield path


def _writers(root: Path) -> list[psutil.Process]:
    """Processes that may be writing an output here: children of DVC, and stages run by hand."""
    found = []
    for process in psutil.process_iter():
        try:
            by_dvc = process.environ().get("DVC_ROOT") == str(root.resolve())
            by_hand = (
                any(part.startswith("stages.") for part in process.cmdline())
                and Path(process.cwd()) == root.resolve()
            )
        except (psutil.Error, OSError):
            continue
        if (by_dvc or by_hand) and process.pid != os.getpid():
            found.append(process)
    return found


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
