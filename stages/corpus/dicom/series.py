"""Read the DICOM files of a series as one image with many frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom
from stages.corpus.dicom.header import SeriesPosition
from stages.corpus.dicom.headers.elements import read_elements
from stages.corpus.dicom.reader import DicomImage, Levels, read_dicom, representative
from stages.corpus.dicom.stacking import MAX_TILT, Place, read_places, stack_affine, stack_order
from stages.corpus.quarantine.image_errors import ImageError, file_place, located
from stages.corpus.quarantine.reasons import Reason

_MAX_NUMBER: Final = 99_999
"""An IS element is unbounded: a date in the wrong place is not quoted."""


@dataclass(frozen=True)
class _Reading:
    """How the files of a series are read: see `read_series`."""

    names: Sequence[str]
    count: int
    settings: Dicom
    max_pixels: int | None
    window: Sequence[float] | None
    stacked: bool

    def file(self, content: bytes) -> DicomImage:
        """Read a file of several."""
        return read_dicom(content, self.settings, self.max_pixels, self.window, in_series=True)

    def place(self, file: int, number: int | None) -> str:
        """A file as messages name it, by its index; number: its InstanceNumber, if known."""
        known = number is not None and 0 <= number <= _MAX_NUMBER
        instance = f", InstanceNumber {number}" if known else ""
        return file_place(self.names, file, self.count, instance)


class _Slices:
    """Frames of several files in a given order, with one file in memory at a time."""

    def __init__(
        self,
        contents: Sequence[bytes],
        order: Sequence[tuple[int, int]],
        positions: Sequence[SeriesPosition],
        reading: _Reading,
    ) -> None:
        """`order`: per frame the index of its file, and its own in that; `positions`: of files."""
        self._contents = contents
        self._order = order
        self._positions = positions
        self._reading = reading
        self._open: tuple[int, DicomImage] | None = None

    def frame(self, index: int) -> Levels:
        """Decode a frame; ImageError, naming its file, if its pixels are damaged."""
        file, frame = self._order[index]

        def decode() -> Levels:
            if self._open is None or self._open[0] != file:
                self._open = file, self._reading.file(self._contents[file])
            return self._open[1].frames[frame]

        return located(self._reading.place(file, self._positions[file].number), decode)


def read_series(
    contents: Sequence[bytes],
    settings: Dicom,
    max_pixels: int | None = None,
    window: Sequence[float] | None = None,
    *,
    stacked: bool = False,
    names: Sequence[str] = (),
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
        names: Of the files, for messages; without them their numbers.

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
    reading = _Reading(names, len(contents), settings, max_pixels, window, stacked)
    images: list[DicomImage] = []
    places: list[list[Place]] = []
    for file, content in enumerate(contents):
        image, its_places = _read_without_frames(content, file, reading)
        images.append(image)
        places.append(its_places)
    names = names or [f"file {number}" for number in range(1, len(contents) + 1)]
    _check_alike(images, names)
    order: list[tuple[int, int]] = []
    # stacked, by number first, which is their order where positions say nothing
    for file in _sorted_files(images, by_position=not stacked):
        order += product([file], range(images[file].tags.frames))
    tags = images[0].tags
    pixels = tags.rows * tags.columns * len(order)
    if len(order) > settings.max_frames:
        raise ImageError(
            f"too many frames in a series: {len(order)}, the limit is {settings.max_frames}"
            " (dicom.max_frames)",
            Reason.IMAGE_TOO_LARGE,
        )
    if pixels > settings.max_total_pixels:
        raise ImageError(
            f"too many pixels: {tags.columns} x {tags.rows} in {len(order)} frames, the limit is"
            f" {settings.max_total_pixels} (dicom.max_total_pixels)",
            Reason.IMAGE_TOO_LARGE,
        )
    affine = None
    if stacked:
        order, affine = _stack(order, places, names, tags.pixel_spacing)
    slices = _Slices(contents, order, [image.position for image in images], reading)
    middle = representative(len(order), settings)
    middle_file, _ = order[middle]
    return DicomImage(
        frames=LazySequence(len(order), slices.frame),
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
    files: Sequence[str],
    spacing: tuple[float, float] | None,
) -> tuple[list[tuple[int, int]], NDArray[np.float64] | None]:
    """(file, frame) in the order of slices and the affine; as they are and None if unknown."""
    alone = all(len(of_file) == 1 for of_file in places)
    names = [
        files[file] if alone else f"frame {frame + 1} of {files[file]}" for file, frame in order
    ]
    in_order = [places[file][frame] for file, frame in order]
    indices = stack_order(in_order, names)
    if indices is None:
        return order, None
    affine = stack_affine([in_order[index] for index in indices], spacing)
    return [order[index] for index in indices], affine


def _read_without_frames(
    content: bytes, file: int, reading: _Reading
) -> tuple[DicomImage, list[Place]]:
    """Read and check a file, but let go of its pixels; the places of its frames, if stacked.

    `file`: its index.
    """

    def read() -> tuple[DicomImage, list[Place]]:
        image = replace(reading.file(content), frames=())
        if not reading.stacked:
            return image, []
        return image, read_places(content, image.tags.frames, reading.settings)

    return located(lambda: reading.place(file, _number(content, reading.settings)), read)


def _number(content: bytes, settings: Dicom) -> int | None:
    """InstanceNumber of a file that could not be read; None if it cannot be found."""
    try:
        _, elements = read_elements(content, ("InstanceNumber",), settings.max_inflated_mb * 2**20)
        return (elements.integers("InstanceNumber", 1) or (None,))[0]
    except ImageError:
        return None


def _check_alike(images: Sequence[DicomImage], names: Sequence[str]) -> None:
    """ImageError naming a file that differs from the first one."""
    first = images[0]
    for image, name in zip(images, names, strict=True):
        both = f"{names[0]} and {name}"
        if image.position.series != first.position.series:
            why = f"files of several series in one folder: SeriesInstanceUID of {both} differ"
            raise ImageError(why, Reason.IMAGE_SERIES)
        if image.tags.modality != first.tags.modality:
            why = f"files of several modalities in one folder: {both}"
            raise ImageError(why, Reason.IMAGE_SERIES)
        if _kind(image) != _kind(first):
            raise ImageError(
                f"images of several sizes or kinds in one series: {both},"
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
