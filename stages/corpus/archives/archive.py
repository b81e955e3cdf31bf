"""A raw archive (zip or uncompressed tar): its members, each readable in place from any thread.

Nothing is ever unpacked to a path that an archive names: members are read into memory, one by one,
by their position in the file. What may stand in an archive at all is said in
stages/corpus/archives/safety.py, what a corpus is in stages/corpus/archives/source.py.
"""

from __future__ import annotations

import bz2
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from stages.corpus.dataset.zip_header import HEADER_SIZE, find_content
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError

_AGAIN: Final = "fetch it again, or make it again from the corpus's folder"
_ZIP_DAMAGE: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    UnicodeDecodeError,
    struct.error,
    OverflowError,
)
# ValueError: what tarfile says of a size or a list of holes that is no number
_TAR_DAMAGE: Final = (tarfile.TarError, ValueError, RecursionError, OverflowError)
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_LARGEST_HEADER: Final = 2**20
"""Bytes. A tar keeps long names in blocks of their own, as long as it says they are."""


class DamagedMemberError(RefusedDataError):
    """A file of the corpus whose bytes cannot be had; the others can.

    `name` is the file's, `why` the reason alone.
    """

    def __init__(self, path: Path, name: str, why: str) -> None:
        super().__init__(
            f"{path}: member {name!r} cannot be read ({why}): it may be truncated or damaged;"
            f" {_AGAIN}"
        )
        self.name, self.why = name, why


class _DamageError(Exception):
    """Why the bytes of a member cannot be had."""


class _SizeMismatchError(Exception):
    """What is in a member that claims to be smaller: no damage does that."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder of a source, as the source lists it.

    `size` and `packed` are its bytes unpacked and as they lie there, `end - position` what it takes
    of the container's file (0 in a folder); `refused` says why it may not be there at all. `mark`
    is what the source itself says of the content, so that another content would have another mark;
    empty if it says nothing. `load` reads the content: whole, or DamagedMemberError.
    """

    source: Path
    name: str
    size: int
    packed: int
    position: int
    end: int
    folder: bool
    refused: str | None
    mark: str
    load: Callable[[], bytes]


def is_zip(path: Path) -> bool:
    """Whether the first bytes are a zip's; zipfile would also accept a tar that ends with a zip."""
    with path.open("rb") as handle:
        return handle.read(2) == b"PK"


@contextmanager
def open_zip(path: Path) -> Iterator[list[Member]]:
    """The members of a zip, in the order of their bytes; they can be read until this is left.

    RefusedDataError if it is damaged.
    """
    with path.open("rb") as handle:
        yield _zip_members(path, handle)


@contextmanager
def open_tar(path: Path, called: Path) -> Iterator[list[Member]]:
    """The members of an uncompressed tar; they can be read until this is left.

    RefusedDataError if it is damaged.

    `called`: the archive that errors name, of which `path` may be an uncompressed copy.
    """
    with path.open("rb") as handle:
        with damage_explained(called, _TAR_DAMAGE):
            members = list(_tar_members(called, handle))
        yield members


