"""Modality of a DICOM header.

Separate from the reader of pixels, which code that only sorts records does not need.
"""

from __future__ import annotations

from typing import Final

from stages.core.iteration.import_lock import IMPORT_LOCK
from stages.corpus.dicom.headers.preamble import is_dicom
from stages.corpus.quarantine.image_errors import ImageError
from stages.taxonomy import DICOM_MODALITIES

_MAX_INFLATED: Final = 2**24
"""Bytes of a deflated file that are inflated to find its modality."""


def declared_modality(content: bytes) -> str | None:
    """DICOM's Modality of a file, a known one; None if it is not DICOM or declares none."""
    if not is_dicom(content):
        return None
    try:
        return header_modality(content, _MAX_INFLATED)
    except ImageError:
        return None


def header_modality(content: bytes, max_inflated: int) -> str | None:
    """DICOM's Modality of a file if it is known; ImageError if the header is damaged."""
    # imports pydicom, which a corpus without DICOM does not need
    with IMPORT_LOCK:
        from stages.corpus.dicom.headers.elements import read_elements

    _, elements = read_elements(content, ("Modality",), max_inflated)
    return elements.code("Modality", DICOM_MODALITIES)
