"""Fingerprints of interruptible work: saved state is resumed only under the same fingerprint."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def fingerprint(inputs: dict[str, Any]) -> str:
    """Short hash of everything that decides a result, given as JSON values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def files_hash(paths: Sequence[Path]) -> str:
    """One hash of the names (without folders), sizes and contents of files, in any order."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def prepare_state_folder(folder: Path) -> None:
    """Create a folder named by a fingerprint; its siblings, of other fingerprints, are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other.is_dir() and other.name != folder.name:
            shutil.rmtree(other)
