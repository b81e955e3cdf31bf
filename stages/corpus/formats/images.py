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
from collections.abc import Callable, Collection
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Final

from stages.corpus.dataset.paths import (
    IMAGES,
    MAX_NAME_BYTES,
    has_long_name,
    is_left_behind,
    unsafe_path,
)
from stages.corpus.formats.several import NamedImage
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.cells import is_address
from stages.corpus.records.texts import RefusedRecord
from stages.corpus.volumes.signatures import GZIP, first_bytes, nifti_version

SUFFIXES: Final = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"),
        *(".dcm", ".dicom", ".nii", ".nii.gz"),
    )
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
_PACKED: Final = ".gz"
_HEAD: Final = 2**16
"""Bytes of a packed file in which its kind is looked for."""


class ImageFolder:
    """The image files below a folder, found by the paths that a source writes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._resolved = root.resolve()
        self._usable: set[Path] = set()

    def find(self, written: str) -> NamedImage:
        """The file, or folder of slices, of an image path, and its name below Images/.

        A path may begin with Images/. Raises RefusedRecord, with near matches, for a path that is
        unsafe, names no file, two files, one outside the folder, or a packed one that is no NIfTI.
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
        if path not in self._usable:
            self._check(path, written)
            self._usable.add(path)
        return NamedImage(name, path)

    def _check(self, path: Path, written: str) -> None:
        members = [path, *_files_in(path)] if path.is_dir() else [path]
        if not all(each.resolve().is_relative_to(self._resolved) for each in members):
            why = f"a link that leads out of {self.root}: copy the image into it"
            raise RefusedRecord(written, why, Reason.IMAGE_PATH)
        if members == [path] and path.is_dir():
            why = "a folder without files: name one image, or a folder of the slices of a volume"
            raise RefusedRecord(written, why, Reason.IMAGE_MISSING)
        if path.is_file() and path.name.lower().endswith(_PACKED):
            with path.open("rb") as handle:
                is_volume = _is_nifti(handle.read(_HEAD))
            if not is_volume:
                why = "a packed file that is no NIfTI volume, or is damaged: unpack it"
                raise RefusedRecord(written, why, Reason.IMAGE_FORMAT)

    def near_matches(self, name: str) -> list[str]:
        """Files of the same path in another case, or else of another image suffix, sorted."""
        same_case = self._by_path.get(name.casefold(), [])
        same_stem = self._by_stem.get(_folded_stem(name), [])
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
                if image_suffix(file) in SUFFIXES
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
        self._files: dict[str, list[str]] = {}
        """Name of an image -> the files that it consists of, several of a folder."""
        self._written: set[str] = set()

    def add(self, image: NamedImage) -> None:
        """Store an image unless it is.

        A file of a folder may be an image of its own, too. Raises RefusedRecord if the path is that
        of another image's folder, or the files of a folder would not be those of the source.
        """
        name, content = image
        if name in self._files:
            return
        files = {name: content}
        if isinstance(content, Path) and content.is_dir():
            files = {f"{name}/{path.name}": path for path in _files_in(content)}
        if self._is_mixed(name, files.keys()):
            why = "an image of another origin in the folder of a volume: rename one of them"
            raise RefusedRecord(name, why, Reason.IMAGE_PATH)
        try:
            for file, part in files.items():
                self._write(file, part)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            why = "names an image and a folder of others: rename one of them"
            raise RefusedRecord(name, why, Reason.IMAGE_PATH) from None
        self._files[name] = [*files]

    def _is_mixed(self, name: str, files: Collection[str]) -> bool:
        """Whether a folder that is one image would hold files that it does not have in the source.

        `files`: of the image `name`, itself or those of its folder.
        """
        if name in files:
            folder = posixpath.dirname(name)
            is_image = self._files.get(folder, [folder]) != [folder]
            return is_image and name not in self._written
        target = self._root / name
        there = target.iterdir() if target.is_dir() else ()
        return any(path.is_file() and f"{name}/{path.name}" not in files for path in there)

    def _write(self, file: str, content: Path | bytes) -> None:
        if file in self._written:
            return
        target = self._root / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            _copy(content, target)
        self._written.add(file)

    def remove_others(self, names: set[str]) -> None:
        """Delete the images that are not among these names, and the folders that held only them."""
        kept = set(chain.from_iterable(self._files[name] for name in names))
        for file in sorted(self._written - kept):
            path = self._root / file
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
        why = "the image's bytes are none of PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM, NIfTI"
        raise RefusedRecord(f"{content[:12]!r}...", why, Reason.IMAGE_FORMAT)
    return f"{file_name(dataset)}/{hashlib.sha256(content).hexdigest()[:32]}{suffix}"


def file_name(text: str) -> str:
    """A file name for a data set: itself if it is one, or else a readable part and a hash."""
    is_name = text.strip(". ") == text and not set(text) & set('/\\:*?"<>|\0')
    if text and is_name and len(text.encode()) <= 150 and not is_left_behind(text):
        return text
    readable = "".join(letter for letter in text if letter.isalnum() or letter in " -_")
    return f"{readable.strip()[:30]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def image_suffix(name: str) -> str:
    """The suffix of a file's name in small letters, ".nii.gz" as one."""
    stem, suffix = posixpath.splitext(name.lower())
    return posixpath.splitext(stem)[1] + suffix if suffix == _PACKED else suffix


def image_files_below(folder: Path) -> list[Path]:
    """Image files at any depth of a folder by their suffixes, sorted."""
    files = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if image_suffix(name) in SUFFIXES and not is_left_behind(name) and path.is_file():
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
    if name.endswith("/"):
        why = "the image's path ends with /: name a folder of slices without it"
        raise RefusedRecord(written, why, Reason.IMAGE_PATH)
    if has_long_name(name):
        why = f"the image's path has a name longer than {MAX_NAME_BYTES} bytes"
        raise RefusedRecord(written, why, Reason.IMAGE_PATH)
    if not name or posixpath.normpath(name) != name:
        raise RefusedRecord(written, "the image's path is not a file's", Reason.IMAGE_PATH)
    return name


def _folded_stem(name: str) -> str:
    return name[: len(name) - len(image_suffix(name))].casefold()


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
    if _is_nifti(content[:_HEAD]):
        return ".nii.gz" if content.startswith(GZIP) else ".nii"
    return next((suffix for start, suffix in _SIGNATURES if content.startswith(start)), None)


def _is_nifti(head: bytes) -> bool:
    """Whether a file begins as NIfTI, packed or not; the header of a pair of files is none."""
    found = nifti_version(first_bytes(head))
    return found is not None and found[1]


def _files_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not is_left_behind(path.name)
    )


def _copy(source: Path, target: Path) -> None:
    """Hard link, or a copy where the file systems allow no link."""
    source = source.resolve()
    try:
        os.link(source, target)
    except (FileExistsError, NotADirectoryError):
        raise
    except OSError:
        shutil.copyfile(source, target)
