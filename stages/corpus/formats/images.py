"""Image files that a source names, their near matches, and the copies in the corpus.

Bytes are never decoded or encoded: a file is linked or copied, embedded bytes are written as they
are. Whether they can be decoded is checked by `med-r1 check` and stage resize.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final

from stages.corpus.dataset.paths import (
    IMAGES,
    MAX_NAME_BYTES,
    has_long_name,
    is_left_behind,
    unsafe_path,
)
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.table import is_address
from stages.corpus.records.texts import RefusedRecord

SUFFIXES: Final = frozenset(
    (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm", ".dicom")
)
_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF87a", ".gif"),
    (b"GIF89a", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)
_DICOM_PREFIX: Final = 128
"""Bytes before DICOM's signature."""


class ImageFolder:
    """The image files below a folder, found by the paths that a source writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, written: str) -> tuple[str, Path]:
        """The name below Images/ and the file, or folder of DICOM files, of an image path.

        A path may begin with Images/. Raises RefusedRecord, with near matches, for a path that is
        unsafe, names no file, two files, or one outside the folder.
        """
        name = _safe_name(written)
        places = {self.root / IMAGES / name, self.root / name}
        files = sorted(place for place in places if os.path.exists(place))
        if len(files) > 1:
            why = f"names two files, one under {IMAGES} and one beside it: rename one"
            raise RefusedRecord(written, why, Reason.IMAGE_PATH)
        if not files:
            matches = self.near_matches(name)
            hint = f"; did you mean {matches[0]!r}?" if matches else ""
            why = f"the image is not in {self.root}{hint}"
            raise RefusedRecord(written, why, Reason.IMAGE_MISSING)
        (path,) = files
        if not path.resolve().is_relative_to(self.root.resolve()):
            why = f"a link that leads out of {self.root}: copy the image into it"
            raise RefusedRecord(written, why, Reason.IMAGE_PATH)
        if path.is_dir() and not _files_in(path):
            why = "a folder without files: name one image, or a folder of one DICOM series"
            raise RefusedRecord(written, why, Reason.IMAGE_MISSING)
        return name, path

    def near_matches(self, name: str) -> list[str]:
        """Files of the same path in another case, or else of another image suffix, sorted."""
        same_case = self._by_path.get(name.casefold(), [])
        same_stem = self._by_stem.get(posixpath.splitext(name)[0].casefold(), [])
        return same_case or same_stem

    @cached_property
    def _names(self) -> list[str]:
        """Image files below the folder, as a source may write them."""
        names = []
        for folder, _, files in os.walk(self.root):
            below = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
            names += [
                (below / file).as_posix().removeprefix(IMAGES)
                for file in files
                if Path(file).suffix.lower() in SUFFIXES
            ]
        return sorted(names)

    @cached_property
    def _by_path(self) -> dict[str, list[str]]:
        return _index(self._names, str.casefold)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _index(self._names, _folded_stem)


class ImageStore:
    """The images of the corpus that is written, each once however many questions name it."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the corpus, without Images/."""
        self._root = folder / IMAGES
        self._root.mkdir()
        self._stored: set[str] = set()

    def add(self, name: str, image: Path | bytes) -> None:
        """Store an image unless it is; RefusedRecord if its path is that of another's folder."""
        if name in self._stored:
            return
        target = self._root / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(image, bytes):
                target.write_bytes(image)
            else:
                _copy(image, target)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            why = "names an image and a folder of others: rename one of them"
            raise RefusedRecord(name, why, Reason.IMAGE_PATH) from None
        self._stored.add(name)

    def remove_others(self, names: set[str]) -> None:
        """Delete the images that are not among these names, and the folders that held only them."""
        for name in sorted(self._stored - names):
            path = self._root / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            for folder in path.relative_to(self._root).parents:
                if folder.name and not any((self._root / folder).iterdir()):
                    (self._root / folder).rmdir()


def embedded_name(dataset: str, content: bytes) -> str:
    """The name of an image without a file: equal bytes have equal names.

    Raises RefusedRecord for bytes that are no image of a known format.
    """
    if not content:
        raise RefusedRecord("", "the image has no bytes", Reason.IMAGE_EMPTY)
    suffix = _suffix(content)
    if suffix is None:
        why = "the image's bytes are none of PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM"
        raise RefusedRecord(f"{content[:12]!r}...", why, Reason.IMAGE_FORMAT)
    return f"{file_name(dataset)}/{hashlib.sha256(content).hexdigest()[:32]}{suffix}"


def file_name(text: str) -> str:
    """A file name for a data set: itself if it is one, or else a readable part and a hash."""
    is_name = text.strip(". ") == text and not set(text) & set('/\\:*?"<>|\0')
    if text and is_name and len(text.encode()) <= 150 and not is_left_behind(text):
        return text
    readable = "".join(letter for letter in text if letter.isalnum() or letter in " -_")
    return f"{readable.strip()[:30]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def image_files_below(folder: Path) -> list[Path]:
    """Image files at any depth of a folder by their suffixes, sorted."""
    files = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in SUFFIXES and not is_left_behind(name) and path.is_file():
            files.append(path)
    return sorted(files)


def _safe_name(written: str) -> str:
    name = written.strip()
    while name.startswith("./"):
        name = name.removeprefix("./")
    if is_address(name):
        why = "an address: download the image, and write its path from the source's folder"
        raise RefusedRecord(written, why, Reason.IMAGE_PATH)
    if problem := unsafe_path(name):
        raise RefusedRecord(written, f"the image's path is {problem}", Reason.IMAGE_PATH)
    name = name.removeprefix(IMAGES)
    if has_long_name(name):
        why = f"the image's path has a name longer than {MAX_NAME_BYTES} bytes"
        raise RefusedRecord(written, why, Reason.IMAGE_PATH)
    if not name or posixpath.normpath(name) != name:
        raise RefusedRecord(written, "the image's path is not a file's", Reason.IMAGE_PATH)
    return name


def _folded_stem(name: str) -> str:
    return posixpath.splitext(name)[0].casefold()


def _index(names: list[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    by_key = defaultdict(list)
    for name in names:
        by_key[key(name)].append(name)
    return dict(by_key)


def _suffix(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    if content[_DICOM_PREFIX : _DICOM_PREFIX + 4] == b"DICM":
        return ".dcm"
    return next((suffix for start, suffix in _SIGNATURES if content.startswith(start)), None)


def _files_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not is_left_behind(path.name)
    )


def _copy(source: Path, target: Path) -> None:
    """Hard link, or a copy where the file systems allow no link; of a folder, its files."""
    if source.is_dir():
        target.mkdir()
        for path in _files_in(source):
            _copy(path, target / path.name)
        return
    source = source.resolve()
    try:
        os.link(source, target)
    except (FileExistsError, NotADirectoryError):
        raise
    except OSError:
        shutil.copyfile(source, target)
