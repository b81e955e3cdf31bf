"""Volumes that are corrupt, bombs, or no volume: NIfTI files, DICOM series, folders, clips."""

from __future__ import annotations

import gzip
import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.corpus.quarantine.reasons import Reason
from tests.dicoms import file, series
from tests.hostile.cases import COUNT, VolumeCase, bad_volume, folder, good_volume
from tests.hostile.images import encode, png, scene, zip_of
from tests.volumes import nifti

MAX_INFLATED_MB: Final = 16
"""As the stages are told: a larger volume is a bomb."""


# --- NIfTI


def _patched(content: bytes, at: int, code: str, *values: Any) -> bytes:
    packed = struct.pack(f"<{code}", *values)
    return content[:at] + packed + content[at + len(packed) :]


def _voxels(shape: tuple[int, ...] = (9, 8, COUNT), dtype: str = "int16") -> NDArray[Any]:
    return np.random.default_rng(6).integers(0, 100, shape).astype(dtype)


def _with_affine(*cells: tuple[int, int, float]) -> bytes:
    """A volume whose sform has other values in some cells."""
    content = nifti(_voxels(), np.diag([2.0, 2.0, 3.0, 1.0]))
    for row, column, value in cells:
        content = _patched(content, 280 + 16 * row + 4 * column, "f", value)
    return content


def _oblique() -> bytes:
    angle = np.radians(30)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return nifti(_voxels(), affine)


