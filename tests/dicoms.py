"""DICOM files made by pydicom and by the encoders of its plugins, from arrays and elements."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import UID, generate_uid

from stages.core.params import Dicom
from stages.corpus.dicom import syntaxes
from stages.corpus.dicom.headers.elements import EXPLICIT

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

SETTINGS = Dicom(
    frame="middle",
    ct_window=[40.0, 400.0],
    max_frames=64,
    max_total_pixels=10_000_000,
    max_inflated_mb=1,
    accept_burned_in=False,
    accept_unflagged=False,
)


def settings(**changes: Any) -> Dicom:
    return SETTINGS.model_copy(update=changes)


def dataset(pixels: NDArray[Any], **elements: Any) -> Dataset:
    """A data set of one or more frames; `elements` set to None are left out.

    MONOCHROME2 or RGB, of modality MR, unless said otherwise; no window.
    """
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    frames = pixels.shape[0] if pixels.ndim > 2 + colour else None
    found = Dataset()
    found.SOPClassUID = CT_STORAGE
    found.SOPInstanceUID = generate_uid(entropy_srcs=["instance", str(elements)])
    found.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    found.Modality = "MR"
    found.SamplesPerPixel = 3 if colour else 1
    found.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        found.PlanarConfiguration = 0
    if frames is not None:
        found.NumberOfFrames = frames
    found.Rows, found.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    if pixels.dtype.kind == "f":
        found.BitsAllocated = 8 * pixels.itemsize
        setattr(
            found,
            "FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData",
            pixels.astype(pixels.dtype).tobytes(),
        )
    else:
        found.BitsAllocated = found.BitsStored = 8 * pixels.itemsize
        found.HighBit = found.BitsStored - 1
        found.PixelRepresentation = int(pixels.dtype.kind == "i")
        raw = pixels.tobytes()
        found.PixelData = raw + b"\0" * (len(raw) % 2)
        found["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    for keyword, value in elements.items():
        if value is None:
            delattr(found, keyword)
        else:
            setattr(found, keyword, value)
    if "BitsStored" in elements:
        found.HighBit = elements.get("HighBit", found.BitsStored - 1)
    return found


def written(found: Dataset, syntax: str = EXPLICIT) -> bytes:
    """A data set as a file of Part 10; its pixel data must be in the syntax already."""
    found.file_meta = FileMetaDataset()
    found.file_meta.MediaStorageSOPClassUID = found.get("SOPClassUID", CT_STORAGE)
    found.file_meta.MediaStorageSOPInstanceUID = found.get("SOPInstanceUID", "1.2.3")
    found.file_meta.TransferSyntaxUID = UID(syntax)
    buffer = BytesIO()
    dcmwrite(buffer, found, enforce_file_format=True)
    return buffer.getvalue()


def file(pixels: NDArray[Any], **elements: Any) -> bytes:
    """An uncompressed file: see `dataset`."""
    return written(dataset(pixels, **elements))


def compressed(pixels: NDArray[Any], syntax: str, **elements: Any) -> bytes:
    """A file in a compressed syntax, from (rows, columns[, 3]) or ([frames,] ...)."""
    found = dataset(pixels, **elements)
    frames = pixels if "NumberOfFrames" in found else pixels[None]
    found.PixelData = encapsulate([ENCODERS[syntax](frame, found) for frame in frames])
    found["PixelData"].VR = "OB"
    found["PixelData"].is_undefined_length = True
    return written(found, syntax)


def deflated(content: bytes, most: int = 10**9) -> bytes:
    """An explicit little endian file with its data set deflated."""
    at = content.index(EXPLICIT.encode())
    uid = b"1.2.840.10008.1.2.1.99"
    start = at + len(EXPLICIT) + len(EXPLICIT) % 2
    # the value is longer by two bytes: its length, and that of the group, must say so
    header = bytearray(content[:at])
    header[-2:] = len(uid).to_bytes(2, "little")
    group = int.from_bytes(header[140:144], "little") + len(uid) - (start - at)
    header[140:144] = group.to_bytes(4, "little")
    meta_end = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return (
        bytes(header)
        + uid
        + content[start:meta_end]
        + packer.compress(content[meta_end:][:most])
        + packer.flush()
    )


# --- volumes

SPACING = (0.5, 0.75, 2.0)
"""Millimetres between the voxels of `phantom`, towards the patient's left, back and head."""
ORIGIN = (-10.0, 20.0, -30.0)
"""Where its first voxel lies."""
_DIRECTIONS = {
    "axial": ((0, 1), (1, 1), (2, 1)),
    "coronal": ((0, 1), (2, -1), (1, 1)),
    "sagittal": ((1, 1), (2, -1), (0, -1)),
    "prone": ((0, -1), (1, -1), (2, 1)),
}
"""Way of acquisition -> axis and direction of columns, of rows, and of the slices."""


