"""DICOM files that are corrupt, bombs, or hold what must not be passed on."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from stages.corpus.dicom import syntaxes
from stages.corpus.quarantine.reasons import Reason
from tests.dicoms import SECONDARY_CAPTURE, compressed, dataset, deflated, file, written
from tests.hostile.cases import Case, bad_image, harmless

LEVELS = np.random.default_rng(2).integers(0, 4000, (48, 64), dtype=np.uint16)
_ROWS = (0x0028, 0x0010)
_EXPLICIT = b"1.2.840.10008.1.2.1"


def ct(**elements: Any) -> bytes:
    return file(LEVELS, **({"Modality": "CT"} | elements))


def patch_element(
    content: bytes, tag: tuple[int, int], vr: bytes | None = None, length: int | None = None
) -> bytes:
    """Replace the value representation or length in the header of a short element."""
    at = content.index(struct.pack("<HH", *tag)) + 4
    size = content[at + 2 : at + 4] if length is None else struct.pack("<H", length)
    return content[:at] + (vr or content[at : at + 2]) + size + content[at + 4 :]


def nest_sequences(depth: int) -> bytes:
    """A slice followed by sequences in sequences that never end."""
    begin = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return ct() + (begin + item) * depth


def declare_mpeg4(content: bytes) -> bytes:
    """The slice, declared to be in the transfer syntax MPEG-4."""
    uncompressed = written(dataset(LEVELS, Modality="CT"), _EXPLICIT.decode())
    return uncompressed.replace(_EXPLICIT + b"\0", b"1.2.840.10008.1.2.4")[: len(content)]


def dicoms() -> dict[str, Case]:
    whole = ct()
    jpeg_ls = compressed(LEVELS.astype(np.uint8), syntaxes.JPEG_LS, Modality="CT")
    without_pixels = dataset(LEVELS, Modality="CT")
    del without_pixels.PixelData
    cases = {
        "a ct slice": harmless(whole),
        "a compressed ct slice": harmless(jpeg_ls),
        "rows of a wrong value representation": bad_image(patch_element(whole, _ROWS, vr=b"PN")),
        "rows of an unknown value representation": bad_image(patch_element(whole, _ROWS, vr=b"ZZ")),
        "rows of a wrong length": bad_image(patch_element(whole, _ROWS, length=3)),
        "an element longer than the file": bad_image(patch_element(whole, _ROWS, length=65_534)),
        "no pixel data": bad_image(written(without_pixels)),
        "no rows": bad_image(ct(Rows=0)),
        "more rows than data": bad_image(ct(Rows=4000)),
        "4 gigapixels": bad_image(ct(Rows=65_535, Columns=65_535), Reason.IMAGE_TOO_LARGE),
        "a hundred thousand frames": bad_image(ct(NumberOfFrames=100_000), Reason.IMAGE_TOO_LARGE),
        "17 of 16 bits": bad_image(ct(BitsStored=17)),
        "sequences without end": bad_image(nest_sequences(20_000)),
        "a bomb": bad_image(
            deflated(file(np.zeros((12_000, 12_000), np.uint16), Modality="CT")),
            Reason.IMAGE_TOO_LARGE,
        ),
        "a video": bad_image(declare_mpeg4(whole)),
        "an unknown compressed transfer syntax": bad_image(
            whole.replace(_EXPLICIT, b"1.2.840.10008.1.2.5")
        ),
        "another modality than its record": bad_image(ct(Modality="MR"), Reason.MODALITY_MISMATCH),
        "text burned in": bad_image(ct(BurnedInAnnotation="YES"), Reason.IMAGE_ANNOTATION),
        "a screen capture": bad_image(ct(SOPClassUID=SECONDARY_CAPTURE), Reason.IMAGE_UNFLAGGED),
    }
    for tenths in range(1, 10):
        cases[f"dicom truncated at {tenths}/10"] = bad_image(whole[: len(whole) * tenths // 10])
        cases[f"compressed dicom truncated at {tenths}/10"] = bad_image(
            jpeg_ls[: len(jpeg_ls) * tenths // 10]
        )
    return cases


DICOMS: dict[str, Case] = dicoms()