def _bomb(members: int = 1) -> bytes:
    """Zeros of a gigabyte in a volume that has as many."""
    header = _patched(nifti(_voxels()), 40, "8h", 3, 1000, 1000, 1000, 1, 1, 1, 1)[:352]
    block = gzip.compress(bytes(2**20), 9)
    return gzip.compress(header) + block * (1024 // members) * members


def _colours(*names: str) -> NDArray[Any]:
    return np.zeros((9, 8, 5), [(name, "u1") for name in names])


def _nifti() -> dict[str, VolumeCase]:
    plain = nifti(_voxels())
    packed = gzip.compress(plain)
    second = nifti(_voxels(), version=2)
    broken = _voxels(dtype="float32")
    broken[2, 3, 16] = np.nan
    extended = _patched(plain, 348, "4B", 1, 0, 0, 0)
    cases = {
        "nifti": good_volume(plain),
        "packed nifti": good_volume(packed),
        "nifti truncated in its header": bad_volume(plain[:200], Reason.IMAGE_FORMAT),
        "packed nifti truncated in its header": bad_volume(packed[:50], Reason.IMAGE_FORMAT),
        "packed nifti without its checksum": bad_volume(packed[:-8]),
        "nifti without voxels": bad_volume(plain[:352], Reason.IMAGE_DAMAGED, "slice 1"),
        "nifti with a wrong magic": bad_volume(
            _patched(plain, 344, "4s", b"n+9\0"), Reason.IMAGE_FORMAT
        ),
        "nifti with the magic of a pair": bad_volume(
            _patched(plain, 344, "4s", b"ni1\0"), Reason.IMAGE_FORMAT
        ),
        "nifti packed twice": bad_volume(gzip.compress(packed), Reason.IMAGE_FORMAT),
        "a zip with a nifti in it": bad_volume(zip_of("brain.nii"), Reason.IMAGE_FORMAT),
        "a packed zip": bad_volume(gzip.compress(zip_of("brain.nii")), Reason.IMAGE_FORMAT),
        "a packed bomb": bad_volume(_bomb(), Reason.IMAGE_TOO_LARGE, "dicom.max_inflated_mb"),
        "a dimension of 0": bad_volume(_patched(plain, 46, "h", 0)),
        "a negative dimension": bad_volume(_patched(plain, 46, "h", -40)),
        "a negative number of dimensions": bad_volume(_patched(plain, 40, "h", -3)),
        "dimensions beyond memory": bad_volume(
            _patched(plain, 42, "3h", 32_767, 32_767, 32_767), Reason.IMAGE_TOO_LARGE
        ),
        "dimensions beyond memory, packed": bad_volume(
            gzip.compress(_patched(plain, 42, "3h", 32_767, 32_767, 32_767)),
            Reason.IMAGE_TOO_LARGE,
        ),
        "dimensions whose product overflows": bad_volume(
            _patched(second, 24, "3q", 2**62, 2**62, 2**62), Reason.IMAGE_TOO_LARGE
        ),
        "an offset beyond the file": bad_volume(_patched(second, 168, "q", 2**62)),
        "a negative offset": bad_volume(_patched(second, 168, "q", -(2**62))),
        "dimensions within the limits, and no voxels for them": bad_volume(
            _patched(plain, 42, "3h", 900, 900, 900)
        ),
        "thousands of slices": bad_volume(
            nifti(_voxels((2, 2, 3000))), Reason.IMAGE_TOO_LARGE, "dicom.max_frames"
        ),
        "slices that are lines": bad_volume(nifti(_voxels((1, 9, 20))), Reason.IMAGE_VOLUME),
        "voxels that are not numbers": bad_volume(nifti(broken), Reason.IMAGE_DAMAGED, "slice 17"),
        "no voxel that is a number": bad_volume(
            nifti(np.full((9, 8, 5), np.nan, np.float32)), Reason.IMAGE_DAMAGED, "slice 1"
        ),
        "voxels at the ends of their type": bad_volume(
            nifti(np.array([-1e308, 1e308] * 20).reshape(2, 4, 5))
        ),
        "an affine that is not a number": good_volume(_with_affine((0, 0, np.nan))),
        "an infinite affine": good_volume(_with_affine((1, 3, np.inf), (2, 2, -np.inf))),
        "an affine of zeros": good_volume(_with_affine(*((axis, axis, 0.0) for axis in range(3)))),
        "an oblique affine": good_volume(_oblique()),
        "four dimensions": bad_volume(
            nifti(_voxels((9, 8, 5, 3))), Reason.IMAGE_VOLUME, "9 x 8 x 5 x 3"
        ),
        "complex voxels": bad_volume(nifti(_voxels(dtype="complex64")), Reason.IMAGE_FORMAT),
        "colours": bad_volume(nifti(_colours("R", "G", "B")), Reason.IMAGE_FORMAT),
        "colours that are see-through": bad_volume(
            nifti(_colours("R", "G", "B", "A")), Reason.IMAGE_FORMAT
        ),
        "an unknown type": bad_volume(_patched(plain, 70, "h", 12_345)),
        "bits that do not fit the type": good_volume(_patched(plain, 72, "h", 1)),
        "a slope of 0": good_volume(_patched(plain, 112, "ff", 0.0, 7.0)),
        "a slope that is not a number": good_volume(_patched(plain, 112, "ff", np.nan, 7.0)),
        "an intercept that is not a number": bad_volume(_patched(plain, 112, "ff", 2.0, np.nan)),
        "a slope that makes one value of all": bad_volume(_patched(plain, 112, "ff", 1e-30, 1e30)),
        "an extension without end": good_volume(_extended(extended, 2**31 - 16)),
        "an extension of negative size": good_volume(_extended(extended, -16)),
        "slices that a volume lacks": VolumeCase(
            {"": plain}, Reason.IMAGE_SLICE, ("41",), slices=(1, 41)
        ),
        "slices that it has": VolumeCase({"": plain}, None, slices=(40, 1), shown=2),
    }
    for tenths in range(1, 10):
        part = (len(plain) - 352) * tenths // 10
        item = f"slice {COUNT * tenths // 10 + 1}"
        cases[f"nifti truncated at {tenths}/10"] = bad_volume(
            plain[: 352 + part], Reason.IMAGE_DAMAGED, item
        )
        if tenths > 1:  # below, its header is not known
            cases[f"packed nifti truncated at {tenths}/10"] = bad_volume(
                packed[: len(packed) * tenths // 10], Reason.IMAGE_DAMAGED, "slice"
            )
    return cases


def _extended(content: bytes, size: int) -> bytes:
    """With 16 bytes of an extension that says to have another size."""
    moved = _patched(content, 108, "f", 368.0)
    return moved[:352] + struct.pack("<ii", size, 6) + bytes(8) + moved[352:]


# --- DICOM series, folders and clips


def _slices(count: int = COUNT, **elements: Any) -> list[bytes]:
    volume = np.random.default_rng(7).integers(0, 255, (8, 9, count), dtype=np.uint8)
    return series(volume, **({"Modality": "CT", "PatientID": "one"} | elements))


def _numbered(number: int) -> bytes:
    """A slice without a position."""
    (content,) = _slices(1, InstanceNumber=number, ImagePositionPatient=None)
    return content


def _replaced(contents: list[bytes], index: int, content: bytes) -> list[bytes]:
    return [*contents[:index], content, *contents[index + 1 :]]


def _two_studies(**elements: Any) -> VolumeCase:
    now = _slices(5, StudyInstanceUID="1.2.1", SeriesInstanceUID="1.2.1.1")
    prior = _slices(5, **({"StudyInstanceUID": "1.2.2", "SeriesInstanceUID": "1.2.2.1"} | elements))
    files = {f"now/{number}.dcm": each for number, each in enumerate(now)}
    files |= {f"prior/{number}.dcm": each for number, each in enumerate(prior)}
    same = "PatientID" not in elements
    reason = None if same else Reason.IMAGE_LIST
    return VolumeCase(files, reason, images=("prior", "now"), shown=8 if same else None)


def _series() -> dict[str, VolumeCase]:
    slices = _slices()
    damaged = slices[16][:-20]
    other_size = file(np.zeros((7, 9), np.uint8), Modality="CT", InstanceNumber=3)
    far = [1e308, -1e308, 1e308]
    clip = np.random.default_rng(8).integers(0, 255, (COUNT, 8, 9), dtype=np.uint8)
    return {
        "a series": folder(slices),
        "a position twice": folder(
            [*slices, slices[5]], Reason.IMAGE_VOLUME, "{}/6.dcm", "{}/41.dcm"
        ),
        "a position missing": folder(
            [*slices[:20], *slices[21:]], Reason.IMAGE_VOLUME, "{}/20.dcm", "{}/21.dcm"
        ),
        "sizes mixed in a series": folder(
            _replaced(slices, 2, other_size), Reason.IMAGE_SERIES, "{}/3.dcm", "9 x 7"
        ),
        "one corrupt slice of forty": folder(
            _replaced(slices, 16, damaged), Reason.IMAGE_DAMAGED, "{}/17.dcm", "InstanceNumber 17"
        ),
        "a text in a series": folder(
            _replaced(slices, 0, b"no image"), Reason.IMAGE_SERIES, "{}/1.dcm"
        ),
        "a text at the end of a series": folder(
            _replaced(slices, 39, b"no image"), Reason.IMAGE_FORMAT, "{}/40.dcm"
        ),
        "an image among a series": folder(
            _replaced(slices, 39, encode(scene(), "PNG")), Reason.IMAGE_FORMAT, "{}/40.dcm"
        ),
        "two series in a folder": folder(
            [*slices, *_slices(3, SeriesInstanceUID="1.2.77")], Reason.IMAGE_SERIES, "{}/41.dcm"
        ),
        "positions that are not numbers": folder(
            _slices(4, ImagePositionPatient=["NaN", "0", "0"]), Reason.IMAGE_DAMAGED, "{}/1.dcm"
        ),
        "positions beyond the room": folder(_slices(4, ImagePositionPatient=far)),
        "orientations that overflow": folder(_slices(4, ImageOrientationPatient=[*far, *far])),
        "numbers that no series has": folder(
            [_numbered(number) for number in (2**31 - 1, -(2**31), 3, 4)]
        ),
        "two studies of a patient": _two_studies(),
        "studies of two patients": _two_studies(PatientID="two"),
        "thousands of files": folder(
            [encode(scene((8, 8)), "PNG")] * 2100, Reason.IMAGE_TOO_LARGE, "2100", suffix="png"
        ),
        "a bomb among images": folder(
            _replaced(_images(), 16, png(60_000, 60_000)),
            Reason.IMAGE_TOO_LARGE,
            "{}/17.png",
            suffix="png",
        ),
        "sizes mixed in a folder": folder(
            _replaced(_images(), 4, encode(scene((9, 8)), "PNG")),
            Reason.IMAGE_SERIES,
            "{}/5.png",
            suffix="png",
        ),
        "a nifti among images": folder(
            _replaced(_images(), 4, nifti(_voxels())), Reason.IMAGE_SERIES, "{}/5.png", suffix="png"
        ),
        "images, and a slice that they lack": VolumeCase(
            {f"{number}.png": each for number, each in enumerate(_images())},
            Reason.IMAGE_SLICE,
            ("1000000",),
            slices=(1_000_000,),
        ),
        "a clip": good_volume(file(clip, Modality="CT")),
        "a clip of 10,000 frames": bad_volume(
            file(np.zeros((10_000, 8, 8), np.uint8), Modality="CT"),
            Reason.IMAGE_TOO_LARGE,
            "10000",
            "dicom.max_frames",
        ),
        "a clip that lacks a frame": bad_volume(
            file(clip, Modality="CT", NumberOfFrames=COUNT + 1)
        ),
    }


def _images() -> list[bytes]:
    return [encode(scene((12, 8)), "PNG")] * COUNT


VOLUMES: Final[dict[str, VolumeCase]] = {**_nifti(), **_series()}
