"""Recognise DICOM files by their first bytes, without pydicom, which few corpora need."""

from __future__ import annotations

from typing import Final

_BYTES: Final = 128
_PREFIX: Final = b"DICM"


def is_dicom(content: bytes) -> bool:
    """Whether a file has the preamble of PS3.10 section 7.1: any 128 bytes, then "DICM"."""
    return content[_BYTES : _BYTES + len(_PREFIX)] == _PREFIX
