"""Files of a folder, listed without following links or opening anything but regular files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.corpus.archives.archive import DamagedMemberError, Member

ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
"""Lower-case suffixes of the archives that can be opened."""
_KINDS: Final = {stat.S_IFLNK: "a link", stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a pipe"}


def list_folder(root: Path, max_members: int) -> list[Member]:
    """All files below `root`, named by their relative path; stops at `max_members` + 1.

    Raises InputError for a folder that cannot be listed.
    """
    return list(islice(_walk(root), max_members + 1))


def top_level_archives(files: Iterable[Member]) -> list[Member]:
    """Files at the top of the folder whose suffix is that of an archive, sorted by name."""
    archives = [
        file
        for file in files
        if "/" not in file.name and not file.refusal and file.name.lower().endswith(ARCHIVES)
    ]
    return sorted(archives, key=lambda file: file.name)


def _walk(root: Path) -> Iterator[Member]:
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = f"{folder}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{name}/")
                    else:
                        yield _member(root, name, entry.stat(follow_symlinks=False))
        except PermissionError as error:
            raise InputError(
                f"no permission to read {root / folder}: run `chmod -R u+rX {root}`"
            ) from error


def _member(root: Path, name: str, info: os.stat_result) -> Member:
    kind = stat.S_IFMT(info.st_mode)
    return Member(
        source=root,
        name=name,
        size=info.st_size,
        packed_size=info.st_size,
        position=0,
        is_folder=False,
        refusal=None if kind == stat.S_IFREG else _KINDS.get(kind, "a device file"),
        fingerprint=f"file {name} {info.st_size} {info.st_mtime_ns} {info.st_ino}",
        load=partial(_load, root, name, info.st_size),
    )


def _load(root: Path, name: str, size: int) -> bytes:
    path = root / name
    try:
        # regular when it was listed: a link or pipe that has replaced it must not be opened
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError as error:
        raise InputError(f"no permission to read {path}: run `chmod u+r {path}`") from error
    except OSError as error:
        raise DamagedMemberError(root, name, error.strerror or str(error)) from error
    with open(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedMemberError(root, name, "it is no longer a regular file")
        content = handle.read(size + 1)
    if len(content) != size:
        raise DamagedMemberError(root, name, f"its size has changed from {size} bytes")
    return content
