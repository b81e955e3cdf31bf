"""Read the DICOM files of a series as one image with many frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom
from stages.corpus.dicom.reader import DicomImage, Levels, read_dicom, representative
from stages.corpus.dicom.stacking import MAX_TILT, Place, read_places, stack_affine, stack_order
from stages.corpus.quarantine.image_errors import ImageError, UnreadError
from stages.corpus.quarantine.reasons import Reason

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Reading:
    """How the files of a series are read: see `read_series`."""

    settings: Dicom
    max_pixels: int | None
    window: Sequence[float] | None
    stacked: bool

    def file(self, content: bytes) -> DicomImage:
        """Read a file of several."""
        return read_dicom(content, self.settings, self.max_pixels, self.window, in_series=True)


class _Slices:
    """Frames of several files in a given order, with one file in memory at a time."""

    def __init__(
        self, contents: Sequence[bytes], order: Sequence[tuple[int, int]], reading: _Reading
    ) -> None:
        """`order`: per frame the index of its file, and its own index in that file."""
        self._contents = contents
        self._order = order
        self._reading = reading
        self._open: tuple[int, DicomImage] | None = None

    def frame(self, index: int) -> Levels:
        """Decode a frame; ImageError, with the number of its file, if its pixels are damaged."""
        file, frame = self._order[index]

        def decode() -> Levels:
            if self._open is None or self._open[0] != file:
                self._open = file, self._reading.file(self._contents[file])
            return self._open[1].frames[frame]

        return _numbered(file + 1, len(self._contents), decode)


def read_series(
    contents: Sequence[bytes],
    settings: Dicom,
    max_pixels: int | None = None,
    window: Sequence[float] | None = None,
    *,
    stacked: bool = False,
) -> DicomImage:
    """Read the files of a series, sorted along the normal of the slices.

    Without comparable positions they are sorted by InstanceNumber, else left in the order given.
    The frames of a file stay in its order, unless they are `stacked`.

    Args:
        contents: The files, read twice, one at a time; each may be fetched on access.
        settings: Group dicom.
        max_pixels: Limit for a single frame, in addition to dicom.max_total_pixels.
        window: (centre, width) of modality values for grey, if there are several frames; None:
            dicom.ct_window, or the files' own.
        stacked: Sort frames by their own positions too, and refuse slices that are no volume:
            stages/corpus/dicom/stacking.py.

    Raises ImageError if a file is not DICOM or cannot be used, and if the files differ in series,
    modality, size or kind of image.
    """
    if not contents:
        raise ImageError("a series without files", Reason.IMAGE_SERIES)
    if len(contents) == 1:
        image = read_dicom(contents[0], settings, max_pixels, window)
        return _stacked(image, contents[0], settings) if stacked else image
    if len(contents) > settings.max_frames:
        raise ImageError(
            f"too many files in a series: {len(contents)}, the limit is {settings.max_frames}"
            " (dicom.max_frames)",
            Reason.IMAGE_TOO_LARGE,
        )
    reading = _Reading(settings, max_pixels, window, stacked)
    images: list[DicomImage] = []
    places: list[list[Place]] = []
    for number, content in enumerate(contents, start=1):
        image, its_places = _read_without_frames(content, number, len(contents), reading)
        images.append(image)
        places.append(its_places)
    _check_alike(images)
    order: list[tuple[int, int]] = []
    # stacked, by number first, which is their order where positions say nothing
    for file in _sorted_files(images, by_position=not stacked):
        order += product([file], range(images[file].tags.frames))
    tags = images[0].tags
    pixels = tags.rows * tags.columns * len(order)
    if len(order) > settings.max_frames or pixels > settings.max_total_pixels:
        raise ImageError(
            f"too many frames in a series: {len(order)} (dicom.max_frames, dicom.max_total_pixels)",
            Reason.IMAGE_TOO_LARGE,
        )
    affine = None
    if stacked:
        order, affine = _stack(order, places, tags.pixel_spacing)
    middle = representative(len(order), settings)
    middle_file, _ = order[middle]
    return DicomImage(
        frames=LazySequence(len(order), _Slices(contents, order, reading).frame),
        representative=middle,
        tags=replace(images[middle_file].tags, frames=len(order)),
        position=images[0].position,
        affine=affine,
    )


def _stacked(image: DicomImage, content: bytes, settings: Dicom) -> DicomImage:
    """A file's frames in the order of their slices, if they say where these lie."""
    frames = image.frames
    if len(frames) == 1:
        return image
    places = read_places(content, len(frames), settings)
    order = stack_order(places, [f"frame {number}" for number in range(1, len(frames) + 1)])
    if order is None:
        return image
    return replace(
        image,
        frames=LazySequence(len(frames), lambda index: frames[order[index]]),
        affine=stack_affine([places[index] for index in order], image.tags.pixel_spacing),
    )


