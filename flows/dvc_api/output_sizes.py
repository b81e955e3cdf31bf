"""Sizes of outputs, from dvc.lock or the disk, and the free space for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flows.dvc_api.client import dvc
from flows.dvc_api.graph import Stage
from flows.dvc_api.lock_file import read_locked_stages
from stages.core.disk_space import free_bytes
from stages.core.dvc_files import read_dvc_file
from stages.core.errors import InputError

OutputSizes = Mapping[str, Mapping[str, int]]
"""Stage that has run -> path of an output -> its size in bytes then."""


def read_output_sizes(root: Path) -> OutputSizes:
    """Sizes of the outputs by dvc.lock; empty if there is none. InputError if it is damaged."""
    return {
        name: {out.path: out.size or 0 for out in stage.outs}
        for name, stage in read_locked_stages(root).items()
    }


def out_size(root: Path, stage: Stage, sizes: OutputSizes) -> int | None:
    """Bytes of a stage's outputs, of its last run or as they are now; None if any is unknown."""
    recorded = (
        _pinned(root / stage.name) if stage.name.endswith(".dvc") else sizes.get(stage.name, {})
    )
    found = [recorded.get(out) if out in recorded else tree_size(root / out) for out in stage.outs]
    known = [size for size in found if size is not None]
    return sum(known) if len(known) == len(found) else None


def tree_size(path: Path) -> int | None:
    """Bytes of a file, or of all files in a folder; None if there is neither.

    Hard links count once.
    """
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        return None
    seen, total, waiting = set[tuple[int, int]](), 0, [str(path)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        info = entry.stat(follow_symlinks=False)
                        if (info.st_dev, info.st_ino) not in seen:
                            seen.add((info.st_dev, info.st_ino))
                            total += info.st_size
        except FileNotFoundError:  # removed while it was counted
            continue
    return total


def free_space(root: Path) -> int:
    """Bytes free for the workspace and DVC's cache: of two disks, on the one that has less."""
    return min(free_bytes(path) for path in (root, cache_folder(root)))


def cache_folder(root: Path) -> Path:
    """Where DVC keeps what stages made."""
    return root / dvc(root, "cache", "dir").strip()


def _pinned(path: Path) -> dict[str, int]:
    """Outputs and sizes that a .dvc file pins, by path from the root; none if it cannot be read."""
    try:
        outs = read_dvc_file(path).outs
    except (OSError, InputError):
        return {}
    return {os.path.normpath(out.path): out.size for out in outs if out.size is not None}
