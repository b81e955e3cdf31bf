"""Files of a folder, listed without following links or opening anything but regular files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.corpus.archives.archive import DamagedMemberError, Member

_SUFFIXES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
_KINDS: Final = {stat.S_IFLNK: "a link", stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a pipe"}


def list_folder(root: Path, most: int) -> list[Member]:
    """All files below `root`, each with its path from there; no more than `most` + 1.

    InputError for a folder that cannot be listed.
    """
    members: list[Member] = []
    for member in _walk(root):
        members.append(member)
        if len(members) > most:
            break
    return members


def archives_in(files: Iterable[Member]) -> list[Member]:
    """Those that lie at the top and are archives by their name, sorted."""
    archives = [
        member
        for member in files
        if "/" not in member.name and not member.refused and member.name.lower().endswith(_SUFFIXES)
    ]
    return sorted(archives, key=lambda member: member.name)


def _walk(root: Path) -> Iterator[Member]:
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{name}/")
                    else:
                        yield _member(root, name, entry.stat(follow_symlinks=False))
        except PermissionError as error:
            raise InputError(
                f"{root / folder} may not be read: give yourself the right to (`chmod -R u+rX"
                f" {root}`)"
            ) from error


def _member(root: Path, name: str, info: os.stat_result) -> Member:
    kind = stat.S_IFMT(info.st_mode)
    refused = None if kind == stat.S_IFREG else _KINDS.get(kind, "a device file")
    mark = f"file {name} {info.st_size} {info.st_mtime_ns} {info.st_ino}"
    load = partial(_load, root, name, info.st_size)
    return Member(root, name, info.st_size, info.st_size, 0, 0, False, refused, mark, load)


def _load(root: Path, name: str, size: int) -> bytes:
    path = root / name
    try:
        # it was a regular file when it was listed: no link or pipe that has taken its place is
        # opened
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError as error:
        raise InputError(
            f"{path} may not be read: give yourself the right to (`chmod u+r`)"
        ) from error
    except OSError as error:
        raise DamagedMemberError(root, name, error.strerror or str(error)) from error
    with open(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedMemberError(root, name, "it is no longer a regular file")
        content = handle.read(size + 1)
    if len(content) != size:
        raise DamagedMemberError(
            root, name, f"it had {size} bytes when it was listed, and has not now"
        )
    return content
