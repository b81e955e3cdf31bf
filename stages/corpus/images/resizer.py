"""Resize all images of a modality and write them in shards, from the cache where possible.

A shard that is cached as a whole is linked; the images of all other shards are read from the cache
or decoded on all cores. Memory does not grow with the number of images: only a few are decoded
ahead of the one that is written next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.core.cores import available_cores
from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.iteration.prefetch import prefetch
from stages.core.iteration.progress import counted
from stages.core.params import Dicom, Resize, Volume
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.images.decoding import (
    DECODER,
    ENCODER,
    Decoded,
    ImageError,
    encode,
)
from stages.corpus.images.facts import image_facts
from stages.corpus.images.files import decode_files
from stages.corpus.images.frames import VolumeFrames
from stages.corpus.images.image_cache import CachedImage, ImageCache
from stages.corpus.images.shard_writer import cut, shard_name, write_shard
from stages.corpus.quarantine.image_errors import UnreadError
from stages.corpus.quarantine.reasons import Reason
from stages.taxonomy import SPECIFIC_DICOM, Category

_SPARE_THREADS: Final = 2
"""Threads more than cores, which compute while others wait for the GIL or the disk."""
_AHEAD: Final = 4
"""Images per thread that are decoded ahead of the one that is written next."""

ImageResult = dict[str, Any] | ImageError
"""Metadata of an image for its records, or why it cannot be used."""


class ImageMetadata(Mapping[str, ImageResult]):
    """image_path -> result, stored as JSON: a third of the memory of dicts for many images."""

    def __init__(self) -> None:
        self._stored: dict[str, str | ImageError] = {}

    def add(self, results: Mapping[str, ImageResult]) -> None:
        """Add the results of some images."""
        for name, result in results.items():
            self._stored[name] = result if isinstance(result, ImageError) else json.dumps(result)

    def __getitem__(self, name: str) -> ImageResult:
        """Result of an image; KeyError if there is none."""
        stored = self._stored[name]
        return stored if isinstance(stored, ImageError) else dict(json.loads(stored))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the image paths."""
        return iter(self._stored)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._stored)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Corpus files of an image as (name, SHA-256); `folder`: whether each is a slice."""

    files: tuple[tuple[str, str], ...]
    folder: bool


class _Resized(NamedTuple):
    """An image that is ready to be written."""

    name: str
    result: ImageResult
    png: bytes
    """Empty for an image that cannot be used."""
    decoded: bool
    """False if it came from the cache."""
    key: str
    """Cache key of the result."""


def png_name(image_path: str) -> str:
    """Images/a/b.jpg -> a/b.jpg.png; with the old suffix, as a/b.bmp may be another image."""
    return f"{image_path.removeprefix(IMAGES)}.png"


class ImageResizer:
    """Resizes the images of one modality.

    Args:
        slug: The modality.
        modality: Its names and DICOM values.
        sources: image_path -> the corpus files it is decoded from.
        fetch: Reads a corpus file; called from any thread; raises UnreadError.
        resize: Settings of the result.
        dicom: Settings for DICOM files.
        volume: Settings for volumes.
        cache: Where results of earlier runs are looked up, and new ones are added.
        frames: Keeps the frames of volumes that questions show.
    """

    def __init__(
        self,
        slug: str,
        modality: Category,
        sources: Mapping[str, ImageSource],
        fetch: Callable[[str], bytes],
        resize: Resize,
        dicom: Dicom,
        volume: Volume,
        cache: ImageCache,
        frames: VolumeFrames,
    ) -> None:
        self._slug = slug
        self._modality = modality
        self._sources = sources
        self._fetch = fetch
        self._resize = resize
        self._dicom = dicom
        self._volume = volume
        self._cache = cache
        self._settings = [
            slug,
            [modality.names[0], *modality.dicom],
            resize.model_dump(mode="json"),
            dicom.model_dump(mode="json"),
            volume.model_dump(mode="json", include={"plane", "window"}),
        ]
        self._cached: dict[str, CachedImage] = {}
        self._frames = frames
        self.decoded_count = 0
        """Number of images that were decoded rather than found in the cache."""

    def write_shards(self, folder: Path) -> ImageMetadata:
        """Write the shards of all images into `folder`; the result of each."""
        metadata = ImageMetadata()
        unlinked: list[list[str]] = []
        for shard in cut(sorted(self._sources)):
            keys = chain.from_iterable(map(self._keys, shard))
            cached = self._cache.lookup(sorted(set(keys)))
            results = self._link_shard(shard, cached, folder)
            if results is None:
                unlinked.append(shard)
                self._cached |= cached
            else:
                metadata.add(results)

        names = list(chain.from_iterable(unlinked))
        # threads suffice: libvips and Pillow decode, resize and encode without the GIL
        threads = available_cores() + _SPARE_THREADS
        budget = _AHEAD * threads + 1
        with closing(prefetch(self._load, names, threads=threads, budget=budget)) as stream:
            # the images come in the order of `names`, so each shard takes the next of its length
            images = counted(stream, len(names), self._slug, "image")
            for shard in unlinked:
                metadata.add(self._write_shard(islice(images, len(shard)), folder))
        return metadata

    def _keys(self, name: str) -> tuple[str, str, str]:
        """Cache keys that an image may be found under."""
        return self._key(name), self._plain_key(name), self._refusal_key(name)

    def _key(self, name: str) -> str:
        """Cache key: a hash of all that determines the result."""
        return self._hash(name, self._frames.stacked(name))

    def _plain_key(self, name: str) -> str:
        """Cache key of a file that has one image, whatever is asked of volumes."""
        return self._hash(name, None)

    def _refusal_key(self, name: str) -> str:
        """Cache key of a refusal: of a folder, its message names a file."""
        source = self._sources[name]
        names = [file for file, _ in source.files] if source.folder else []
        return self._hash(name, self._frames.stacked(name), names)

    def _hash(self, name: str, stacked: bool | None, names: Sequence[str] = ()) -> str:
        source = self._sources[name]
        digests = [digest for _, digest in source.files]
        parts = [digests, source.folder, stacked, list(names), self._settings, DECODER]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _find(self, name: str, cached: Mapping[str, CachedImage]) -> tuple[str, CachedImage] | None:
        """Key and cached result of an image, if one holds for what is asked of volumes."""
        return next(((key, cached[key]) for key in self._keys(name) if key in cached), None)

    def _link_shard(
        self, shard: Sequence[str], cached: Mapping[str, CachedImage], folder: Path
    ) -> dict[str, ImageResult] | None:
        """Link a shard and its frames from the cache; None if any image is missing there.

        `cached`: key -> entry, of those images of the shard that are in the cache. Frames that were
        linked before one was missing stay: they are used when the shard is written.
        """
        results: dict[str, ImageResult] = {}
        for name in shard:
            found = self._find(name, cached)
            if found is None:
                return None
            results[name] = _cached_result(found[1])
        if not all(self._ensure_frames_linked(name, result) for name, result in results.items()):
            return None
        file_name = self._shard_name(results)
        if file_name is None or self._cache.link_shard(file_name, folder / file_name):
            return results
        return None

    def _ensure_frames_linked(self, name: str, result: ImageResult) -> bool:
        """Link the frames of a volume that are shown; False if they are not in the cache."""
        if isinstance(result, ImageError) or "frames" not in result:
            return True
        return self._frames.find(name, self._key(name), result["frames"])

    def _shard_name(self, results: Mapping[str, ImageResult]) -> str | None:
        """File name of a shard, from pixels and encoder only; None if no image is usable."""
        members = [
            (png_name(name), f"{result['pixel_hash']} {ENCODER}")
            for name, result in results.items()
            if not isinstance(result, ImageError)
        ]
        return shard_name(members) if members else None

    def _load(self, name: str) -> _Resized:
        """Read an image from the cache, or decode it."""
        found = self._find(name, self._cached)
        if found is not None:
            key, entry = found
            result = _cached_result(entry)
            if entry.shard is None:
                return _Resized(name, result, b"", decoded=False, key=key)
            png = self._cache.read(entry) if self._ensure_frames_linked(name, result) else None
            if png:
                return _Resized(name, result, png, decoded=False, key=key)
        return self._decode(name)

    def _decode(self, name: str) -> _Resized:
        source = self._sources[name]

        def fetch(index: int) -> bytes:
            return self._fetch(source.files[index][0])

        try:
            contents = LazySequence(len(source.files), fetch)
            image = decode_files(
                contents,
                self._resize,
                self._dicom,
                self._volume,
                names=[name for name, _ in source.files],
                folder=source.folder,
                stacked=self._frames.stacked(name),
            )
            check_modality(image, self._modality)
            metadata = describe(image)
            if image.frames:
                metadata["frames"] = len(image.frames)
                self._frames.write(name, self._key(name), image.frames)
            has_one = not image.frames and image.pages == 1
            key = self._plain_key(name) if has_one else self._key(name)
            return _Resized(name, metadata, encode(image.image), decoded=True, key=key)
        except ImageError as error:
            return _Resized(name, error, b"", decoded=True, key=self._refusal_key(name))

    def _write_shard(self, images: Iterable[_Resized], folder: Path) -> dict[str, ImageResult]:
        """Write a shard as its images arrive, and add it to the cache; their results."""
        results: dict[str, ImageResult] = {}
        keys: dict[str, str] = {}

        def members() -> Iterator[tuple[str, bytes]]:
            for image in images:
                results[image.name] = image.result
                keys[image.name] = image.key
                self.decoded_count += image.decoded
                if not isinstance(image.result, ImageError):
                    yield png_name(image.name), image.png

        part = folder / "part"
        write_shard(part, members())
        usable: list[tuple[str, str, dict[str, Any]]] = []
        refusals: list[tuple[str, dict[str, Any]]] = []
        for name, result in results.items():
            if not isinstance(result, ImageError):
                usable.append((keys[name], png_name(name), result))
            elif not isinstance(result, UnreadError):  # unread bytes may be readable next time
                facts = {"why": str(result), "reason": result.reason}
                refusals.append((keys[name], facts))

        file_name = self._shard_name(results)
        if file_name is None:
            part.unlink()
        else:
            self._cache.add_shard(part.rename(folder / file_name), usable)
        self._cache.add_refusals(refusals)
        return results


def describe(image: Decoded) -> dict[str, Any]:
    """Metadata of an image for its records, but for the number of frames."""
    metadata: dict[str, Any] = {
        "source_size": [image.width, image.height],
        "source_mode": image.mode,
        **image_facts(image.image),
    }
    if image.tags is not None:
        metadata["dicom"] = image.tags.as_fields()
    return metadata


def check_modality(image: Decoded, modality: Category) -> None:
    """ImageError if the header of a DICOM file names another modality than its record."""
    declared = image.tags.modality if image.tags is not None else None
    if declared in SPECIFIC_DICOM and declared not in modality.dicom:
        raise ImageError(
            f"modality_type is {modality.names[0]!r}, but Modality in the DICOM header is"
            f" {declared!r}",
            Reason.MODALITY_MISMATCH,
        )


def _cached_result(entry: CachedImage) -> ImageResult:
    if entry.shard is not None:
        return entry.facts
    return ImageError(entry.facts["why"], Reason(entry.facts["reason"]))
