"""Safetensors on disk: is all of a checkpoint there. No torch is needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

WEIGHTS: Final = "*.safetensors"
ORIGIN: Final = "base_model.json"
"""In the folder of a policy: source, commit, licence and hashes of the base it comes from."""
INDEX: Final = "model.safetensors.index.json"
"""Which shard holds which tensor, where there are several."""


def missing_parts(folder: Path) -> list[str]:
    """Missing or truncated weight files of a folder, in words.

    Empty if the weights are complete.
    """
    names = sorted(path.name for path in folder.glob(WEIGHTS))
    if (folder / INDEX).is_file():
        try:
            listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(listed.values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            return [f"{INDEX} is no index of weights"]
    if not names:
        return [f"no {WEIGHTS}"]
    return [problem for name in names if (problem := _problem(folder / name))]


def hashes(folder: Path) -> dict[str, str]:
    """Name -> sha256 of each file of weights."""
    found = {}
    for path in sorted(folder.glob(WEIGHTS)):
        with path.open("rb") as handle:
            found[path.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


def _problem(path: Path) -> str | None:
    """Compare a safetensors file's size with its header: 8 bytes, the header, the tensors."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        try:
            header = json.loads(handle.read(length)) if 0 < length <= size else None
            ends = (
                [
                    entry["data_offsets"][1]
                    for name, entry in header.items()
                    if name != "__metadata__"
                ]
                if header
                else None
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            ends = None
    if ends is None:
        return f"{path.name} is no safetensors file, or the beginning of one"
    told = 8 + length + max(ends, default=0)
    return None if size == told else f"{path.name} has {size} bytes instead of {told}"
