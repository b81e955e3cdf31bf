"""Several DICOM files as one image with many frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom
from stages.corpus.dicom.reader import DicomImage, Levels, read_dicom, representative
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

_APART = 1e-3
"""By how much the direction cosines of slices that lie side by side may differ."""


class _Slices:
    """The frames of several files in a given order; one file is in memory at a time."""

    def __init__(
        self,
        contents: Sequence[bytes],
        order: Sequence[tuple[int, int]],
        settings: Dicom,
        max_pixels: int | None,
    ) -> None:
        """`order`: for each frame its file and its place there."""
        self._contents, self._order, self._settings, self._max_pixels = (
            contents,
            order,
            settings,
            max_pixels,
        )
        self._open: tuple[int, DicomImage] | None = None

    def frame(self, index: int) -> Levels:
        """A frame; ImageError if its pixels are damaged."""
        file, frame = self._order[index]
        if self._open is None or self._open[0] != file:
            self._open = file, read_dicom(self._contents[file], self._settings, self._max_pixels)
        return self._open[1].frames[frame]


def read_series(
    contents: Sequence[bytes], settings: Dicom, max_pixels: int | None = None
) -> DicomImage:
    """The files of one series as one image: sorted along the normal of the slices, else by
    InstanceNumber, else as given.

    `contents` is read twice, a file at a time, and may fetch each when it is asked for. Raises
    ImageError if a file is none of DICOM or cannot be used, and if they are of several series, or
    of several kinds or sizes of image.
    """
    if not contents:
        raise ImageError("a series without files", Reason.IMAGE_SERIES)
    if len(contents) == 1:
        return read_dicom(contents[0], settings, max_pixels)
    if len(contents) > settings.max_frames:
        limited = f"the limit is {settings.max_frames} (dicom.max_frames)"
        raise ImageError(
            f"too many files in a series: {len(contents)}, {limited}", Reason.IMAGE_TOO_LARGE
        )
    found = [
        _without_pixels(content, number, len(contents), settings, max_pixels)
        for number, content in enumerate(contents, start=1)
    ]
    _check_alike(found)
    order = [(file, frame) for file in _sorted(found) for frame in range(found[file].tags.frames)]
    tags = found[0].tags
    if (
        len(order) > settings.max_frames
        or tags.rows * tags.columns * len(order) > settings.max_total_pixels
    ):
        raise ImageError(
            f"too many frames in a series: {len(order)} (dicom.max_frames, dicom.max_total_pixels)",
            Reason.IMAGE_TOO_LARGE,
        )
    middle = representative(len(order), settings)
    tags = replace(found[order[middle][0]].tags, frames=len(order))
    slices = _Slices(contents, order, settings, max_pixels)
    return DicomImage(LazySequence(len(order), slices.frame), middle, tags, found[0].place)


def _without_pixels(
    content: bytes, number: int, count: int, settings: Dicom, max_pixels: int | None
) -> DicomImage:
    try:
        return replace(read_dicom(content, settings, max_pixels), frames=())
    except ImageError as error:
        why, reason = str(error), error.reason
    raise ImageError(f"file {number} of the {count} of a series: {why}", reason)


def _check_alike(found: Sequence[DicomImage]) -> None:
    first = found[0]
    if any(each.place.series != first.place.series for each in found):
        raise ImageError(
            "files of several series in one folder: SeriesInstanceUID differs", Reason.IMAGE_SERIES
        )
    if any(each.tags.modality != first.tags.modality for each in found):
        raise ImageError("files of several modalities in one folder", Reason.IMAGE_SERIES)
    for each in found:
        if (each.tags.rows, each.tags.columns, each.tags.photometric) != (
            first.tags.rows,
            first.tags.columns,
            first.tags.photometric,
        ):
            sizes = (
                f"{first.tags.columns} x {first.tags.rows} and {each.tags.columns} x"
                f" {each.tags.rows}"
            )
            raise ImageError(
                f"images of several sizes or kinds in one series: {sizes}", Reason.IMAGE_SERIES
            )


def _sorted(found: Sequence[DicomImage]) -> list[int]:
    """The files in the order of their slices."""
    numbers = [each.place.number for each in found]
    given = list(range(len(found)))
    by_number = sorted(given, key=lambda at: numbers[at] or 0) if None not in numbers else given
    along = [each.place.normal_position for each in found]
    if None in along or not _parallel(found):
        return by_number
    return sorted(by_number, key=lambda at: along[at] or 0.0)


def _parallel(found: Sequence[DicomImage]) -> bool:
    """Whether all slices lie in the same direction: only then do positions along the normal
    compare.
    """
    first = found[0].place.orientation or ()
    return all(
        max(
            (abs(a - b) for a, b in zip(first, each.place.orientation or (), strict=True)),
            default=1.0,
        )
        < _APART
        for each in found
    )