@contextmanager
def damage_explained(path: Path, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what a library raises over a damaged container into a RefusedDataError that names it."""
    try:
        yield
    except kinds as error:
        why = f"{error or type(error).__name__}"
        raise RefusedDataError(
            f"{path} is not a complete zip, tar, tar.gz or tar.zst ({why}): it may be truncated or"
            f" damaged; {_AGAIN}"
        ) from error


def _zip_members(path: Path, handle: IO[bytes]) -> list[Member]:
    """All members of a zip, converted one by one: ZipInfo takes several times the memory."""
    with damage_explained(path, _ZIP_DAMAGE), zipfile.ZipFile(handle) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        end = archive.start_dir
    del archive
    members = []
    while (
        infos
    ):  # from behind: a member ends before the next begins, or where the list of members does
        info = infos.pop()
        members.append(_zip_member(path, handle.fileno(), info, end))
        end = info.header_offset
    members.reverse()
    return members


def _zip_member(path: Path, descriptor: int, info: zipfile.ZipInfo, end: int) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 when the zip was not made on a Unix
    refused = "an encrypted file" if info.flag_bits & 0x1 else None
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        refused = "a link" if kind == stat.S_IFLNK else "a device file"
    elif info.compress_type not in _METHODS:
        refused = (
            f"packed by method {info.compress_type}, of which only 0 (stored), 8 (deflate) and 12"
            " (bzip2) are read"
        )
    if info.header_offset < 0:
        refused = refused or "a place before the beginning of the file"
    # from the first byte of its header to the last of its content, at the least
    least = info.header_offset + HEADER_SIZE + len(info.orig_filename) + info.compress_size
    if least > end:
        refused = refused or "bytes that another member or the list of members has, too"
    name = _zip_name(info)
    mark = f"zip {name} {info.file_size} {info.CRC:08x}"
    utf8, sizes = bool(info.flag_bits & 0x800), (info.compress_size, info.file_size)
    packed = _Packed(
        path,
        name,
        descriptor,
        info.header_offset,
        info.orig_filename,
        utf8,
        info.compress_type,
        *sizes,
        info.CRC,
    )
    return Member(
        path,
        name,
        *sizes[::-1],
        info.header_offset,
        least,
        name.endswith("/"),
        refused,
        mark,
        packed.load,
    )


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name, with a surrogate in it if it is not UTF-8.

    Some zips, those of macOS too, hold UTF-8 without saying so.
    """
    if info.flag_bits & 0x800 or info.orig_filename.isascii():
        return info.orig_filename
    return info.orig_filename.encode("cp437").decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class _Packed:
    """What it takes to read a member of a zip.

    `listed` is its name as the list of members has it.
    """

    path: Path
    name: str
    descriptor: int
    position: int
    listed: str
    utf8: bool
    method: int
    packed: int
    size: int
    crc: int

    def load(self) -> bytes:
        """The content."""
        return _load(self.path, self.name, self._read)

    def _read(self) -> bytes:
        """By positional reads: many threads share the descriptor."""
        name = self.listed.encode("utf-8" if self.utf8 else "cp437")
        try:
            start = find_content(self.descriptor, self.position, name)
        except zipfile.BadZipFile as error:
            raise _DamageError(str(error)) from error
        content = _unpack(_pread(self.descriptor, self.packed, start), self.method, self.size)
        if zlib.crc32(content) != self.crc:
            raise _DamageError("bad CRC-32")
        return content


def _unpack(packed: bytes, method: int, size: int) -> bytes:
    """Never more than one byte beyond `size`, whatever the bytes would unpack to."""
    try:
        if method == zipfile.ZIP_STORED:
            content = packed
        elif method == zipfile.ZIP_BZIP2:
            content = bz2.BZ2Decompressor().decompress(packed, size + 1)
        else:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    except (zlib.error, OSError, EOFError) as error:
        raise _DamageError(str(error)) from error
    if len(content) > size:
        raise _SizeMismatchError(f"it unpacks to more than the {size} bytes that it claims")
    if len(content) < size:
        raise _DamageError(f"{len(content)} bytes of the {size} that it claims")
    return content


def _pread(descriptor: int, size: int, position: int) -> bytes:
    """`size` bytes, in one piece: a single read may give less, and never gives more than 2 GiB."""
    parts = []
    while size and (part := os.pread(descriptor, min(size, 2**30), position)):
        parts.append(part)
        size, position = size - len(part), position + len(part)
    if size:
        raise _DamageError(f"{size} bytes are missing at its end")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _tar_members(path: Path, handle: IO[bytes]) -> Iterator[Member]:
    headers: Any = _Headers(handle)
    archive: Any = tarfile.open(fileobj=headers, mode="r:")  # noqa: SIM115  closed below
    with archive:
        count, at = 0, -1
        while (info := archive.next()) is not None:
            if info.size < 0 or archive.offset <= at:
                raise tarfile.ReadError(f"member {info.name!a} ends before it begins")
            count, at = count + 1, archive.offset
            yield _tar_member(path, handle.fileno(), info)
            archive.members = []  # it would keep them all
        # tarfile takes a damaged header for the end: the true end is a block of zeros
        handle.seek(archive.offset)
        if handle.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark after {count} members")


def _tar_member(path: Path, descriptor: int, info: tarfile.TarInfo) -> Member:
    refused = None
    if info.issym() or info.islnk():
        refused = "a link"
    elif info.issparse():
        refused = "a file with holes (make the archive without --sparse)"
    elif not (info.isreg() or info.isdir()):
        refused = "a device file"
    load = partial(_load, path, info.name, partial(_pread, descriptor, info.size, info.offset_data))
    end = info.offset_data + info.size
    return Member(
        path,
        info.name,
        info.size,
        info.size,
        info.offset_data,
        end,
        info.isdir(),
        refused,
        "",
        load,
    )


class _Headers:
    """A tar's file as tarfile reads it to list members, with header blocks limited in size."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.seek, self.tell = handle.seek, handle.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._handle.read(size)


def _load(path: Path, name: str, read: Callable[[], Any]) -> bytes:
    try:
        content: bytes = read()
    except _DamageError as error:
        raise DamagedMemberError(path, name, str(error)) from error
    except _SizeMismatchError as error:
        why = f"{path}: member {name!r} is refused: {error}: a bomb; make the archive again"
        raise RefusedDataError(why, CorpusFault.UNSAFE_MEMBER) from error
    return content
