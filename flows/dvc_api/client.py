"""DVC's command line: run a command, and read which stages are stale.

Every call is `dvc --wait-for-lock`: without it, stages that start or end while another holds the
repository's lock fail, and hours of work can end unrecorded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.errors import InputError

STATUS_ATTEMPTS: Final = 3
"""How often `dvc status` is tried, as another DVC command may be writing a file that it reads."""
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
    """Stale stage -> reasons, from `dvc status`: without stages that only wait for a stale one."""
    status: dict[str, list[str | dict[str, Any]]] = json.loads(_status(root) or "{}")
    stale: dict[str, Reasons] = {}
    for name, reasons in status.items():
        merged: Reasons = {}
        for reason in reasons:
            merged |= {reason: {}} if isinstance(reason, str) else reason
        if name.endswith(layout.DATA_DVC.suffix):
            # a newer version of an import's source does not matter here: retraining handles it
            merged.pop("changed deps", None)
        if merged:
            stale[name] = merged
    return stale


def _status(root: Path) -> str:
    """What `dvc status` prints, tried a few times.

    It fails where another DVC command is writing .dvc/tmp/rwlock, which is not written atomically.
    """
    for _ in range(STATUS_ATTEMPTS - 1):
        try:
            return dvc(root, "status", "--json")
        except InputError:
            time.sleep(STATUS_PAUSE_S)
    return dvc(root, "status", "--json")


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
