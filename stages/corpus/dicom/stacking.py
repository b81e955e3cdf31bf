"""Order the slices of a series, or the frames of a file, and find what a volume cannot have.

Used only where several slices are shown, or a plane is cut through them: a gap, or a slice that is
there twice, then shows anatomy that is not the patient's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median_low
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.params import Dicom
from stages.corpus.dicom.grayscale import macro_item
from stages.corpus.dicom.headers.elements import Elements, read_elements
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

_KEYWORDS: Final = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
MAX_TILT: Final = 1e-3
"""Largest difference between direction cosines of slices that count as parallel."""
_SAME_PLACE: Final = 0.005
"""Millimetres along the normal between slices that lie at one position."""
_MAX_DEVIATION: Final = 0.2
"""Share of the median distance by which a distance between neighbours may differ from it."""
_MAX_POSITION: Final = 10_000.0
"""Millimetres; what is beyond is no position in a patient, and not quoted."""
_NAMED: Final = 6
"""Slices that a message names."""


class Place(NamedTuple):
    """Where a frame lies in the patient: LPS+, x to the left, y to the back, z to the head."""

    position: tuple[float, ...] | None
    """Of the centre of the first pixel, millimetres; None if unknown."""
    orientation: tuple[float, ...] | None
    """Direction cosines of rows, then of columns; None if unknown."""

    def along(self, normal: NDArray[np.float64]) -> float:
        """Millimetres along a normal; the position must be known."""
        return float(np.dot(normal, self.position or ()))

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector; the orientation must be known."""
        across = np.cross((self.orientation or ())[:3], (self.orientation or ())[3:])
        return np.asarray(across / np.linalg.norm(across), dtype=np.float64)


def read_places(content: bytes, frames: int, settings: Dicom) -> list[Place]:
    """Place of each frame of a DICOM file; ImageError if an element of it is damaged.

    Frames of an enhanced file have one each, in functional groups (PS3.3 C.7.6.16.2.3, .4); a file
    of one frame has one at its top level.
    """
    _, elements = read_elements(content, _KEYWORDS, settings.max_inflated_mb * 2**20)
    each = elements.items("PerFrameFunctionalGroupsSequence")
    if len(each) == frames:
        shared = elements.items("SharedFunctionalGroupsSequence")[:1]
        return [_place_of_group([group, *shared]) for group in each]
    if frames == 1:
        return [_place(elements, elements)]
    return [Place(None, None)] * frames


def stack_order(places: Sequence[Place], names: Sequence[str]) -> list[int] | None:
    """Indices of slices in their order along their normal.

    None if that is unknown, because a slice does not say where it lies, and if all lie at one
    position, as the images of a perfusion. `names` is what messages call the slices.

    Raises ImageError (image-volume) for slices that are not parallel, that lie at one position, and
    for neighbours whose distance is not that of the others by more than a fifth.
    """
    _check_parallel(places, names)
    if any(place.position is None or place.orientation is None for place in places):
        return None
    normal = places[0].normal
    along = [place.along(normal) for place in places]
    if max(along) - min(along) <= _SAME_PLACE:
        return None
    order = sorted(range(len(places)), key=lambda index: along[index])
    _check_places([along[index] for index in order], [names[index] for index in order])
    return order


def stack_affine(
    places: Sequence[Place], spacing: tuple[float, float] | None
) -> NDArray[np.float64] | None:
    """(column, row, slice) to millimetres, RAS+ as nibabel's; None if it is unknown.

    `places`: of slices in order, as `stack_order` gives it; spacing: between rows, then columns, in
    millimetres. Without one pixels count as 1 mm: directions do not depend on it.
    """
    first, last = places[0], places[-1]
    if first.position is None or last.position is None or first.orientation is None:
        return None
    step = np.subtract(last.position, first.position) / max(len(places) - 1, 1)
    if not step.any():
        return None
    between_rows, between_columns = spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.orientation[:3], between_columns)
    affine[:3, 1] = np.multiply(first.orientation[3:], between_rows)
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _place_of_group(groups: list[Elements]) -> Place:
    position = macro_item(groups, "PlanePositionSequence")
    orientation = macro_item(groups, "PlaneOrientationSequence")
    return _place(position, orientation)


