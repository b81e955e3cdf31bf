"""DVC's command line: run a command. And which stages are stale, by DVC's objects.

Every command is `dvc --wait-for-lock`: without it, stages that start or end while another holds the
repository's lock fail, and hours of work can end unrecorded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from flows.dvc_api.repository import format_error, open_repository
from stages.core import layout
from stages.core.errors import InputError

STATUS_ATTEMPTS: Final = 3
"""How often the status is read, as another DVC command may be writing a file that it reads."""
STATUS_PAUSE_S: Final = 0.5
"""Seconds between two attempts."""


Reasons = dict[str, dict[str, str]]
"""Why a stage is stale: "changed deps", "changed outs" -> path -> "modified", "deleted", ..., and
"changed command" -> {}.
"""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with its Python's programs first in PATH and telemetry off."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return (
        os.environ
        | {"PATH": path, "DVC_NO_ANALYTICS": "1", "TOKENIZERS_PARALLELISM": "false"}
        | dict(extra or {})
    )


def dvc(root: Path, *arguments: str, inherit_fds: Iterable[int] = ()) -> str:
    """Run a DVC command; its standard output.

    `inherit_fds`: file descriptors that stay open in it, such as a lock's. InputError with DVC's
    message if it fails.
    """
    command = ["dvc", "--wait-for-lock", *arguments]
    process = subprocess.run(
        command,
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        pass_fds=tuple(inherit_fds),
    )
    if process.returncode:
        lines = [line for line in (process.stderr or process.stdout).splitlines() if line.strip()]
        message = "\n".join(lines)[-2000:]
        raise InputError(
            f"`{' '.join(command)}` failed with exit code {process.returncode}: {message}"
        )
    return process.stdout


def read_status(root: Path) -> dict[str, Reasons]:
    """Stale stage -> reasons, as `dvc status` has them: without what only waits for a stale stage.

    In this process, as a DVC process for each status takes longer to start than to answer; call it
    from one thread at a time. InputError with DVC's message if it fails.
    """
    stale: dict[str, Reasons] = {}
    for name, reasons in _status(root).items():
        merged: Reasons = {}
        for reason in reasons:
            merged |= {reason: {}} if isinstance(reason, str) else reason
        if name.endswith(layout.DATA_DVC.suffix):
            # a newer version of an import's source does not matter here: retraining handles it
            merged.pop("changed deps", None)
        if merged:
            stale[name] = merged
    return stale


def _status(root: Path) -> dict[str, list[str | dict[str, Any]]]:
    """What `dvc status` returns, tried a few times.

    It fails where another DVC command is writing .dvc/tmp/rwlock, which is not written atomically.
    """
    for attempt in range(1, STATUS_ATTEMPTS + 1):
        try:
            with open_repository(root) as repo:
                # not whether imports have updates: that would query their sources
                status: dict[str, Any] = repo.status(check_updates=False)
                return status
        except Exception as error:  # whatever a file or a remote of the workspace makes DVC raise
            if attempt == STATUS_ATTEMPTS:
                raise InputError(
                    f"the status of {root} cannot be read: {format_error(error)}. `dvc status`"
                    " shows where"
                ) from error
            time.sleep(STATUS_PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


def format_reasons(reasons: Reasons) -> str:
    """Reasons in one line: "models/base modified; grpo.beta modified; stages/train.py modified"."""
    parts = []
    for kind, changes in reasons.items():
        if not changes:
            parts.append(kind)
        prefix = "output " if kind == "changed outs" else ""
        for path, change in changes.items():
            if isinstance(change, dict):  # parameters: file -> key -> change
                parts += [f"{key} {each}" for key, each in change.items()]
            else:
                parts.append(f"{prefix}{path} {change}")
    return "; ".join(parts)
