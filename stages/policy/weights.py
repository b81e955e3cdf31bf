"""Safetensors on disk: hashes, and whether a checkpoint is complete. Does not need torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

WEIGHTS: Final = "*.safetensors"
ORIGIN: Final = "base_model.json"
"""In a policy's folder: source, commit, licence and hashes of the base it comes from."""
INDEX: Final = "model.safetensors.index.json"
"""Which shard holds which tensor, if there are several shards."""


def missing_parts(folder: Path) -> list[str]:
    """Describe the weight files of a folder that are missing or truncated; empty if complete."""
    names = sorted(path.name for path in folder.glob(WEIGHTS))
    if (folder / INDEX).is_file():
        try:
            shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(map(str, shards.values())))
        except (ValueError, KeyError, AttributeError, TypeError):
            return [f"{INDEX} is not an index of weights"]
    if not names:
        return [f"no {WEIGHTS}"]
    return [problem for name in names if (problem := _problem(folder / name))]


def weight_hashes(folder: Path) -> dict[str, str]:
    """Name -> sha256 of each weight file."""
    result = {}
    for path in sorted(folder.glob(WEIGHTS)):
        with path.open("rb") as handle:
            result[path.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return result


def _problem(path: Path) -> str | None:
    """What is wrong with a weight file, or None: its size must be what its header implies."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    try:
        expected = _expected_size(path, size)
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{path.name} is not a safetensors file, or truncated"
    return None if size == expected else f"{path.name} has {size} bytes instead of {expected}"


def _expected_size(path: Path, size: int) -> int:
    """Layout: 8 bytes with the header's length, the header (JSON), the tensors.

    Raises ValueError, LookupError, TypeError or AttributeError if the header cannot be read.
    """
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 0 < length <= size:
            raise ValueError
        header: dict[str, Any] = json.loads(handle.read(length))
    if not header:
        raise ValueError
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + int(max(ends, default=0))
