"""Makes the resized images of a modality: takes what the cache has, decodes the rest on all cores,
and packs all into shards.

Memory does not grow with the number of images: they are made a few ahead of the one that is written
next.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.iteration.prefetch import prefetch
from stages.core.iteration.progress import counted
from stages.core.params import Dicom, Resize
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.dicom.headers.modality import modality_slug
from stages.corpus.images.brightness import brightness
from stages.corpus.images.decoding import (
    DECODER,
    ENCODER,
    Decoded,
    ImageError,
    decode_files,
    encode,
)
from stages.corpus.images.hashes import perceptual_hash, pixel_hash
from stages.corpus.images.image_cache import ImageCache, Known
from stages.corpus.images.shard_writer import cut, shard_name, write_shard
from stages.corpus.quarantine.image_errors import UnreadError
from stages.corpus.quarantine.reasons import Reason
from stages.taxonomy import MODALITIES

Fact = dict[str, Any] | ImageError
"""What the records of an image get to know of it, or why it cannot be used."""


class ImageMetadata(Mapping[str, Fact]):
    """image_path -> fact, of very many images: as JSON, which takes a third of the memory."""

    def __init__(self) -> None:
        self._told: dict[str, str | ImageError] = {}

    def add(self, facts: Mapping[str, Fact]) -> None:
        """Take in those of some images."""
        self._told |= {
            name: fact if isinstance(fact, ImageError) else json.dumps(fact)
            for name, fact in facts.items()
        }

    def __getitem__(self, name: str) -> Fact:
        """A fact; KeyError of an image that is unknown."""
        told = self._told[name]
        return dict(json.loads(told)) if isinstance(told, str) else told

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._told)

    def __len__(self) -> int:
        """How many images."""
        return len(self._told)


_AHEAD: Final = 4
"""Images that are read and decoded ahead of the one that is written next, for each core."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """What an image is made from: the corpus's files, each with its SHA-256; `folder`: they are the
    files of a DICOM series.
    """

    files: tuple[tuple[str, str], ...]
    folder: bool


def png_name(image_path: str) -> str:
    """Images/a/b.jpg -> a/b.jpg.png: the old suffix stays, because a/b.jpg and a/b.bmp may be two
    images.
    """
    return f"{image_path.removeprefix(IMAGES)}.png"


class ImageResizer:
    """Makes the images of one modality."""

    def __init__(
        self,
        slug: str,
        sources: Mapping[str, ImageSource],
        fetch: Callable[[str], bytes],
        resize: Resize,
        dicom: Dicom,
        cache: ImageCache,
    ) -> None:
        """`sources`: image_path -> what it is made from; `fetch` gives the bytes of a file, from
        any thread, or raises UnreadError.
        """
        self._slug, self._sources, self._fetch = slug, sources, fetch
        self._resize, self._dicom, self._cache = resize, dicom, cache
        self._decides = [slug, resize.model_dump(mode="json"), dicom.model_dump(mode="json")]
        self._known: dict[str, Known] = {}
        self._frames = Path()
        self.fresh = 0
        """How many images were decoded, not taken from the cache."""

    def make(self, folder: Path, frames: Path) -> ImageMetadata:
        """Write the shards of all images into `folder`, and of further frames into `frames`;
        image_path -> fact.
        """
        self._frames = frames
        facts, left = ImageMetadata(), []
        for shard in cut(sorted(self._sources)):
            known = self._cache.known(sorted({self._key(name) for name in shard}))
            if taken := self._take(shard, known, folder):
                facts.add(taken)
            else:
                left.append(shard)
                self._known |= known
        names = [name for shard in left for name in shard]
        # libvips and Pillow decode, resize and encode without the interpreter's lock
        threads = os.cpu_count() or 1
        with closing(
            prefetch(self._one, names, threads=threads, budget=_AHEAD * threads + 1)
        ) as stream:
            made = counted(stream, len(names), self._slug, "image")
            for shard in left:
                facts.add(self._write(islice(made, len(shard)), folder))
        return facts

    def _key(self, name: str) -> str:
        """What decides a resized image: the bytes it is made from, modality and settings, and what
        decodes it.
        """
        source = self._sources[name]
        parts = [[digest for _, digest in source.files], source.folder, self._decides, DECODER]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _take(
        self, shard: Sequence[str], known: Mapping[str, Known], folder: Path
    ) -> dict[str, Fact] | None:
        """The facts of a shard that could be taken whole from the cache, where it is `known`; None
        if it could not.
        """
        facts = {name: _recall(each) for name in shard if (each := known.get(self._key(name)))}
        if len(facts) < len(shard) or not all(
            self._take_frames(name, fact) for name, fact in facts.items()
        ):
            return None
        name = self._name(facts)
        return facts if name is None or self._cache.take(name, folder / name) else None

    def _take_frames(self, name: str, fact: Fact) -> bool:
        """Whether all frames of an image that has several are there, or could be taken from the
        cache.
        """
        if isinstance(fact, ImageError) or "frames" not in fact:
            return True
        target = self._frames / self._frames_name(name)
        return target.exists() or self._cache.take(target.name, target)

    def _frames_name(self, name: str) -> str:
        # by the name as well: it is in the members' names, and other records may name the same
        # bytes otherwise
        return shard_name([(f"{png_name(name)}/frames", self._key(name))])

    def _name(self, facts: Mapping[str, Fact]) -> str | None:
        """The name of their shard, which the pixels decide, whatever they were decoded by; None if
        no image is usable.
        """
        usable = {name: fact for name, fact in facts.items() if not isinstance(fact, ImageError)}
        return (
            shard_name(
                (png_name(name), f"{fact['pixel_hash']} {ENCODER}") for name, fact in usable.items()
            )
            if usable
            else None
        )

    def _one(self, name: str) -> tuple[str, Fact, bytes, bool]:
        """An image's name, fact and file, and whether it had to be decoded."""
        if known := self._known.get(self._key(name)):
            fact = _recall(known)
            if known.shard is None:
                return name, fact, b"", False
            if self._take_frames(name, fact) and (content := self._cache.read(known)):
                return name, fact, content, False
        source = self._sources[name]
        try:
            contents = LazySequence(
                len(source.files), lambda index: self._fetch(source.files[index][0])
            )
            image = decode_files(contents, self._resize, self._dicom, folder=source.folder)
            _check_modality(image, self._slug)
            return name, self._facts(name, image), encode(image.image), True
        except ImageError as error:
            return name, error, b"", True

    def _facts(self, name: str, image: Decoded) -> dict[str, Any]:
        """What an image's records get to know of it; its frames are written, if it has several."""
        facts: dict[str, Any] = {
            "source_size": [image.width, image.height],
            "source_mode": image.mode,
            "brightness": brightness(image.image),
            "pixel_hash": pixel_hash(image.image),
            "perceptual_hash": perceptual_hash(image.image),
        }
        if image.tags is not None:
            facts["dicom"] = image.tags.as_fields()
        if image.frames:
            facts["frames"] = len(image.frames)
            members = (
                (f"{name.removeprefix(IMAGES)}/{number:04d}.png", encode(frame))
                for number, frame in enumerate(image.frames, start=1)
            )
            self._write_frames(self._frames / self._frames_name(name), members)
        return facts

    def _write_frames(self, path: Path, members: Iterator[tuple[str, bytes]]) -> None:
        part = path.with_suffix(".part")
        try:
            write_shard(part, members)  # a frame that is damaged is an ImageError of its image
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._cache.keep(path, ())

    def _write(
        self, made: Iterable[tuple[str, Fact, bytes, bool]], folder: Path
    ) -> dict[str, Fact]:
        """One shard, as its images come, and the same to the cache; their facts."""
        facts: dict[str, Fact] = {}

        def members() -> Iterator[tuple[str, bytes]]:
            for name, fact, content, fresh in made:
                facts[name] = fact
                self.fresh += fresh
                if not isinstance(fact, ImageError):
                    yield png_name(name), content

        part = folder / "part"
        write_shard(part, members())
        if (name := self._name(facts)) is None:
            part.unlink()
        else:
            kept = [
                (self._key(each), png_name(each), fact)
                for each, fact in facts.items()
                if not isinstance(fact, ImageError)
            ]
            self._cache.keep(part.rename(folder / name), kept)
        unusable = ((each, fact) for each, fact in facts.items() if isinstance(fact, ImageError))
        refused = (
            (self._key(each), fact) for each, fact in unusable if not isinstance(fact, UnreadError)
        )
        self._cache.keep_refusals(
            (key, {"why": str(error), "reason": error.reason}) for key, error in refused
        )
        return facts


def _check_modality(image: Decoded, slug: str) -> None:
    """ImageError if the header of a DICOM file names another modality than its record."""
    if image.tags is not None and modality_slug(image.tags.modality) not in (None, slug):
        why = (
            f"modality_type is {MODALITIES[slug]!r}, but the DICOM header says"
            f" {image.tags.modality!r}"
        )
        raise ImageError(why, Reason.MODALITY_MISMATCH)


def _recall(known: Known) -> Fact:
    return (
        known.facts
        if known.shard is not None
        else ImageError(known.facts["why"], Reason(known.facts["reason"]))
    )
