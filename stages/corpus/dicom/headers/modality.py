"""Modality of a DICOM header, and the modality slug it stands for.

Separate from the reader of pixels, which code that only sorts records does not need.
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
"""DICOM's Modality (PS3.3 C.7.3.1.1.1) -> slug; None for known ones that are none of the eight.

Other values are never passed on.
"""

_MAX_INFLATED: Final = 2**24
"""Bytes of a deflated file that are inflated to find its modality."""


def declared_modality(content: bytes) -> str | None:
    """DICOM's Modality of a file, a key of MODALITIES; None if it is not DICOM or declares none."""
    if not is_dicom(content):
        return None
    try:
        return header_modality(content, _MAX_INFLATED)
    except ImageError:
        return None


def modality_slug(modality: str | None) -> str | None:
    """Slug for a value of MODALITIES; None if it is none of the eight, or None."""
    return None if modality is None else MODALITIES[modality]


def header_modality(content: bytes, max_inflated: int) -> str | None:
    """DICOM's Modality of a file if it is in MODALITIES; ImageError if the header is damaged."""
    _, elements = read_elements(content, ("Modality",), max_inflated)
    return elements.code("Modality", MODALITIES)
