"""Read NIfTI files: one volume of grey in a file, from bytes, packed by gzip or not.

Of the header only sizes, the type of the voxels, their scaling and their place are read: texts
(descrip, aux_file, db_name, intent_name) and extensions, where a patient may be named, are not.
nibabel's messages quote values of the header, so that none of them leaves this module.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

import numpy as np
from nibabel import imageglobals
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from stages.core.params import Dicom
from stages.corpus.dicom.grayscale import Grey, Rescale, Window
from stages.corpus.dicom.headers.elements import guarded
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.volumes.planes import Affine, is_regular
from stages.corpus.volumes.signatures import GZIP, HEADER_BYTES, nifti_version

_HEADERS: Final = {1: Nifti1Header, 2: Nifti2Header}
_MIN_OFFSET: Final = {1: 352, 2: 544}
"""First byte that voxels can have: after the header and the four that announce extensions."""
_PERCENTILES: Final = (0.5, 99.5)
_CHUNK: Final = 2**14
"""Bytes that are unpacked at a time: of a damaged file, those before the damage are counted."""
_NOT_UNPACKED: Final = "truncated or damaged: it cannot be unpacked by gzip"
_MAX_VALUE: Final = 1e300
"""Values beyond could not be subtracted from each other."""

imageglobals.logger.setLevel(logging.CRITICAL + 1)
imageglobals.logger.propagate = False


@dataclass(frozen=True)
class Nifti:
    """A volume with at least two different values, all finite."""

    voxels: NDArray[Any] = field(repr=False)
    """Stored values (i, j, k), in the order of the file; a view of its bytes."""
    rescale: Rescale
    """Stored values to those that are meant (scl_slope, scl_inter)."""
    affine: Affine | None
    """None if the file does not say how it lies in the patient."""

    def grey(self, window: list[float] | None) -> Grey:
        """Steps from stored values to 8-bit grey.

        window: (centre, width) of the values, as DICOM's LINEAR windows; None: from the 0.5th to
        the 99.5th percentile of the volume, or from its lowest to its highest value if these two
        are equal.
        """
        if window is not None:
            return Grey(self.rescale, Window(window[0], window[1]), inverted=False)
        in_memory_order = self.voxels.ravel(order="K")
        low, high = np.percentile(in_memory_order, _PERCENTILES, method="nearest")
        if low == high:
            low, high = self.voxels.min(), self.voxels.max()
        ends = self.rescale(np.array([low, high], dtype=np.float64))
        # a negative slope swaps them
        return Grey(self.rescale, None, False, full_range=(float(ends.min()), float(ends.max())))


def read_nifti(content: bytes, settings: Dicom) -> Nifti:
    """Read a file that `is_nifti`.

    Limits: dicom.max_inflated_mb, if it is packed, and dicom.max_total_pixels. Raises ImageError;
    its message quotes no values but sizes and the type of the voxels.
    """
    complete = True
    if content.startswith(GZIP):
        content, complete = _unpack(content, settings.max_inflated_mb * 2**20)
    found = nifti_version(content)
    if found is None:
        if complete:
            raise ImageError("not a NIfTI file", Reason.IMAGE_FORMAT)
        raise ImageError(_NOT_UNPACKED)
    version, single = found
    if not single:
        raise ImageError(
            "NIfTI in two files, .hdr and .img: save it as one, .nii or .nii.gz",
            Reason.IMAGE_FORMAT,
        )

    def parse() -> tuple[tuple[int, ...], np.dtype[Any], int, Rescale, Affine | None]:
        header = _HEADERS[version](content[: HEADER_BYTES[version]])
        slope, inter = header.get_slope_inter()
        rescale = Rescale() if slope is None else Rescale(float(slope), float(inter or 0.0))
        shape = tuple(int(size) for size in header.get_data_shape())
        offset = int(header.get_data_offset())
        return shape, header.get_data_dtype(), offset, rescale, _affine(header)

    shape, dtype, offset, rescale, affine = guarded("the NIfTI header is damaged", parse)
    _check_type(dtype)
    shape = _volume_shape(shape, settings)
    min_offset = _MIN_OFFSET[version]
    voxels = _voxels(content, shape, dtype, offset or min_offset, min_offset, complete=complete)
    _check_values(voxels, rescale)
    return Nifti(voxels, rescale, affine)


def _unpack(content: bytes, max_bytes: int) -> tuple[bytes, bool]:
    """(unpacked bytes, whether that is all of them): of a damaged file as many as can be."""
    unpacked = bytearray()
    complete = True
    try:
        with gzip.GzipFile(fileobj=BytesIO(content)) as packed:
            while chunk := packed.read1(_CHUNK):
                unpacked += chunk
                if len(unpacked) > max_bytes:
                    break
    except (EOFError, OSError, zlib.error):
        complete = False
    if len(unpacked) > max_bytes:
        limit = f"{max_bytes / 2**20:.0f} MiB (dicom.max_inflated_mb)"
        raise ImageError(f"it unpacks to more than {limit}", Reason.IMAGE_TOO_LARGE)
    return bytes(unpacked), complete


def _affine(header: Nifti1Header) -> Affine | None:
    """The sform, else the qform; None if there is none, or if it is no volume's."""
    if not header["sform_code"] > 0 and not header["qform_code"] > 0:
        return None
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    return affine if is_regular(affine) else None