def phantom(shape: tuple[int, int, int] = (5, 6, 7)) -> NDArray[np.uint8]:
    """A volume [to the left, to the back, to the head] whose voxels are all different."""
    count = int(np.prod(shape))
    levels = np.random.default_rng(3).permutation(256)[:count]
    return levels.reshape(shape).astype(np.uint8)


def acquired(volume: NDArray[Any], way: str = "axial") -> NDArray[Any]:
    """The slices (slice, row, column) of a volume, acquired in one of `_DIRECTIONS`."""
    columns, rows, slices = _DIRECTIONS[way]
    moved = volume.transpose(slices[0], rows[0], columns[0])
    return moved[:: slices[1], :: rows[1], :: columns[1]]


def geometry(volume: NDArray[Any], way: str, number: int) -> dict[str, Any]:
    """Place of a slice, by number from 0, as elements of its file."""
    directions = _DIRECTIONS[way]
    position = list(ORIGIN)
    for axis, direction in directions:
        if direction < 0:
            position[axis] += (volume.shape[axis] - 1) * SPACING[axis]
    axis, direction = directions[2]
    position[axis] += direction * number * SPACING[axis]
    cosines = np.zeros((2, 3))
    for of, (towards, sign) in enumerate(directions[:2]):
        cosines[of, towards] = sign
    return {
        "ImagePositionPatient": position,
        "ImageOrientationPatient": cosines.reshape(-1).tolist(),
        "PixelSpacing": [SPACING[directions[1][0]], SPACING[directions[0][0]]],
    }


def series(volume: NDArray[Any], way: str = "axial", **elements: Any) -> list[bytes]:
    """The files of a series, in the order of its slices; of elements set to None, without them."""
    contents = []
    for number, pixels in enumerate(acquired(volume, way)):
        its_elements = {"InstanceNumber": number + 1} | geometry(volume, way, number) | elements
        known = {keyword: value for keyword, value in its_elements.items() if value is not None}
        contents.append(file(pixels, **known))
    return contents


def enhanced(
    volume: NDArray[Any], way: str = "axial", order: list[int] | None = None, **elements: Any
) -> bytes:
    """The same slices, in any order, as one file with functional groups."""
    slices = acquired(volume, way)
    order = list(range(len(slices))) if order is None else order
    shared, groups = Dataset(), []
    for number in order:
        place = geometry(volume, way, number)
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = place["ImagePositionPatient"]
        groups.append(group)
        shared.PlaneOrientationSequence = [Dataset()]
        orientation = place["ImageOrientationPatient"]
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = orientation
        shared.PixelMeasuresSequence = [Dataset()]
        shared.PixelMeasuresSequence[0].PixelSpacing = place["PixelSpacing"]
    return file(
        slices[order],
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
        **elements,
    )


def _rle(frame: NDArray[Any], found: Dataset) -> bytes:
    return bytes(get_encoder(syntaxes.RLE).encode(frame, **_options(found)))


def _jpeg(frame: NDArray[Any], found: Dataset) -> bytes:
    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _jpeg_ls(frame: NDArray[Any], found: Dataset) -> bytes:
    return bytes(get_encoder(syntaxes.JPEG_LS).encode(frame, **_options(found)))


