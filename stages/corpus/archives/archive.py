"""Members of a zip or an uncompressed tar, each readable in place from any thread.

Nothing is ever extracted to a path that an archive names: members are read into memory one by one,
by their position in the file. Which members are allowed is decided in
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

_REMEDY: Final = "download it again, or create it again from the corpus's folder"
_ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    UnicodeDecodeError,
    struct.error,
    OverflowError,
)
# tarfile raises ValueError for a size or a sparse map that is not a number
_TAR_ERRORS: Final = (tarfile.TarError, ValueError, RecursionError, OverflowError)
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_MAX_HEADER: Final = 2**20
"""Bytes. A tar stores long names in header blocks of their own, of a size that it declares."""
_MAX_READ: Final = 2**30
"""Bytes of one system call: Linux never returns more than 2 GiB."""


class DamagedMemberError(RefusedDataError):
    """A file of the corpus that cannot be read, while others can: its `name`, and `why`."""

    def __init__(self, path: Path, name: str, why: str) -> None:
        super().__init__(
            f"{path}: member {name!r} cannot be read ({why}): it may be truncated or damaged;"
            f" {_REMEDY}"
        )
        self.name = name
        self.why = why


class _DamageError(Exception):
    """Why the bytes of a member cannot be read."""


class _SizeMismatchError(Exception):
    """Member decompresses to more than its declared size.

    Corruption cannot cause this, so it is treated as a bomb.
    """


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder of a source, as the source lists it.

    Attributes:
        source: The archive or folder that holds it.
        name: Path inside the source.
        size: Declared bytes of the content.
        packed_size: Bytes that it takes in the source, compressed or not.
        position: Where it begins in the archive's file; 0 in a folder.
        is_folder: A folder has no content.
        refusal: Why a corpus may not contain it; None if it may.
        fingerprint: Changes with the content, without reading it; empty if the source has none.
        load: Reads the whole content; raises DamagedMemberError.
    """

    source: Path
    name: str
    size: int
    packed_size: int
    position: int
    is_folder: bool
    refusal: str | None
    fingerprint: str
    load: Callable[[], bytes]


def is_zip(path: Path) -> bool:
    """Whether the file begins like a zip; zipfile would also accept a tar that ends with a zip."""
    with path.open("rb") as handle:
        return handle.read(2) == b"PK"


@contextmanager
def open_zip(path: Path) -> Iterator[list[Member]]:
    """Members of a zip by position, readable inside the context.

    Raises RefusedDataError if it is damaged.
    """
    with path.open("rb") as handle:
        yield _zip_members(path, handle)


@contextmanager
def open_tar(path: Path, archive: Path) -> Iterator[list[Member]]:
    """Members of an uncompressed tar, readable inside the context.

    `archive` is the path that errors name; `path` may be an uncompressed copy of it. Raises
    RefusedDataError if it is damaged.
    """
    with path.open("rb") as handle:
        with explain_damage(archive, _TAR_ERRORS):
            members = list(_tar_members(archive, handle))
        yield members


