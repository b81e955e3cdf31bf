"""Image store: open resized images by the path in split files, from zip shards.

The images of a modality are stored in data/images/<modality> in shards: uncompressed zips, whose
members are named by the rest of the path. A few large files are quick to list, hash and upload
(docs/ingest-storage.md), and any program can open them:

    for modality in data/images/*/; do (cd $modality && unzip -q '*.zip'); done

puts every image at its path. An image that is in no shard is read from its path as well.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import Image

from stages.core.errors import InputError
from stages.corpus.dataset.zip_header import find_content

__all__ = [
    "SUFFIX",
    "MemberLocation",
    "exists",
    "identity",
    "list_shard",
    "open_image",
    "read_image",
    "read_location",
]

SUFFIX: Final = ".zip"

_ROOT: Final = ("data", "images")
_DEPTH: Final = 3
"""Parts of the path of a folder of shards: data, images, ct."""
_REMEDY: Final = "run `dvc repro resize`, or `dvc checkout` if another commit was checked out"


@dataclass(frozen=True, slots=True)
class MemberLocation:
    """Position of an image's bytes: shard, start of the member's header, length, CRC-32."""

    shard: Path
    header: int
    size: int
    crc: int


@dataclass(frozen=True)
class _Index:
    """The images in the shards of a folder, valid while its (inode, mtime) stays the same."""

    version: tuple[int, int]
    locations: dict[str, MemberLocation]


_indices: dict[Path, _Index] = {}
"""Cache of the indices by folder."""


def open_image(path: str | Path) -> Image.Image:
    """The image at a path of a split file, data/images/<modality>/..., loaded as RGB.

    Safe from any thread, and in a process forked from one that has opened images. Raises InputError
    if it is missing or damaged.
    """
    content = read_image(path)
    try:
        with Image.open(BytesIO(content)) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises either for a broken PNG
        raise InputError(f"{path} is not a readable image ({error}): {_REMEDY}") from error


def read_image(path: str | Path) -> bytes:
    """The bytes of the image's file. Raises as `open_image` does."""
    if (location := _find(path)) is not None:
        return read_location(location, path)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        shards = f"{_folder(path) or 'data/images'}/*{SUFFIX}"
        raise InputError(f"{path} is missing, also from {shards}: {_REMEDY}") from None


def exists(path: str | Path) -> bool:
    """Whether there is such an image."""
    return _find(path) is not None or Path(path).is_file()


def identity(path: str | Path) -> str:
    """Fingerprint of an image's content; for one in a shard, without reading it.

    Raises InputError if it is missing.
    """
    if (location := _find(path)) is not None:
        return f"{location.size} {location.crc:08x}"
    return hashlib.sha256(read_image(path)).hexdigest()


def list_shard(shard: Path) -> dict[str, MemberLocation]:
    """Name -> location of each image of a shard. Raises InputError if it is not a complete zip."""
    try:
        with zipfile.ZipFile(shard) as archive:
            return {
                info.filename: MemberLocation(shard, info.header_offset, info.file_size, info.CRC)
                for info in archive.infolist()
            }
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{shard} is not a complete shard ({error}): {_REMEDY}") from error


def read_location(location: MemberLocation, path: str | Path) -> bytes:
    """The bytes of the image at a location; errors name it by `path`.

    Opens a descriptor of its own: nothing is shared with other threads or processes.

    Raises InputError if the bytes cannot be read or are damaged.
    """
    try:
        descriptor = os.open(location.shard, os.O_RDONLY)
        try:
            start = find_content(descriptor, location.header)
            content = os.pread(descriptor, location.size, start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read from {location.shard} ({error}): {_REMEDY}"
        ) from error
    except zipfile.BadZipFile as error:
        raise _damaged(location, path) from error
    if zlib.crc32(content) != location.crc:
        raise _damaged(location, path)
    return content


def _damaged(location: MemberLocation, path: str | Path) -> InputError:
    # the caches of DVC and of stage resize hold hard links to the shard, and would restore it
    delete = f"`find . -samefile {shlex.quote(str(location.shard))} -delete`"
    return InputError(
        f"{path} is damaged in {location.shard}: delete all hard links of this file, {delete}, and"
        " run `dvc repro resize`"
    )


def _folder(path: str | Path) -> Path | None:
    """The folder with the shards of an image; None if the path is not in an image store."""
    parts = PurePosixPath(path).parts
    for depth in range(_DEPTH, len(parts)):
        if parts[depth - _DEPTH : depth - 1] == _ROOT:
            return Path(*parts[:depth])
    return None


def _find(path: str | Path) -> MemberLocation | None:
    folder = _folder(path)
    if folder is None:
        return None
    try:
        status = os.stat(folder)
    except OSError:
        return None
    version = (status.st_ino, status.st_mtime_ns)
    index = _indices.get(folder)
    if index is None or index.version != version:
        # no lock, which another thread might hold at a fork: two threads may both do this
        index = _Index(version, _list_shards(folder))
        _indices[folder] = index
    return index.locations.get(PurePosixPath(path).relative_to(folder).as_posix())


def _list_shards(folder: Path) -> dict[str, MemberLocation]:
    locations: dict[str, MemberLocation] = {}
    for shard in sorted(folder.glob(f"*{SUFFIX}")):
        locations |= list_shard(shard)
    return locations
