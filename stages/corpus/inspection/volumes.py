"""Volumes of a corpus and the questions about them: what settings of `volume` have to fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.iteration.import_lock import IMPORT_LOCK
from stages.core.params import Dicom
from stages.corpus.dicom.headers.preamble import is_dicom
from stages.corpus.images.decoding import ImageError
from stages.corpus.records.records import Record
from stages.corpus.volumes.signatures import is_nifti

StoredPlane = Literal["axial", "coronal", "sagittal", "oblique", "unknown"]
"""The plane of a volume's slices as they are stored; "oblique": no plane can be cut through it."""

_PLANE_ACROSS: Final[tuple[StoredPlane, ...]] = ("sagittal", "coronal", "axial")
"""Axis of the patient that slices follow each other along -> their plane."""


class VolumeFacts(NamedTuple):
    """Slices or frames of a volume, and how they lie in the patient."""

    frames: int
    plane: StoredPlane


class FoundVolume(NamedTuple):
    """A volume, and the index of the slice or frame that stands for it."""

    facts: VolumeFacts
    representative: int


class QuestionImages(NamedTuple):
    """What a question shows: its own number of images, and volumes that settings choose from."""

    fixed: int
    """Images that are no volumes, and slices that the question names."""
    volumes: tuple[int, ...]
    """Slices of each volume of which `volume.frames` and `volume.selection` choose."""

    def shown(self, frames: int) -> int:
        """Images that the question shows if it shows so many of each volume."""
        return self.fixed + sum(min(frames, count) for count in self.volumes)


def count_question_images(
    records: Iterable[Record], volumes: Mapping[str, VolumeFacts]
) -> dict[QuestionImages, int]:
    """What questions show -> how many show it. `volumes`: by image_path."""
    counts: Counter[QuestionImages] = Counter()
    for record in records:
        chosen = [] if record.slices else [path for path in record.image_paths if path in volumes]
        fixed = len(record.slices) or len(record.image_paths) - len(chosen)
        counts[QuestionImages(fixed, tuple(volumes[path].frames for path in chosen))] += 1
    return dict(sorted(counts.items()))


def stored_plane(contents: Sequence[bytes], frames: int, settings: Dicom) -> StoredPlane:
    """The plane of the slices of a volume that can be decoded: of a file, or of a folder's files.

    "unknown" for what says nothing of it, as image files and clips do.
    """
    try:
        directions = _directions(contents, frames, settings)
    except ImageError:  # a damaged element that a question about one slice does not need
        return "unknown"
    if directions is None:
        return "unknown"
    # imports nibabel, which most corpora do not need
    with IMPORT_LOCK:
        from stages.corpus.volumes.planes import plane_orientation

    plane = _PLANE_ACROSS[int(np.abs(directions[:3, 2]).argmax())]
    try:
        plane_orientation(directions, "axial")
    except ImageError:
        return "oblique"
    return plane


def _directions(
    contents: Sequence[bytes], frames: int, settings: Dicom
) -> NDArray[np.float64] | None:
    """(4, 4), directions of unit length of the axes of a volume (RAS+); None if they are unknown.

    Raises ImageError.
    """
    first = contents[0]
    if is_dicom(first):
        return _dicom_directions(first, frames if len(contents) == 1 else 1, settings)
    if len(contents) == 1 and is_nifti(first):
        return _nifti_directions(first, settings)
    return None


def _dicom_directions(content: bytes, frames: int, settings: Dicom) -> NDArray[np.float64] | None:
    """(4, 4), the directions of columns, rows and slices (RAS+); None if they are unknown."""
    with IMPORT_LOCK:
        from stages.corpus.dicom.stacking import read_places

    place = read_places(content, frames, settings)[0]
    if place.orientation is None:
        return None
    directions = np.eye(4)
    directions[:3, 0] = place.orientation[:3]
    directions[:3, 1] = place.orientation[3:]
    directions[:3, 2] = place.normal
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ directions)


def _nifti_directions(content: bytes, settings: Dicom) -> NDArray[np.float64] | None:
    """(4, 4), the file's affine with axes of unit length; None if it has none."""
    with IMPORT_LOCK:
        from stages.corpus.volumes.nifti import read_nifti

    affine = read_nifti(content, settings).affine
    if affine is None:
        return None
    directions = np.eye(4)
    directions[:3, :3] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return directions
