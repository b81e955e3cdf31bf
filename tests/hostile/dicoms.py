"""DICOM files that are broken, bombs, or say what must not be passed on."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from stages.corpus.dicom import syntaxes
from stages.corpus.quarantine.reasons import Reason
from tests.dicoms import SECONDARY_CAPTURE, compressed, dataset, deflated, file, written
from tests.hostile.cases import Case

LEVELS = np.random.default_rng(2).integers(0, 4000, (48, 64), dtype=np.uint16)


def ct(**elements: Any) -> bytes:
    return file(LEVELS, **({"Modality": "CT"} | elements))


def patched(
    content: bytes, tag: tuple[int, int], vr: bytes | None = None, length: int | None = None
) -> bytes:
    """A short element with another value representation or length in its header."""
    at = content.index(struct.pack("<HH", *tag)) + 4
    size = content[at + 2 : at + 4] if length is None else struct.pack("<H", length)
    return content[:at] + (vr or content[at : at + 2]) + size + content[at + 4 :]


def nested(depth: int) -> bytes:
    """Sequences in sequences, each begun and none ended."""
    inner = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    return ct() + inner * depth


def dicoms() -> dict[str, Case]:
    whole = ct()
    packed = compressed(LEVELS.astype(np.uint8), syntaxes.JPEG_LS, Modality="CT")
    bare = dataset(LEVELS, Modality="CT")
    del bare.PixelData
    cases = {
        "a ct slice": Case(whole, "kept"),
        "a compressed ct slice": Case(packed, "kept"),
        "rows of a wrong value representation": Case(
            patched(whole, (0x0028, 0x0010), vr=b"PN"), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "rows of an unknown value representation": Case(
            patched(whole, (0x0028, 0x0010), vr=b"ZZ"), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "rows of a wrong length": Case(
            patched(whole, (0x0028, 0x0010), length=3), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "an element longer than the file": Case(
            patched(whole, (0x0028, 0x0010), length=65_534), "quarantined", Reason.IMAGE_DAMAGED
        ),
        "no pixel data": Case(written(bare), "quarantined", Reason.IMAGE_DAMAGED),
        "no rows": Case(ct(Rows=0), "quarantined", Reason.IMAGE_DAMAGED),
        "more rows than data": Case(ct(Rows=4000), "quarantined", Reason.IMAGE_DAMAGED),
        "4 gigapixels": Case(
            ct(Rows=65_535, Columns=65_535), "quarantined", Reason.IMAGE_TOO_LARGE
        ),
        "a hundred thousand frames": Case(
            ct(NumberOfFrames=100_000), "quarantined", Reason.IMAGE_TOO_LARGE
        ),
        "17 of 16 bits": Case(ct(BitsStored=17), "quarantined", Reason.IMAGE_DAMAGED),
        "sequences without end": Case(nested(20_000), "quarantined", Reason.IMAGE_DAMAGED),
        "a bomb": Case(
            deflated(file(np.zeros((12_000, 12_000), np.uint16), Modality="CT")),
            "quarantined",
            Reason.IMAGE_TOO_LARGE,
        ),
        "a video": Case(patched_syntax(whole), "quarantined", Reason.IMAGE_DAMAGED),
        "compressed, and none of its syntax": Case(
            whole.replace(b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.5"),
            "quarantined",
            Reason.IMAGE_DAMAGED,
        ),
        "another modality than its record": Case(
            ct(Modality="MR"), "quarantined", Reason.MODALITY_MISMATCH
        ),
        "text burned in": Case(
            ct(BurnedInAnnotation="YES"), "quarantined", Reason.IMAGE_ANNOTATION
        ),
        "a screen capture": Case(
            ct(SOPClassUID=SECONDARY_CAPTURE), "quarantined", Reason.IMAGE_UNFLAGGED
        ),
    }
    for tenths in range(1, 10):
        cases[f"dicom cut at {tenths}/10"] = Case(
            whole[: len(whole) * tenths // 10], "quarantined", Reason.IMAGE_DAMAGED
        )
        cases[f"compressed dicom cut at {tenths}/10"] = Case(
            packed[: len(packed) * tenths // 10], "quarantined", Reason.IMAGE_DAMAGED
        )
    return cases


def patched_syntax(content: bytes) -> bytes:
    """The file, said to be in MPEG-4."""
    found = dataset(LEVELS, Modality="CT")
    return written(found, "1.2.840.10008.1.2.1").replace(
        b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4"
    )[: len(content)]


DICOMS: dict[str, Case] = dicoms()
