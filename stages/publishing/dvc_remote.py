"""Publish to a DVC remote: published/<checkpoint>, pinned by a .dvc file for git.

`dvc get REPOSITORY published/<checkpoint>` then downloads it anywhere. A re-run after an
interruption pushes only the missing files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.core.outputs import atomic_directory
from stages.core.services.secrets import masked
from stages.publishing.bundle import Bundle

PUBLISHED: Final = Path("published")


def check_remote(remote: str) -> None:
    """InputError, with the configured remotes, if DVC has none of this name."""
    known = [line.split()[0] for line in _dvc("remote", "list").splitlines() if line.strip()]
    if remote not in known:
        raise InputError(
            f"DVC has no remote {remote!r} (configured: {', '.join(known) or 'none'}): `dvc remote"
            f" add {remote} s3://...` (or ssh, gs, azure, a folder)"
        )


def push(bundle: Bundle, remote: str) -> Path:
    """Link the files into published/<checkpoint>, `dvc add` and push them; the .dvc file.

    InputError, with DVC's message, if a step fails.
    """
    check_remote(remote)
    target = PUBLISHED / bundle.checkpoint
    with atomic_directory(target) as folder:
        for item in bundle.items:
            path = folder / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(item.content, bytes):
                path.write_bytes(item.content)
            else:
                _link(item.content.resolve(), path)
    _dvc("add", "--quiet", str(target))
    pin = target.with_name(f"{target.name}.dvc")
    _dvc("push", "--quiet", "--remote", remote, str(pin))
    return pin


def _link(source: Path, path: Path) -> None:
    """Hard-link a file to save space, or copy it where links are impossible."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def _dvc(*arguments: str) -> str:
    process = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if process.returncode:
        message = masked(" ".join((process.stderr or process.stdout).split()))[-500:]
        raise InputError(
            f"`dvc {' '.join(arguments)}` failed: {message}. Fix it and re-run the same command:"
            " it pushes only the missing files"
        )
    return process.stdout
