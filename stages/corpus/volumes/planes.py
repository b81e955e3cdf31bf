"""Reorient volumes to the planes that radiologists look at, by how their voxels lie in the patient.

Affines are nibabel's: voxel indices to millimetres, x to the patient's right, y to the front and z
to the head (RAS+). Slices are shown in the radiological convention:

| plane | to the right | down | from the first to the last |
|---|---|---|---|
| axial | patient's left | back | feet to head |
| coronal | patient's left | feet | front to back |
| sagittal | back | feet | patient's left to right |

The last column is where the slices' normal points, by which DICOM series are sorted too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final, Literal, cast

import numpy as np
from nibabel.affines import obliquity
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from stages.core.iteration.lazy_sequence import LazySequence
from stages.corpus.dicom.reader import Levels
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

Plane = Literal["axial", "coronal", "sagittal"]
Affine = NDArray[np.float64]
"""(4, 4), voxel indices to millimetres, RAS+."""
Orientation = NDArray[np.float64]
"""(3, 2), as nibabel's orientations: of each voxel axis, which one of right, down and through it
becomes, and whether its direction stays (1) or not (-1).
"""

_CODES: Final[dict[Plane, tuple[str, str, str]]] = {
    "axial": ("L", "P", "S"),
    "coronal": ("L", "I", "P"),
    "sagittal": ("P", "I", "R"),
}
"""Where a slice's rows run to, its columns, and the slices of a volume."""
_PLANE_ACROSS: Final[tuple[Plane, Plane, Plane]] = ("sagittal", "coronal", "axial")
"""Axis of RAS+ -> the plane whose slices follow each other along it."""
_MAX_OBLIQUITY: Final = 5.0
"""Degrees between a voxel axis and the patient's, beyond which a plane is not cut."""
_AS_STORED: Final[Orientation] = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


def is_regular(affine: Affine) -> bool:
    """Whether an affine says of every voxel where it lies."""
    if not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        return False
    # of unit vectors: a determinant of 1e-3 is a parallelepiped that is all but flat
    return abs(float(np.linalg.det(affine[:3, :3] / lengths))) > 1e-3


def plane_orientation(affine: Affine | None, plane: Plane) -> Orientation:
    """Orientation in which the slices of a volume show a plane.

    Raises ImageError if it is not known how the volume lies in the patient, or if it is oblique.
    """
    if affine is None:
        raise ImageError(
            f"volume.plane is {plane}, and the file does not say how its slices lie in the patient",
            Reason.IMAGE_VOLUME,
        )
    # the arc cosine of a number that was rounded to more than 1 is not a number: no angle
    with np.errstate(invalid="ignore"):
        angle = math.degrees(float(np.nan_to_num(obliquity(affine)).max()))
    if angle > _MAX_OBLIQUITY:
        raise ImageError(
            f"volume.plane is {plane}, and the volume is oblique, by {angle:.0f} degrees:"
            f" at most {_MAX_OBLIQUITY:.0f} are taken as none",
            Reason.IMAGE_VOLUME,
        )
    return _reorientation(affine, _orientation_to(*_CODES[plane]))


def upright_orientation(affine: Affine | None) -> Orientation:
    """Orientation in which a volume's third axis leads from slice to slice, as stored.

    The slices get the orientation of the plane that is nearest to them; of an unknown position
    they stay as they are, the first axis to the right, the second one down.
    """
    if affine is None:
        return _AS_STORED
    across, direction = io_orientation(affine)[2]
    target = _orientation_to(*_CODES[_PLANE_ACROSS[int(across)]])
    target[2, 1] = direction
    return _reorientation(affine, target)


def reorient(voxels: NDArray[Any], orientation: Orientation) -> NDArray[Any]:
    """A view of voxels (i, j, k) as (through, down, right): a slice for each first index."""
    return cast(NDArray[Any], apply_orientation(voxels, orientation)).swapaxes(0, 2)


def cut_size(size: tuple[int, int, int], orientation: Orientation) -> tuple[int, int, int]:
    """(slices, rows, columns) of a reoriented volume, from the sizes of its axes."""
    right, down, through = (
        size[int(np.flatnonzero(orientation[:, 0] == axis)[0])] for axis in range(3)
    )
    return through, down, right


def cut(frames: Sequence[Levels], count: int, orientation: Orientation) -> Sequence[Levels]:
    """The `count` slices of a reoriented stack of frames, each (rows, columns) or (.., .., 3).

    `orientation`: of the axes columns, rows, frames. A frame is decoded when its slice is accessed,
    or, if every slice has a line of every frame, all frames when the first slice is: in memory are
    then all pixels of the stack, in 8 bits. Access may raise ImageError.
    """
    through, direction = orientation[2]
    if int(through) != 2:
        return LazySequence(count, _Across(frames, orientation).slice_at)

    def slice_at(index: int) -> Levels:
        frame = frames[index if direction > 0 else count - 1 - index]
        return np.ascontiguousarray(reorient(frame.swapaxes(0, 1)[:, :, None], orientation)[0])

    return LazySequence(count, slice_at)


class _Across:
    """Frames as an array, for slices across them."""

    def __init__(self, frames: Sequence[Levels], orientation: Orientation) -> None:
        self._frames, self._orientation = frames, orientation

    def slice_at(self, index: int) -> Levels:
        """A slice with a line of every frame."""
        return np.ascontiguousarray(self._slices[index])

    @cached_property
    def _slices(self) -> Levels:
        first = self._frames[0]
        stack = np.empty((len(self._frames), *first.shape), dtype=np.uint8)
        for number, frame in enumerate(self._frames):
            stack[number] = frame
        return reorient(stack.swapaxes(0, 2), self._orientation)


def _orientation_to(*codes: str) -> Orientation:
    """Orientation of axes that run to these directions, of L, R, P, A, I and S."""
    return np.asarray(axcodes2ornt(codes), dtype=np.float64)


def _reorientation(affine: Affine, target: Orientation) -> Orientation:
    """What turns voxels that lie as an affine says into a target orientation."""
    return np.asarray(ornt_transform(io_orientation(affine), target), dtype=np.float64)