def _place(with_position: Elements | None, with_orientation: Elements | None) -> Place:
    position = orientation = None
    if with_position is not None:
        position = with_position.decimals("ImagePositionPatient", 3)
    if position is not None and max(map(abs, position)) > _MAX_POSITION:
        position = None
    if with_orientation is not None:
        orientation = with_orientation.decimals("ImageOrientationPatient", 6)
    if orientation is not None and not _is_orientation(orientation):
        orientation = None
    return Place(position, orientation)


def _is_orientation(cosines: tuple[float, ...]) -> bool:
    """Whether rows and columns have unit length and a right angle, but for rounding."""
    row, column = cosines[:3], cosines[3:]
    return (
        math.isclose(math.hypot(*row), 1, abs_tol=0.01)
        and math.isclose(math.hypot(*column), 1, abs_tol=0.01)
        and abs(float(np.dot(row, column))) < 0.01
    )


def _check_parallel(places: Sequence[Place], names: Sequence[str]) -> None:
    """ImageError naming the slices that are not parallel to most."""
    groups: list[tuple[tuple[float, ...], list[str]]] = []
    for place, name in zip(places, names, strict=True):
        if place.orientation is None:
            continue
        for cosines, members in groups:
            if np.abs(np.subtract(cosines, place.orientation)).max() < MAX_TILT:
                members.append(name)
                break
        else:
            groups.append((place.orientation, [name]))
            if len(groups) > _NAMED:
                break  # a radial acquisition: the groups that there are say enough
    if len(groups) < 2:
        return
    most = max(groups, key=lambda group: len(group[1]))
    others: list[str] = []
    for group in groups:
        others += group[1] if group is not most else []
    raise ImageError(
        f"slices of several orientations: {_listed(others)} not parallel to the others, as a"
        " localiser is not; keep them in a folder of their own",
        Reason.IMAGE_VOLUME,
    )


def _check_places(along: Sequence[float], names: Sequence[str]) -> None:
    """ImageError for a slice that is there twice, and for an uneven distance; both are sorted."""
    distances = np.diff(along)
    twice = np.flatnonzero(distances <= _SAME_PLACE)
    if len(twice):
        at = int(twice[0])
        more = f", and {len(twice) - 1} more such pairs" if len(twice) > 1 else ""
        raise ImageError(
            f"{names[at]} and {names[at + 1]} lie at one position, {along[at]:.1f} mm along the"
            f" slices' normal{more}: remove copies; a volume that is there several times, as at"
            " several times or echoes, needs a folder for each",
            Reason.IMAGE_VOLUME,
        )
    usual = float(median_low(distances.tolist()))
    uneven = np.flatnonzero(np.abs(distances - usual) > _MAX_DEVIATION * usual)
    if len(uneven):
        at = int(uneven[0])
        missing = round(float(distances[at]) / usual) - 1
        slices = "1 slice seems" if missing == 1 else f"{missing} slices seem"
        seems = f": about {slices} to be missing" if missing > 0 else ""
        raise ImageError(
            f"{names[at]} and {names[at + 1]} are neighbours, at {along[at]:.1f} and"
            f" {along[at + 1]:.1f} mm along the slices' normal, {distances[at]:.1f} mm from each"
            f" other, while most are {usual:.1f} mm{seems}",
            Reason.IMAGE_VOLUME,
        )


def _listed(names: Sequence[str]) -> str:
    """As "file 2, file 7 and 3 more are", or "file 2 is"."""
    if len(names) == 1:
        return f"{names[0]} is"
    shown = ", ".join(names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{shown}{more} are"