def _check_type(dtype: np.dtype[Any]) -> None:
    if dtype.fields is not None:
        raise ImageError("NIfTI of colours (RGB): save it as grey", Reason.IMAGE_FORMAT)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ImageError(
            f"NIfTI with voxels of type {dtype.name}: save it as integers or real numbers of at"
            " most 64 bits",
            Reason.IMAGE_FORMAT,
        )


def _volume_shape(shape: tuple[int, ...], settings: Dicom) -> tuple[int, ...]:
    """Sizes of the three axes; the header must have two or more, and those after the third be 1."""
    if len(shape) < 2 or min(shape) < 1:
        raise ImageError("the NIfTI header is damaged: it has not two sizes or more")
    used = len(shape)
    while used > 3 and shape[used - 1] == 1:
        used -= 1
    if used > 3:
        size = " x ".join(map(str, shape[:used]))
        raise ImageError(
            f"NIfTI of {used} dimensions, {size}: save one volume of it as a file of its own",
            Reason.IMAGE_VOLUME,
        )
    three = (*shape[:3], 1)[:3]
    if math.prod(three) > settings.max_total_pixels:
        raise ImageError(
            f"too many pixels: {' x '.join(map(str, three))}, the limit is"
            f" {settings.max_total_pixels} (dicom.max_total_pixels)",
            Reason.IMAGE_TOO_LARGE,
        )
    return three


def _voxels(
    content: bytes,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    offset: int,
    min_offset: int,
    *,
    complete: bool,
) -> NDArray[Any]:
    """Voxels as they stand in the file, the first index running fastest.

    offset: of the first voxel, by the header; min_offset: the least one that a header may say;
    complete: whether the file could be unpacked to its end. Raises ImageError if a slice is not
    complete, naming the first.
    """
    if not complete and min_offset <= len(content) < offset:
        raise ImageError(_NOT_UNPACKED)
    if not min_offset <= offset <= len(content):
        raise ImageError("the NIfTI header is damaged: its voxels begin outside of the file")
    size = math.prod(shape) * dtype.itemsize
    whole = (len(content) - offset) // (size // shape[2])
    incomplete = f"slice {whole + 1} of {shape[2]} along the third axis is incomplete"
    if not complete:
        unknown = f"which of its {shape[2]} slices is damaged is not known"
        raise ImageError(f"{_NOT_UNPACKED}: {incomplete if whole < shape[2] else unknown}")
    if whole < shape[2]:
        raise ImageError(
            f"the voxels are fewer than the header says: truncated or a wrong header; {incomplete}"
        )
    if len(content) - offset - size >= shape[0] * shape[1] * dtype.itemsize:
        raise ImageError(
            "the voxels are more, by a slice or more, than the header says: a wrong header"
        )
    flat = np.frombuffer(content, dtype, count=math.prod(shape), offset=offset)
    return flat.reshape(shape, order="F")


def _check_values(voxels: NDArray[Any], rescale: Rescale) -> None:
    """ImageError unless all values are finite, and not all the same."""
    if voxels.dtype.kind == "f":
        # a slice at a time: of all voxels together this would take a byte each
        wrong = [
            voxels[:, :, k].size - int(np.isfinite(voxels[:, :, k]).sum())
            for k in range(voxels.shape[2])
        ]
        if any(wrong):
            affected = [k for k, count in enumerate(wrong) if count]
            more = f" and {len(affected) - 1} more slices" if len(affected) > 1 else ""
            raise ImageError(
                f"{sum(wrong)} of {voxels.size} voxels are not finite numbers, in"
                f" slice {affected[0] + 1} along the third axis{more}: save them as numbers, such"
                " as the lowest of the others"
            )
    ends = np.array([voxels.min(), voxels.max()], dtype=np.float64)
    values = rescale(ends)
    if not (np.abs(values) < _MAX_VALUE).all():
        raise ImageError("voxels that are not finite numbers after their scaling")
    if values[0] == values[1]:
        raise ImageError("all voxels have the same value: there is nothing to see")
