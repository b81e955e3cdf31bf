"""Read the DICOM files of a series as one image with many frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Final

from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom
from stages.corpus.dicom.reader import DicomImage, Levels, read_dicom, representative
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

_MAX_TILT: Final = 1e-3
"""Largest difference between direction cosines of slices that count as parallel."""


class _Slices:
    """Frames of several files in a given order, with one file in memory at a time."""

    def __init__(
        self,
        contents: Sequence[bytes],
        order: Sequence[tuple[int, int]],
        settings: Dicom,
        max_pixels: int | None,
    ) -> None:
        """`order`: per frame the index of its file, and its own index in that file."""
        self._contents = contents
        self._order = order
        self._settings = settings
        self._max_pixels = max_pixels
        self._open: tuple[int, DicomImage] | None = None

    def frame(self, index: int) -> Levels:
        """Decode a frame; ImageError if its pixels are damaged."""
        file, frame = self._order[index]
        if self._open is None or self._open[0] != file:
            self._open = file, read_dicom(self._contents[file], self._settings, self._max_pixels)
        return self._open[1].frames[frame]


def read_series(
    contents: Sequence[bytes], settings: Dicom, max_pixels: int | None = None
) -> DicomImage:
    """Read the files of a series, sorted along the normal of the slices.

    Without comparable positions they are sorted by InstanceNumber, else left in the order given.
    `contents` is read twice, a file at a time, and may fetch each on access.

    Raises ImageError if a file is not DICOM or cannot be used, and if the files differ in series,
    modality, size or kind of image.
    """
    if not contents:
        raise ImageError("a series without files", Reason.IMAGE_SERIES)
    if len(contents) == 1:
        return read_dicom(contents[0], settings, max_pixels)
    if len(contents) > settings.max_frames:
        raise ImageError(
            f"too many files in a series: {len(contents)}, the limit is {settings.max_frames}"
            " (dicom.max_frames)",
            Reason.IMAGE_TOO_LARGE,
        )
    images = [
        _read_without_frames(content, number, len(contents), settings, max_pixels)
        for number, content in enumerate(contents, start=1)
    ]
    _check_alike(images)
    order: list[tuple[int, int]] = []
    for file in _sorted_files(images):
        order += product([file], range(images[file].tags.frames))
    tags = images[0].tags
    pixels = tags.rows * tags.columns * len(order)
    if len(order) > settings.max_frames or pixels > settings.max_total_pixels:
        raise ImageError(
            f"too many frames in a series: {len(order)} (dicom.max_frames, dicom.max_total_pixels)",
            Reason.IMAGE_TOO_LARGE,
        )
    middle = representative(len(order), settings)
    middle_file, _ = order[middle]
    return DicomImage(
        frames=LazySequence(len(order), _Slices(contents, order, settings, max_pixels).frame),
        representative=middle,
        tags=replace(images[middle_file].tags, frames=len(order)),
        position=images[0].position,
    )


def _read_without_frames(
    content: bytes, number: int, count: int, settings: Dicom, max_pixels: int | None
) -> DicomImage:
    """Read and check a file, but let go of its pixels; `number` counts from 1."""
    try:
        return replace(read_dicom(content, settings, max_pixels), frames=())
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


def _sorted_files(images: Sequence[DicomImage]) -> list[int]:
    """Indices of the files in the order of their slices."""
    order = list(range(len(images)))
    numbers = [image.position.number for image in images]
    if None not in numbers:
        order.sort(key=lambda file: numbers[file] or 0)
    along_normal = [image.position.along_normal for image in images]
    if None not in along_normal and _are_parallel(images):
        # the sort is stable: slices in the same place stay in the order of their numbers
        order.sort(key=lambda file: along_normal[file] or 0.0)
    return order


def _are_parallel(images: Sequence[DicomImage]) -> bool:
    """Whether all slices have one orientation: only then are positions along it comparable."""
    first = images[0].position.orientation or ()
    for image in images:
        cosines = image.position.orientation or ()
        differences = [abs(a - b) for a, b in zip(first, cosines, strict=True)]
        if max(differences, default=1.0) >= _MAX_TILT:
            return False
    return True
