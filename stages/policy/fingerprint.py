"""Fingerprints of interruptible work: saved state is only resumed under the same one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def fingerprint(facts: dict[str, Any]) -> str:
    """A name for all that decides a result."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def files_hash(paths: Sequence[Path]) -> str:
    """One hash of the names and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def prepare_state_folder(folder: Path) -> None:
    """Create the state folder of a fingerprint; states of other settings beside it are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other.is_dir() and other.name != folder.name:
            shutil.rmtree(other)
