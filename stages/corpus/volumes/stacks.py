"""Read an image of DICOM or NIfTI as a stack: the slices of a plane, or the frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.core.iteration.import_lock import IMPORT_LOCK
from stages.core.iteration.lazy_sequence import LazySequence
from stages.core.params import Dicom, Volume
from stages.corpus.dicom.reader import Levels, Tags, representative
from stages.corpus.dicom.series import read_series
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason


@dataclass(frozen=True)
class FrameStack:
    """Slices or frames in order, of one size."""

    frames: Sequence[Levels]
    """Decoded on access, which may raise ImageError."""
    representative: int
    """Index of the one that stands for all."""
    width: int
    height: int
    mode: str
    """Photometric interpretation of DICOM; of NIfTI the type of its voxels, as int16."""
    tags: Tags | None
    """Of DICOM, the elements of the header that are passed on."""


def read_dicom_stack(
    contents: Sequence[bytes],
    dicom: Dicom,
    volume: Volume,
    max_pixels: int,
    *,
    stacked: bool,
    names: Sequence[str] = (),
) -> FrameStack:
    """Read a DICOM file, or the files of a series.

    stacked, names: see `read_series`; with volume.plane the first is as if set. An image of one
    frame is as it was stored, whatever the plane. Raises ImageError.
    """
    plane = volume.plane
    stacked = stacked or plane != "acquired"
    image = read_series(contents, dicom, max_pixels, volume.window, stacked=stacked, names=names)
    tags = image.tags
    if plane == "acquired" or len(image.frames) == 1:
        return FrameStack(
            frames=image.frames,
            representative=image.representative,
            width=tags.columns,
            height=tags.rows,
            mode=tags.photometric,
            tags=tags,
        )
    # imports nibabel, which most corpora do not need
    with IMPORT_LOCK:
        from stages.corpus.volumes.planes import cut, cut_size, plane_orientation

    orientation = plane_orientation(image.affine, plane)
    count, height, width = cut_size((tags.columns, tags.rows, len(image.frames)), orientation)
    _check_size(count, height, width, dicom, max_pixels)
    return FrameStack(
        frames=cut(image.frames, count, orientation),
        representative=representative(count, dicom),
        width=width,
        height=height,
        mode=tags.photometric,
        tags=tags,
    )


def read_nifti_stack(content: bytes, dicom: Dicom, volume: Volume, max_pixels: int) -> FrameStack:
    """Read a NIfTI file: slices along its third axis, or those of volume.plane.

    Raises ImageError.
    """
    # imports nibabel, which most corpora do not need
    with IMPORT_LOCK:
        from stages.corpus.volumes.nifti import read_nifti
        from stages.corpus.volumes.planes import (
            plane_orientation,
            reorient,
            upright_orientation,
        )

    image = read_nifti(content, dicom)
    if volume.plane == "acquired" or image.voxels.shape[2] == 1:
        orientation = upright_orientation(image.affine)
    else:
        orientation = plane_orientation(image.affine, volume.plane)
    voxels = reorient(image.voxels, orientation)
    count, height, width = voxels.shape
    _check_size(count, height, width, dicom, max_pixels)
    grey = image.grey(volume.window)
    return FrameStack(
        frames=LazySequence(count, lambda index: grey(voxels[index])),
        representative=representative(count, dicom),
        width=width,
        height=height,
        mode=image.voxels.dtype.name,
        tags=None,
    )


def _check_size(count: int, height: int, width: int, dicom: Dicom, max_pixels: int) -> None:
    if count > dicom.max_frames:
        raise ImageError(
            f"too many slices: {count}, the limit is {dicom.max_frames} (dicom.max_frames)",
            Reason.IMAGE_TOO_LARGE,
        )
    if width * height > max_pixels:
        raise ImageError(
            f"too many pixels in a slice: {width} x {height}, the limit is {max_pixels}"
            " (resize.max_megapixels)",
            Reason.IMAGE_TOO_LARGE,
        )
    if count > 1 and min(width, height) == 1:
        raise ImageError(
            f"slices of {width} x {height}, which are lines and no images: another volume.plane"
            " may have some",
            Reason.IMAGE_VOLUME,
        )
