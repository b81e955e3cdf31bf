"""Disk space: what is free, what files take, and which disks are too small for what is to come."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Shortage(NamedTuple):
    """A disk that is too small: the folders that lie on it, and the bytes needed and free."""

    folders: tuple[Path, ...]
    needed: int
    free: int


def find_shortages(needed: Mapping[Path, int], reserve: int = 0) -> list[Shortage]:
    """Disks without room for the bytes to be written below these folders.

    Folders need not exist yet. `reserve`: bytes to leave free on each disk.
    """
    disks: defaultdict[int, list[Path]] = defaultdict(list)
    for folder in needed:
        disks[disk_of(folder)].append(folder)
    shortages = []
    for folders in disks.values():
        total, free = sum(needed[folder] for folder in folders) + reserve, free_bytes(folders[0])
        if free < total:
            shortages.append(Shortage(tuple(folders), total, free))
    return shortages


def free_bytes(path: Path) -> int:
    """Bytes free on the disk on which a path is, or would be created."""
    return shutil.disk_usage(_existing(path)).free


def disk_of(path: Path) -> int:
    """Device number of the disk on which a path is, or would be created."""
    return _existing(path).stat().st_dev


def tree_size(path: Path) -> int | None:
    """Bytes of a file, or of all files in a folder, hard links once; None if it is missing."""
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        return None
    sizes: dict[tuple[int, int], int] = {}  # (device, inode) -> bytes
    folders = [str(path)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        info = entry.stat(follow_symlinks=False)
                        sizes.setdefault((info.st_dev, info.st_ino), info.st_size)
        except FileNotFoundError:  # deleted meanwhile
            continue
    return sum(sizes.values())


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())
