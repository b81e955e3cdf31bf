"""The modality that a DICOM header names, and our slug for it.

Apart from the reader of pixels, so that code that only sorts records needs none of it.
"""

from __future__ import annotations

from typing import Final

from stages.corpus.dicom.headers.elements import is_dicom, read_elements
from stages.corpus.quarantine.image_errors import ImageError

MODALITIES: Final[dict[str, str | None]] = {
    **dict.fromkeys(("CT",), "ct"),
    **dict.fromkeys(("MR",), "mri"),
    **dict.fromkeys(("CR", "DX", "RG", "MG", "IO", "PX"), "x-ray"),
    **dict.fromkeys(("US",), "ultrasound"),
    **dict.fromkeys(("DMS",), "dermoscopy"),
    **dict.fromkeys(("OP",), "fundus"),
    **dict.fromkeys(("OPT",), "oct"),
    **dict.fromkeys(("SM", "GM"), "microscopy"),
    **dict.fromkeys(("BI", "CFM", "ECG", "ES", "IVOCT", "IVUS", "LS", "NM", "OCT", "OPTENF"), None),
    **dict.fromkeys(("OPV", "OSS", "OT", "PA", "PT", "RF", "RTDOSE", "RTIMAGE", "SC", "SEG"), None),
    **dict.fromkeys(("TG", "VF", "XA", "XC"), None),
}
"""DICOM's Modality (PS3.3 C.7.3.1.1.1) -> our slug; None for what is none of the eight.

Other values are never passed on.
"""

_MAX_INFLATED: Final = 2**24
"""Bytes of a deflated file that are inflated to find its modality."""


def modality_of(content: bytes) -> str | None:
    """Our slug of the modality that a DICOM header names; None if it names none of ours."""
    if not is_dicom(content):
        return None
    try:
        modality = header_modality(content, _MAX_INFLATED)
    except ImageError:
        return None
    return modality_slug(modality)


def modality_slug(modality: str | None) -> str | None:
    """Our slug for DICOM's Modality; None if it is none of the eight, or None."""
    return None if modality is None else MODALITIES[modality]


def header_modality(content: bytes, max_inflated: int) -> str | None:
    """DICOM's Modality of a file if it is in MODALITIES; ImageError if it is not readable."""
    _, elements = read_elements(content, ("Modality",), max_inflated)
    return elements.code("Modality", MODALITIES)
