"""Safety of archive members: portable, unambiguous names inside the corpus; sizes within limits.

One unsafe member refuses the whole source, before anything is read: whoever planted one may have
planted others. A member that is merely damaged is no danger; reading it raises an error
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
from stages.corpus.dataset.paths import MAX_NAME_BYTES, has_long_name, unsafe_path
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError

MIB: Final = 2**20
_MAX_PATH: Final = 1024
"""Bytes of a path that every supported system allows."""
_FREE_RATIO: Final = 16 * MIB
"""Bytes that may be unpacked from next to nothing: an all-black image is no bomb."""


def check_members(path: Path, members: Iterable[Member], limits: CorpusLimits) -> dict[str, Member]:
    """The files among `members` by normalized name.

    Raises RefusedDataError, with the remedy, at the first unsafe member.
    """
    files: dict[str, Member] = {}
    name_of_key: dict[str, str] = {}
    total = 0
    for count, member in enumerate(members, start=1):
        total += member.size
        if count > limits.max_members:
            raise _over_limit(path, f"more than {limits.max_members} members", "max_members")
        if total > limits.max_total_mb * MIB:
            what = f"more than {limits.max_total_mb} MiB unpacked, up to member {member.name!a}"
            raise _over_limit(path, what, "max_total_mb")
        name = posixpath.normpath(member.name)
        if why := member.refusal or unsafe_path(member.name) or _too_long(name):
            raise _refused(member, why)
        if member.is_folder:
            continue
        _check_size(path, member, limits)
        key = name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()
        if other := name_of_key.get(key):
            raise _refused(member, _collision(member, files[other], is_equal=name == other))
        files[name] = member
        name_of_key[key] = name
    _check_no_file_is_a_folder(path, files)
    return files


def check_growth(path: Path, unpacked: int, packed: int, limits: CorpusLimits) -> None:
    """Raise RefusedDataError if a stream exceeds its limits.

    `packed` and `unpacked`: bytes read and produced until now.
    """
    if unpacked > limits.max_total_mb * MIB:
        raise _over_limit(path, f"more than {limits.max_total_mb} MiB unpacked", "max_total_mb")
    if unpacked > _FREE_RATIO + packed * limits.max_ratio:
        what = f"more than {limits.max_ratio} bytes unpacked per byte"
        raise _over_limit(path, what, "max_ratio")


def _check_size(path: Path, member: Member, limits: CorpusLimits) -> None:
    size = max(member.size, member.packed_size)
    if size > limits.max_member_mb * MIB:
        excess = f"has {size / MIB:.0f} MiB, more than {limits.max_member_mb} MiB"
        raise _over_limit(path, f"member {member.name!r} {excess}", "max_member_mb")
    if member.size > _FREE_RATIO + member.packed_size * limits.max_ratio:
        growth = f"would grow from {member.packed_size} to {member.size} bytes"
        what = f"member {member.name!r} {growth}, more than {limits.max_ratio} times as many"
        raise _over_limit(path, what, "max_ratio")


def _over_limit(path: Path, what: str, limit: str) -> RefusedDataError:
    return RefusedDataError(
        f"{path}: {what}: exceeds corpus.limits.{limit} (possible decompression bomb): remove it,"
        " or raise the limit in params.yaml if you trust it",
        CorpusFault.LIMIT,
    )


def _refused(member: Member, why: str) -> RefusedDataError:
    return RefusedDataError(
        f"{member.source}: member {member.name!a} is refused: {why}; create it again without it",
        CorpusFault.UNSAFE_MEMBER,
    )


def _too_long(name: str) -> str | None:
    # a character takes at most 4 bytes: most names need no encoding
    if len(name) * 4 > _MAX_PATH and len(name.encode()) > _MAX_PATH:
        return f"a path longer than {_MAX_PATH} bytes"
    return f"a name longer than {MAX_NAME_BYTES} bytes" if has_long_name(name) else None


def _collision(member: Member, other: Member, is_equal: bool) -> str:
    where = "" if other.source == member.source else f" in {other.source.name}"
    if is_equal:
        return f"a duplicate name{where}"
    return (
        f"a name that other systems cannot distinguish from {other.name!a}{where} (upper and lower"
        " case, or the same letter encoded in two ways)"
    )


def _check_no_file_is_a_folder(path: Path, files: dict[str, Member]) -> None:
    folders = {name.rpartition("/")[0] for name in files}
    while parents := {name.rpartition("/")[0] for name in folders} - folders:
        folders |= parents
    if both := sorted(folders & files.keys()):
        raise RefusedDataError(
            f"{path}: member {both[0]!r} is a file and a folder at once; create the archive again",
            CorpusFault.UNSAFE_MEMBER,
        )
