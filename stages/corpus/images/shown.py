"""What a question shows: the stored images of a record's files, folders and volumes, in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.core.params import Volume
from stages.corpus.dataset.contrast import BLANK_CONTRAST
from stages.corpus.images.facts import ImageFacts
from stages.corpus.images.frames import frame_name, shown_frames
from stages.corpus.images.resizer import ImageResult, png_name
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import with_header
from stages.corpus.records.images import SHOWN, SOURCES
from stages.corpus.records.records import Record
from stages.corpus.records.texts import RefusedRecord

FramesOfVolumes = Mapping[str, Mapping[int, ImageFacts]]
"""image_path -> index -> facts of the frames that are shown."""


class _Source(NamedTuple):
    """What an image path of a record names: its stored image, and the frames shown of a volume."""

    image: str
    facts: Mapping[str, Any]
    frames: Mapping[str, ImageFacts]
    """Path -> facts, in the order shown; empty: `image` itself is shown."""

    def as_field(self) -> dict[str, Any]:
        hashes = [each["pixel_hash"] for each in self.frames.values() if _has_contrast(each)]
        return {
            "image": self.image,
            "pixel_hash": self.facts["pixel_hash"],
            "perceptual_hash": self.facts["perceptual_hash"],
            "frames": sorted(set(hashes)),
        }


def add_images(
    record: Record,
    results: Mapping[str, ImageResult],
    frames: FramesOfVolumes,
    folder: Path,
    settings: Volume,
) -> dict[str, Any]:
    """The fields of a record with the metadata of its image, the first of several.

    `image` is its path in the image store, `folder`; for a slice of a volume that of the slice.
    With several images, `shown` and `sources` are added. Raises RefusedRecord, naming the file, if
    an image cannot be used, lacks a slice that is named, or if there are more than
    `volume.max_images`.
    """
    sources = [
        _source(path, record, results, frames, folder, settings) for path in record.image_paths
    ]
    shown: list[str] = []
    for source in sources:
        shown += source.frames or [source.image]
    if len(shown) > settings.max_images:
        why = (
            f"{len(shown)} images are shown, more than volume.max_images = {settings.max_images}:"
            " name fewer, or raise it"
        )
        raise RefusedRecord(record.image_path, why, Reason.IMAGE_TOO_LARGE)
    first = sources[0]
    known = with_header(record.fields, first.facts.get("dicom", {}))
    fields = {**known, "image": first.image, **first.facts}
    if len(shown) > 1 or first.frames:
        fields[SOURCES] = [source.as_field() for source in sources]
    if len(shown) > 1:
        fields[SHOWN] = shown
    elif first.frames:
        fields |= {"image": shown[0], **first.frames[shown[0]]}
    return fields


def _source(
    path: str,
    record: Record,
    results: Mapping[str, ImageResult],
    frames: FramesOfVolumes,
    folder: Path,
    settings: Volume,
) -> _Source:
    result = results[path]
    if isinstance(result, ImageError):
        raise RefusedRecord(path, f"the image cannot be used: {result}", result.reason)
    count = result.get("frames", 1)
    try:
        indices = shown_frames(count, settings, record.slices) if count > 1 else ()
    except ImageError as error:
        raise RefusedRecord(path, str(error), error.reason) from error
    if record.slices and count == 1:
        why = f"slices {list(record.slices)} of an image that is no volume: leave them out"
        raise RefusedRecord(path, why, Reason.IMAGE_SLICE)
    shown = {
        f"{folder.as_posix()}/{frame_name(path, index)}": frames[path][index] for index in indices
    }
    return _Source(f"{folder.as_posix()}/{png_name(path)}", result, shown)


def _has_contrast(facts: ImageFacts) -> bool:
    """Whether a frame is not blank, and so equal to blank ones of other patients."""
    _, contrast = facts["brightness"]
    return bool(contrast >= BLANK_CONTRAST)
