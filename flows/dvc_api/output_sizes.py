"""Sizes of stage outputs, from dvc.lock or the disk, and the free space for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flows.dvc_api.graph import Stage
from flows.dvc_api.lock_file import read_locked_stages
from flows.dvc_api.repository import cache_folder
from stages.core.disk_space import free_bytes, tree_size
from stages.core.dvc_files import read_dvc_file
from stages.core.errors import InputError

OutputSizes = Mapping[str, Mapping[str, int]]
"""Stage that has run -> path of an output -> its size in bytes then."""


def read_output_sizes(root: Path) -> OutputSizes:
    """Output sizes in dvc.lock; empty if the file is missing. InputError if it is corrupt."""
    return {
        name: {out.path: out.size or 0 for out in stage.outs}
        for name, stage in read_locked_stages(root).items()
    }


def out_size(root: Path, stage: Stage, sizes: OutputSizes) -> int | None:
    """Bytes of a stage's outputs, of its last run or as they are now; None if any is unknown."""
    is_import = stage.name.endswith(".dvc")
    recorded = _pinned(root / stage.name) if is_import else sizes.get(stage.name, {})
    total = 0
    for out in stage.outs:
        size = recorded[out] if out in recorded else tree_size(root / out)
        if size is None:
            return None
        total += size
    return total


def free_space(root: Path) -> int:
    """Bytes free for the workspace and DVC's cache; the lower number if they are on two disks."""
    return min(free_bytes(path) for path in (root, cache_folder(root)))


def _pinned(path: Path) -> dict[str, int]:
    """Sizes that a .dvc file pins, by path from the root; empty if it cannot be read."""
    try:
        outs = read_dvc_file(path).outs
    except (OSError, InputError):
        return {}
    return {os.path.normpath(out.path): out.size for out in outs if out.size is not None}
