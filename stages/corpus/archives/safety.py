"""Safety of archive members: portable, unambiguous names inside the corpus; sizes within limits.

One bad member refuses the whole source, before any is read: who plants one may have planted others.
A member that is only damaged is no danger, and is found out when it is read
(stages/corpus/archives/archive.py).
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from stages.core.params import CorpusLimits
from stages.corpus.archives.archive import Member
from stages.corpus.dataset.paths import unsafe_path
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError

LONGEST_NAME: Final = 240
"""Bytes of one part of a path: file systems allow 255, and stages add a suffix."""
LONGEST_PATH: Final = 1024
"""Bytes of a path: as much as every system that stages run on allows."""
_FREE_RATIO: Final = 16 * 2**20
"""Bytes that may be unpacked from next to nothing: an all-black image is no bomb."""

MIB: Final = 2**20


def checked(path: Path, members: Iterable[Member], limits: CorpusLimits) -> dict[str, Member]:
    """The files among `members` by their normal name.

    RefusedDataError names the first that may not be there, and says what to do.
    """
    files: dict[str, Member] = {}
    keys: dict[str, str] = {}
    total = count = 0
    for member in members:
        count += 1
        total += member.size
        if count > limits.max_members:
            raise _over(path, f"more than {limits.max_members} members", "max_members")
        if total > limits.max_total_mb * MIB:
            raise _over(
                path,
                f"more than {limits.max_total_mb} MiB unpacked, up to member {member.name!a}",
                "max_total_mb",
            )
        name = posixpath.normpath(member.name)
        if why := member.refused or unsafe_path(member.name) or _too_long(name):
            raise _refused(member, why)
        if member.folder:
            continue
        _check_size(path, member, limits)
        key = name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()
        if other := keys.get(key):
            raise _refused(member, _same(member, files[other], name == other))
        files[name], keys[key] = member, name
    _refuse_files_with_files_inside(path, files)
    return files


def check_growth(path: Path, unpacked: int, packed: int, limits: CorpusLimits) -> None:
    """Raise RefusedDataError if a stream exceeds its limits.

    `packed` bytes read, `unpacked` produced.
    """
    if unpacked > limits.max_total_mb * MIB:
        raise _over(path, f"more than {limits.max_total_mb} MiB unpacked", "max_total_mb")
    if unpacked > _FREE_RATIO + packed * limits.max_ratio:
        raise _over(
            path, f"more than {limits.max_ratio} bytes unpacked from each of its own", "max_ratio"
        )


def _check_size(path: Path, member: Member, limits: CorpusLimits) -> None:
    if (most := max(member.size, member.packed)) > limits.max_member_mb * MIB:
        what = (
            f"member {member.name!r} has {most / MIB:.0f} MiB, more than {limits.max_member_mb} MiB"
        )
        raise _over(path, what, "max_member_mb")
    if member.size > _FREE_RATIO + member.packed * limits.max_ratio:
        grows = f"would grow from {member.packed} to {member.size} bytes"
        what = f"member {member.name!r} {grows}, more than {limits.max_ratio} times as many"
        raise _over(path, what, "max_ratio")


def _over(path: Path, what: str, limit: str) -> RefusedDataError:
    return RefusedDataError(
        f"{path}: {what}: exceeds corpus.limits.{limit} (possible decompression bomb): remove it,"
        " or raise the limit in params.yaml if you trust it",
        CorpusFault.LIMIT,
    )


def _refused(member: Member, why: str) -> RefusedDataError:
    message = f"{member.source}: member {member.name!a} is refused: {why}; make it again without"
    return RefusedDataError(message, CorpusFault.UNSAFE_MEMBER)


def _too_long(name: str) -> str | None:
    if len(name) > LONGEST_PATH // 4 and len(name.encode()) > LONGEST_PATH:
        return f"a path longer than {LONGEST_PATH} bytes"
    if len(name) > LONGEST_NAME // 4 and any(
        len(part.encode()) > LONGEST_NAME for part in name.split("/")
    ):
        return f"a name longer than {LONGEST_NAME} bytes"
    return None


def _same(member: Member, other: Member, exactly: bool) -> str:
    where = "" if other.source == member.source else f" in {other.source.name}"
    if exactly:
        return f"a name that stands{where} already" if where else "a duplicate name"
    return (
        f"a name that other systems cannot tell from {other.name!a}{where} (upper and lower case,"
        " or the same letter written in two ways)"
    )


def _refuse_files_with_files_inside(path: Path, files: dict[str, Member]) -> None:
    folders = {name.rpartition("/")[0] for name in files}
    while parents := {name.rpartition("/")[0] for name in folders} - folders:
        folders |= parents
    if both := sorted(folders & files.keys()):
        why = f"{path}: member {both[0]!r} is a file and a folder at once; make it again"
        raise RefusedDataError(why, CorpusFault.UNSAFE_MEMBER)