def _jpeg_ls_near(frame: NDArray[Any], found: Dataset) -> bytes:
    return bytes(get_encoder(syntaxes.JPEG_LS_NEAR).encode(frame, **_options(found), jls_error=2))


def _j2k(frame: NDArray[Any], found: Dataset) -> bytes:
    return bytes(
        encode_array(
            frame,
            bits_stored=found.BitsStored,
            photometric_interpretation=1 if frame.ndim == 3 else 2,
        )
    )


def _j2k_lossy(frame: NDArray[Any], found: Dataset) -> bytes:
    kind = 1 if frame.ndim == 3 else 2
    return bytes(
        encode_array(
            frame,
            bits_stored=found.BitsStored,
            photometric_interpretation=kind,
            compression_ratios=[4],
        )
    )


def _lossless_jpeg(frame: NDArray[Any], found: Dataset) -> bytes:
    """Lossless JPEG with predictor 1 (ITU-T T.81, annex H), 5-bit codes for the categories.

    Written out here: GDCM's encoder, the only one at hand, aborts the process now and then.
    """
    samples = found.SamplesPerPixel
    planes = frame.reshape(found.Rows, found.Columns, samples).astype(np.int64) & (
        2**found.BitsStored - 1
    )
    predicted = np.roll(planes, 1, axis=1)
    predicted[:, 0] = np.roll(planes[:, 0], 1, axis=0)
    predicted[0, 0] = 2 ** (found.BitsStored - 1)
    bits = []
    for difference in (planes - predicted).reshape(-1).tolist():
        signed = (difference + 2**15) % 2**16 - 2**15
        category = abs(signed).bit_length()
        extra = signed if signed > 0 else signed + 2**category - 1
        bits.append(f"{category:05b}" + (f"{extra:0{category}b}" if 0 < category < 16 else ""))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    components = range(1, samples + 1)
    header = struct.pack(">BHHB", found.BitsStored, found.Rows, found.Columns, samples) + b"".join(
        bytes([at, 0x11, 0]) for at in components
    )
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    scan = bytes([samples, *[part for at in components for part in (at, 0)], 1, 0, 0])
    marked = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
        for marker, body in ((0xC3, header), (0xC4, table), (0xDA, scan))
    )
    return b"\xff\xd8" + marked + data + b"\xff\xd9"


def _options(found: Dataset) -> dict[str, Any]:
    return {
        "rows": found.Rows,
        "columns": found.Columns,
        "samples_per_pixel": found.SamplesPerPixel,
        "bits_allocated": found.BitsAllocated,
        "bits_stored": found.BitsStored,
        "pixel_representation": found.PixelRepresentation,
        "photometric_interpretation": found.PhotometricInterpretation,
        "planar_configuration": found.get("PlanarConfiguration", 0),
        "number_of_frames": 1,
    }


ENCODERS: dict[str, Callable[[NDArray[Any], Dataset], bytes]] = {
    syntaxes.RLE: _rle,
    syntaxes.JPEG_BASELINE: _jpeg,
    syntaxes.JPEG_EXTENDED: _jpeg,
    syntaxes.JPEG_LOSSLESS: _lossless_jpeg,
    syntaxes.JPEG_LOSSLESS_SV1: _lossless_jpeg,
    syntaxes.JPEG_LS: _jpeg_ls,
    syntaxes.JPEG_LS_NEAR: _jpeg_ls_near,
    syntaxes.JPEG_2000_LOSSLESS: _j2k,
    syntaxes.JPEG_2000: _j2k_lossy,
}


def ramp(shape: tuple[int, ...] = (32, 40), dtype: str = "uint8", top: int = 255) -> NDArray[Any]:
    """Levels from 0 to `top`, different in every corner."""
    y, x = np.meshgrid(np.linspace(0, 0.4, shape[0]), np.linspace(0, 0.6, shape[1]), indexing="ij")
    return np.rint((x + y) * top).astype(dtype)


def colours(shape: tuple[int, int] = (32, 40)) -> NDArray[np.uint8]:
    """A smooth RGB image."""
    grey = ramp(shape).astype(np.uint8)
    return np.stack([grey, grey[::-1], np.full_like(grey, 90)], axis=-1)