def _stack(
    order: list[tuple[int, int]],
    places: Sequence[Sequence[Place]],
    spacing: tuple[float, float] | None,
) -> tuple[list[tuple[int, int]], NDArray[np.float64] | None]:
    """(file, frame) in the order of slices and the affine; as they are and None if unknown."""
    alone = all(len(of_file) == 1 for of_file in places)
    names = [
        f"file {file + 1}" if alone else f"frame {frame + 1} of file {file + 1}"
        for file, frame in order
    ]
    in_order = [places[file][frame] for file, frame in order]
    indices = stack_order(in_order, names)
    if indices is None:
        return order, None
    affine = stack_affine([in_order[index] for index in indices], spacing)
    return [order[index] for index in indices], affine


def _read_without_frames(
    content: bytes, number: int, count: int, reading: _Reading
) -> tuple[DicomImage, list[Place]]:
    """Read and check a file, but let go of its pixels; the places of its frames, if stacked.

    `number` counts from 1.
    """

    def read() -> tuple[DicomImage, list[Place]]:
        image = replace(reading.file(content), frames=())
        if not reading.stacked:
            return image, []
        return image, read_places(content, image.tags.frames, reading.settings)

    return _numbered(number, count, read)


def _numbered(number: int, count: int, work: Callable[[], Result]) -> Result:
    """What `work` returns; its ImageError with the number of the file, from 1."""
    try:
        return work()
    except UnreadError:
        raise
    except ImageError as error:
        failure = error
    # raised outside the handler, so that the error has no other one as its context
    raise ImageError(f"file {number} of {count} of a series: {failure}", failure.reason)


def _check_alike(images: Sequence[DicomImage]) -> None:
    first = images[0]
    if any(image.position.series != first.position.series for image in images):
        raise ImageError(
            "files of several series in one folder: SeriesInstanceUID differs", Reason.IMAGE_SERIES
        )
    if any(image.tags.modality != first.tags.modality for image in images):
        raise ImageError("files of several modalities in one folder", Reason.IMAGE_SERIES)
    for image in images:
        if _kind(image) != _kind(first):
            raise ImageError(
                "images of several sizes or kinds in one series:"
                f" {first.tags.columns} x {first.tags.rows} and"
                f" {image.tags.columns} x {image.tags.rows}",
                Reason.IMAGE_SERIES,
            )


def _kind(image: DicomImage) -> tuple[int, int, str]:
    return image.tags.rows, image.tags.columns, image.tags.photometric


def _sorted_files(images: Sequence[DicomImage], *, by_position: bool) -> list[int]:
    """Indices of the files in the order of their numbers, or of their slices."""
    order = list(range(len(images)))
    numbers = [image.position.number for image in images]
    if None not in numbers:
        order.sort(key=lambda file: numbers[file] or 0)
    along_normal = [image.position.along_normal for image in images]
    if by_position and None not in along_normal and _are_parallel(images):
        # the sort is stable: slices in the same place stay in the order of their numbers
        order.sort(key=lambda file: along_normal[file] or 0.0)
    return order


def _are_parallel(images: Sequence[DicomImage]) -> bool:
    """Whether all slices have one orientation: only then are positions along it comparable."""
    first = images[0].position.orientation or ()
    for image in images:
        cosines = image.position.orientation or ()
        differences = [abs(a - b) for a, b in zip(first, cosines, strict=True)]
        if max(differences, default=1.0) >= MAX_TILT:
            return False
    return True
