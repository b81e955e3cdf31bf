"""Frames of volumes that questions show: chosen, kept in shards of their own, and cached.

The frames of a volume at Images/a/b lie in the image store at @frames/a/b/0007.png, numbered from
1. Each is an entry of the image cache beside the volume's own image, so that another choice of
frames decodes only the volumes, and a run with the same choice none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from stages.core.params import Volume
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.images.decoding import ENCODER, ImageError, encode
from stages.corpus.images.facts import ImageFacts, image_facts
from stages.corpus.images.image_cache import ImageCache
from stages.corpus.images.shard_writer import shard_name, write_shard
from stages.corpus.records.images import FRAMES
from stages.corpus.volumes.selection import select_frames

Slices = tuple[int, ...]
"""Frames that a question names, from 1, in its order; empty: as the settings choose."""


def frame_name(image_path: str, index: int) -> str:
    """Member of the image store for a frame (from 0) of the volume at image_path."""
    return f"{FRAMES}/{image_path.removeprefix(IMAGES)}/{index + 1:04d}.png"


def shown_frames(count: int, settings: Volume, slices: Slices) -> tuple[int, ...]:
    """Indices (from 0) of the frames that a question shows of a volume of `count`, in order.

    Empty if it shows the volume's representative image alone, as `volume.frames: 1` says. Raises
    ImageError for a slice that the volume does not have, and for more than `volume.max_images`.
    """
    if not slices and not settings.several:
        return ()
    return select_frames(count, settings, slices)


def wanted_frames(
    count: int, settings: Volume, slices_of_questions: Iterable[Slices]
) -> tuple[int, ...]:
    """Indices of the frames, of `count`, that any of some questions about a volume shows, sorted.

    A question that names slices the volume does not have is left out: its record is refused.
    """
    indices: set[int] = set()
    for slices in slices_of_questions:
        with suppress(ImageError):
            indices.update(shown_frames(count, settings, slices))
    return tuple(sorted(indices))


def describe_frames(frames: Sequence[Image.Image], wanted: Sequence[int]) -> dict[int, ImageFacts]:
    """Facts of some frames; all are decoded. ImageError if any is damaged."""
    return {index: image_facts(frame) for index, frame in enumerate(frames) if index in wanted}


class VolumeFrames:
    """The frames to keep of the volumes of one modality.

    Args:
        folder: The image store of the modality.
        cache: Where frames of earlier runs are found.
        settings: Which frames a question shows that names none.
        slices: image_path -> the slices that the questions about it name, each of them.
    """

    def __init__(
        self,
        folder: Path,
        cache: ImageCache,
        settings: Volume,
        slices: Mapping[str, Collection[Slices]],
    ) -> None:
        self._folder = folder
        self._cache = cache
        self._settings = settings
        self._slices = slices
        self.facts: dict[str, dict[int, ImageFacts]] = {}
        """image_path -> index -> facts of the frames that are kept of a volume."""

    def stacked(self, image_path: str) -> bool:
        """Whether any question shows several slices, or names one, so that their order matters."""
        return self._settings.several or any(self._slices[image_path])

    def find(self, image_path: str, key: str, count: int) -> bool:
        """Take the wanted frames from the cache; False if any is missing there.

        `key`: the cache key of the volume.
        """
        wanted = wanted_frames(count, self._settings, self._slices[image_path])
        entries = self._cache.lookup([_key(key, index) for index in wanted])
        if len(entries) < len(wanted):
            return False
        facts = {index: entries[_key(key, index)].facts for index in wanted}
        if facts:
            target = self._folder / _shard_name(image_path, facts)
            if not target.exists() and not self._cache.link_shard(target.name, target):
                return False
        self.facts[image_path] = facts
        return True

    def write(self, image_path: str, key: str, frames: Sequence[Image.Image]) -> None:
        """Write the shard of a volume's wanted frames; ImageError if any frame is damaged.

        All frames are decoded: of a damaged volume, nobody knows what the others show.
        """
        wanted = wanted_frames(len(frames), self._settings, self._slices[image_path])
        facts: dict[int, ImageFacts] = {}

        def members() -> Iterator[tuple[str, bytes]]:
            for index, frame in enumerate(frames):
                if index in wanted:
                    facts[index] = image_facts(frame)
                    yield frame_name(image_path, index), encode(frame)

        # by the name: another volume may have the same bytes, and so the same key
        part = self._folder / f"{hashlib.sha256(image_path.encode()).hexdigest()}.part"
        try:
            write_shard(part, members())
            if facts:
                target = part.replace(self._folder / _shard_name(image_path, facts))
                self._cache.add_shard(
                    target,
                    [
                        (_key(key, index), frame_name(image_path, index), each)
                        for index, each in facts.items()
                    ],
                )
        finally:
            part.unlink(missing_ok=True)
        self.facts[image_path] = facts


def _shard_name(image_path: str, facts: Mapping[int, ImageFacts]) -> str:
    """File name of a volume's shard, from names, pixels and encoder."""
    return shard_name(
        (frame_name(image_path, index), f"{each['pixel_hash']} {ENCODER}")
        for index, each in facts.items()
    )


def _key(key: str, index: int) -> str:
    """Cache key of a frame of the volume with a cache key."""
    return hashlib.sha256(f"{key} frame {index}".encode()).hexdigest()
