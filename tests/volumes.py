"""NIfTI files made by nibabel from arrays, and the settings of volumes."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from stages.core.params import Volume
from tests.dicoms import ORIGIN, SPACING

SETTINGS = Volume(plane="acquired", frames=1, selection="uniform", window=None, max_images=16)
IDENTITY = [128.0, 256.0]
"""A window that leaves values from 0 to 255 as they are."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's directions to those of nibabel, and back."""


def volume_settings(**changes: Any) -> Volume:
    """The defaults of params.yaml, with unvalidated changes."""
    return SETTINGS.model_copy(update=changes)


def phantom_affine() -> NDArray[np.float64]:
    """Where the voxels of tests.dicoms.phantom lie, RAS+."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = ORIGIN
    return np.asarray(LPS @ affine)


def nifti_image(voxels: NDArray[Any], affine: NDArray[Any] | None = None, version: int = 1) -> Any:
    """An image of nibabel's; without an affine its codes are 0."""
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(voxels, np.eye(4) if affine is None else affine)
    image.set_sform(affine, code=0 if affine is None else 1)
    image.set_qform(None, code=0)
    return image


def nifti(voxels: NDArray[Any], affine: NDArray[Any] | None = None, version: int = 1) -> bytes:
    """A file of it."""
    return bytes(nifti_image(voxels, affine, version).to_bytes())
