"""The raw corpus archive, a zip or a tar, opened so that no member of it can reach outside a folder.

Every member is looked at before any is read: absolute paths, `..`, links, devices, encrypted members and names that
stand twice refuse the whole archive. Members are then read into memory one by one, never unpacked by the library's own
`extract`. What the corpus's layout is: notes in stages/corpus/records.py.
"""

from __future__ import annotations

import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, Final

from stages.errors import InputError

QUESTIONS: Final = "QA_information/Open-access/"
IMAGES: Final = "Images/"
LARGEST_MEMBER: Final = 2**30
"""Bytes. Members are read whole, and no picture or question file needs as much: more is a decompression bomb."""

_NO_FILE_NAME = re.compile(r"[\x00\ud800-\udfff]")
_CHUNK = 2**20
_AGAIN = "fetch it again, or make it again from the corpus's folder"
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, struct.error, EOFError, NotImplementedError, ValueError)


@dataclass(frozen=True)
class _Member:
    """A file or folder in the archive; `refused` says why it may not be there, `position` where its bytes begin."""

    name: str
    size: int
    position: int
    folder: bool
    refused: str | None
    open: Callable[[], IO[bytes] | None]


class Archive:
    """The files of a corpus, named relative to the folder that holds `QA_information/Open-access` and `Images`."""

    def __init__(self, path: Path, members: Iterable[_Member]) -> None:
        """Check every member; `InputError` names the first that is unsafe, or says what is not found."""
        self.path = path
        files: dict[str, _Member] = {}
        for member in members:
            why = member.refused or unsafe_path(member.name)
            name = posixpath.normpath(member.name)
            if why is None and name in files:
                why = "a name that stands in the archive twice"
            if why:
                raise InputError(f"{path}: member {member.name!a} is refused: {why}; make the archive again without it")
            if not member.folder:
                files[name] = member
        _refuse_files_with_files_inside(path, files)
        root = _root(path, files)
        self._files = {name.removeprefix(root): files[name] for name in sorted(files) if name.startswith(root)}

    @property
    def names(self) -> list[str]:
        """All files, sorted."""
        return list(self._files)

    def __contains__(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._files

    def size(self, name: str) -> int:
        """The unpacked size of a file in bytes; KeyError if there is none of that name."""
        return self._files[name].size

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (name, content) in the order of storage: a tar.gz is then unpacked once, from front to back.

        Raises KeyError for an unknown name, InputError for a member that is damaged or larger than LARGEST_MEMBER.
        """
        for name in sorted(names, key=lambda name: self._files[name].position):
            member = self._files[name]
            if member.size > LARGEST_MEMBER:
                limit = f"{LARGEST_MEMBER / 2**20:.0f} MiB"
                raise InputError(f"{self.path}: member {name!r} has {member.size / 2**20:.0f} MiB, more than {limit}; take it out")
            with _damage_explained(f"{self.path}: member {name!r} cannot be read"):
                handle = member.open()
                assert handle is not None, "only regular files are listed"
                with handle:
                    content = handle.read()
            yield name, content


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a zip, a tar or a tar.gz and check all of its members.

    Raises InputError for a file that is none of these or is cut short, for an unsafe member, and for an archive that
    does not hold one corpus; FileNotFoundError if there is no file.
    """
    # by its first bytes: zipfile would also accept a tar that ends with a zip
    with path.open("rb") as handle:
        magic = handle.read(2)
    explained = f"{path} is not a whole zip, tar or tar.gz"
    if magic == b"PK":
        with _damage_explained(explained):
            opened: zipfile.ZipFile | tarfile.TarFile = zipfile.ZipFile(path)
    else:
        with _damage_explained(explained):
            opened = tarfile.open(path, "r:gz" if magic == b"\x1f\x8b" else "r:")  # noqa: SIM115  closed below
    with opened:
        with _damage_explained(explained):
            members = _zip_members(opened) if isinstance(opened, zipfile.ZipFile) else _tar_members(opened)
        yield Archive(path, members)


def unsafe_path(name: str) -> str | None:
    """Why a relative POSIX path could lead out of its folder, on any system, or could not be a file name; None if it is safe."""
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "an absolute path"
    if "\\" in name:
        return "a backslash in its path"
    if ".." in name.split("/"):
        return "a path that leads out of its folder"
    if _NO_FILE_NAME.search(name):
        return "a name that is not UTF-8"
    return None


def _zip_members(archive: zipfile.ZipFile) -> list[_Member]:
    members = []
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 when the zip was not made on a Unix
        refused = "an encrypted file" if info.flag_bits & 0x1 else None
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            refused = "a link" if kind == stat.S_IFLNK else "a device file"
        opener = partial(archive.open, info)
        members.append(_Member(info.filename, info.file_size, info.header_offset, info.is_dir(), refused, opener))
    return members


def _tar_members(archive: tarfile.TarFile) -> list[_Member]:
    members = []
    for info in archive.getmembers():
        refused = None
        if not (info.isreg() or info.isdir()):
            refused = "a link" if info.issym() or info.islnk() else "a device file"
        opener = partial(archive.extractfile, info)
        members.append(_Member(info.name, info.size, info.offset_data, info.isdir(), refused, opener))
    # tarfile takes a damaged header for the end: the true end is a block of zeros
    stream: Any = archive.fileobj
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no end mark after {len(members)} members")
    while stream.read(_CHUNK):  # to the end, where gzip keeps its checksum
        pass
    return members


def _refuse_files_with_files_inside(path: Path, files: dict[str, _Member]) -> None:
    folders = {name.rpartition("/")[0] for name in files}
    while parents := {name.rpartition("/")[0] for name in folders} - folders:
        folders |= parents
    if both := sorted(folders & files.keys()):
        raise InputError(f"{path}: member {both[0]!r} is a file and a folder at once; make the archive again")


def _root(path: Path, files: dict[str, _Member]) -> str:
    """The folder of the corpus, "" or with a slash at the end."""
    # __MACOSX: what macOS's zip adds, a shadow of every folder
    starts = {name[:at] for name in files if (at := f"/{name}".find(f"/{QUESTIONS}")) >= 0 and not name.startswith("__MACOSX/")}
    roots = sorted(start for start in starts if any(name.startswith(start + IMAGES) for name in files))
    if len(roots) == 1:
        return roots[0]
    tops = ", ".join(sorted({name.partition("/")[0] for name in files})[:5]) or "nothing"
    found = f"{len(roots)} corpora, in {', '.join(map(repr, roots[:3]))}" if roots else f"at the top: {tops}"
    raise InputError(f"{path}: expected one folder with {QUESTIONS} and {IMAGES} (OmniMedVQA's layout), found {found}")


@contextmanager
def _damage_explained(what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise InputError(f"{what} ({error or type(error).__name__}): it may be cut short or damaged; {_AGAIN}") from error
    except OSError as error:
        if error.errno is not None:  # gzip and bz2 report bad data as an OSError without a number
            raise
        raise InputError(f"{what} ({error}): it may be cut short or damaged; {_AGAIN}") from error