@contextmanager
def explain_damage(path: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn a library's `errors` about a damaged archive into a RefusedDataError that names it."""
    try:
        yield
    except errors as error:
        why = str(error) or type(error).__name__
        raise RefusedDataError(
            f"{path} is not a complete zip, tar, tar.gz or tar.zst ({why}): it may be truncated or"
            f" damaged; {_REMEDY}"
        ) from error


def _zip_members(path: Path, handle: IO[bytes]) -> list[Member]:
    with explain_damage(path, _ZIP_ERRORS), zipfile.ZipFile(handle) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        end = archive.start_dir
    # a ZipInfo takes several times the memory of a Member: free each as it is converted
    del archive
    members = []
    # backwards: a member must end before the next one begins, the last before the central directory
    while infos:
        info = infos.pop()
        members.append(_zip_member(path, handle.fileno(), info, end))
        end = info.header_offset
    members.reverse()
    return members


def _zip_member(path: Path, descriptor: int, info: zipfile.ZipInfo, limit: int) -> Member:
    """A member of a zip that has to end at position `limit`."""
    name = _zip_name(info)
    content = _ZipContent(
        path=path,
        name=name,
        descriptor=descriptor,
        position=info.header_offset,
        listed_name=info.orig_filename,
        is_utf8=_declares_utf8(info),
        method=info.compress_type,
        packed_size=info.compress_size,
        size=info.file_size,
        crc=info.CRC,
    )
    return Member(
        source=path,
        name=name,
        size=info.file_size,
        packed_size=info.compress_size,
        position=info.header_offset,
        is_folder=name.endswith("/"),
        refusal=_zip_refusal(info, limit),
        fingerprint=f"zip {name} {info.file_size} {info.CRC:08x}",
        load=content.load,
    )


def _zip_refusal(info: zipfile.ZipInfo, limit: int) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the zip was not created on Unix
    if kind == stat.S_IFLNK:
        return "a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a device file"
    if info.compress_type not in _METHODS:
        return (
            f"compressed by method {info.compress_type}; only 0 (stored), 8 (deflate) and 12"
            " (bzip2) are supported"
        )
    if info.flag_bits & 0x1:
        return "an encrypted file"
    if info.header_offset < 0:
        return "a position before the beginning of the file"
    # the extra field in the local header may add to this
    min_size = HEADER_SIZE + len(info.orig_filename) + info.compress_size
    if info.header_offset + min_size > limit:
        return "it overlaps another member or the central directory"
    return None


def _declares_utf8(info: zipfile.ZipInfo) -> bool:
    return bool(info.flag_bits & 0x800)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name, with a surrogate in it if it is not UTF-8.

    Some zips, including those of macOS, hold UTF-8 without declaring it.
    """
    if _declares_utf8(info) or info.orig_filename.isascii():
        return info.orig_filename
    return info.orig_filename.encode("cp437").decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class _ZipContent:
    """Reader of one zip member; `listed_name` is its name as the central directory has it."""

    path: Path
    name: str
    descriptor: int
    position: int
    listed_name: str
    is_utf8: bool
    method: int
    packed_size: int
    size: int
    crc: int

    def load(self) -> bytes:
        """The content."""
        return _load(self.path, self.name, self._read)

    def _read(self) -> bytes:
        raw_name = self.listed_name.encode("utf-8" if self.is_utf8 else "cp437")
        try:
            start = find_content(self.descriptor, self.position, raw_name)
        except zipfile.BadZipFile as error:
            raise _DamageError(str(error)) from error
        packed = _pread(self.descriptor, self.packed_size, start)
        content = _decompress(packed, self.method, self.size)
        if zlib.crc32(content) != self.crc:
            raise _DamageError("bad CRC-32")
        return content


def _decompress(packed: bytes, method: int, size: int) -> bytes:
    """Content of the declared size; never produces more than one byte beyond it."""
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
        raise _SizeMismatchError(f"it decompresses to more than its declared {size} bytes")
    if len(content) < size:
        raise _DamageError(f"{len(content)} bytes of the declared {size}")
    return content


def _pread(descriptor: int, size: int, position: int) -> bytes:
    """`size` bytes at `position`; positional, so that threads can share the descriptor."""
    parts = []
    while size and (part := os.pread(descriptor, min(size, _MAX_READ), position)):
        parts.append(part)
        size -= len(part)
        position += len(part)
    if size:
        raise _DamageError(f"{size} bytes are missing at its end")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _tar_members(path: Path, handle: IO[bytes]) -> Iterator[Member]:
    headers: Any = _TarHeaders(handle)
    archive: Any = tarfile.open(fileobj=headers, mode="r:")  # noqa: SIM115  closed below
    with archive:
        count = 0
        previous_end = -1
        while (info := archive.next()) is not None:
            # a negative size would lead tarfile back to the same header for ever
            if info.size < 0 or archive.offset <= previous_end:
                raise tarfile.ReadError(f"member {info.name!a} ends before it begins")
            count += 1
            previous_end = archive.offset
            yield _tar_member(path, handle.fileno(), info)
            archive.members = []  # tarfile would hold them all in memory
        # tarfile takes a damaged header for the end: the true end is a block of zeros
        handle.seek(archive.offset)
        if handle.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark after {count} members")


def _tar_member(path: Path, descriptor: int, info: tarfile.TarInfo) -> Member:
    read = partial(_pread, descriptor, info.size, info.offset_data)
    return Member(
        source=path,
        name=info.name,
        size=info.size,
        packed_size=info.size,
        position=info.offset_data,
        is_folder=info.isdir(),
        refusal=_tar_refusal(info),
        fingerprint="",
        load=partial(_load, path, info.name, read),
    )


def _tar_refusal(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "a link"
    if info.issparse():
        return "a sparse file (create the archive without --sparse)"
    return None if info.isreg() or info.isdir() else "a device file"


class _TarHeaders:
    """A tar's file as tarfile reads it to list members, with header blocks limited in size."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.seek = handle.seek
        self.tell = handle.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._handle.read(size)


def _load(path: Path, name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except _DamageError as error:
        raise DamagedMemberError(path, name, str(error)) from error
    except _SizeMismatchError as error:
        raise RefusedDataError(
            f"{path}: member {name!r} is refused: {error} (possible decompression bomb); create the"
            " archive again",
            CorpusFault.UNSAFE_MEMBER,
        ) from error
