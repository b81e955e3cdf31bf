"""Image store: open resized images by the path in split files, from zip shards.

The images of a modality lie in data/images/<modality> in shards: zip files that compress nothing,
whose members are named by the path that follows. So few files are quick to list, hash and send
(docs/ingest-storage.md), any program opens them, and

    for modality in data/images/*/; do (cd $modality && unzip -q '*.zip'); done

puts every image where its path says. An image that is in no shard is looked for there as well.
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

_ROOTS: Final = (("data", "images"), ("data", "frames"))
_DEPTH: Final = 3
"""Parts of a path up to and with its modality: data, images, ct."""
_REMEDY: Final = "run `dvc repro resize`, or `dvc checkout` if another commit was checked out"


@dataclass(frozen=True, slots=True)
class MemberLocation:
    """Where an image's bytes are: shard, start of the member's header, length, checksum."""

    shard: Path
    header: int
    size: int
    crc: int


@dataclass(frozen=True)
class _Index:
    """The images in the shards of a folder, and by what the folder is known again."""

    identity: tuple[int, int]
    places: dict[str, MemberLocation]


_indices: dict[Path, _Index] = {}


def open_image(path: str | Path) -> Image.Image:
    """The image at a path as split files name it, data/images/<modality>/...: RGB, loaded.

    Safe from any thread, and in a process forked from one that has opened images. InputError if it
    is missing or damaged.
    """
    content = read_image(path)
    try:
        with Image.open(BytesIO(content)) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow knows a broken PNG by either
        raise InputError(f"{path} is not a readable image ({error}): {_REMEDY}") from error


def read_image(path: str | Path) -> bytes:
    """The bytes of the image's file. Raises as `open_image`."""
    if (place := _find(path)) is not None:
        return read_location(place, path)
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing, in {_folder(path) or 'data/images'}{'/*' + SUFFIX} too: {_REMEDY}"
        ) from None


def exists(path: str | Path) -> bool:
    """Whether there is such an image."""
    return _find(path) is not None or Path(path).is_file()


def identity(path: str | Path) -> str:
    """By what an image's bytes are known again, without reading those of a shard.

    InputError if it is missing.
    """
    if (place := _find(path)) is not None:
        return f"{place.size} {place.crc:08x}"
    return hashlib.sha256(read_image(path)).hexdigest()


def list_shard(shard: Path) -> dict[str, MemberLocation]:
    """Name -> place of each image of a shard. InputError if it is not a complete zip."""
    try:
        with zipfile.ZipFile(shard) as archive:
            return {
                info.filename: MemberLocation(shard, info.header_offset, info.file_size, info.CRC)
                for info in archive.infolist()
            }
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{shard} is not a complete shard ({error}): {_REMEDY}") from error


def read_location(place: MemberLocation, path: str | Path) -> bytes:
    """The bytes of the image that lies there, `path` to whoever reads an error.

    InputError if they cannot be had or are damaged.

    By position, through a descriptor of its own: nothing is shared with other threads or processes.
    """
    try:
        descriptor = os.open(place.shard, os.O_RDONLY)
        try:
            content = os.pread(descriptor, place.size, find_content(descriptor, place.header))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read from {place.shard} ({error}): {_REMEDY}"
        ) from error
    except zipfile.BadZipFile as error:
        raise _damaged(place, path) from error
    if zlib.crc32(content) != place.crc:
        raise _damaged(place, path)
    return content


def _damaged(place: MemberLocation, path: str | Path) -> InputError:
    # DVC's cache and stage resize's have the same file under other names, and would put it back
    everywhere = f"`find . -samefile {shlex.quote(str(place.shard))} -delete`"
    return InputError(
        f"{path} is damaged in {place.shard}: delete that under all its names, {everywhere}, and"
        " run `dvc repro resize`"
    )


def _folder(path: str | Path) -> Path | None:
    """The folder with the shards of an image; None if its path is none of a store's."""
    parts = PurePosixPath(path).parts
    for depth in range(_DEPTH, len(parts)):
        if parts[depth - _DEPTH : depth - 1] in _ROOTS:
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
    identity = (status.st_ino, status.st_mtime_ns)
    index = _indices.get(folder)
    if index is None or index.identity != identity:
        # two threads may do it both; a lock might be held when the process is forked
        index = _indices[folder] = _Index(identity, _list(folder))
    return index.places.get(PurePosixPath(path).relative_to(folder).as_posix())


def _list(folder: Path) -> dict[str, MemberLocation]:
    places: dict[str, MemberLocation] = {}
    for shard in sorted(folder.glob(f"*{SUFFIX}")):
        places |= list_shard(shard)
    return places
