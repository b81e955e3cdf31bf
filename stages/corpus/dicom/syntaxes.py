"""Supported DICOM transfer syntaxes (PS3.5 Annex A) and their decoders.

Decoders are named, so that results do not depend on which others happen to be installed. Other
syntaxes, video among them, are refused by their registered name.
"""

from __future__ import annotations

from typing import Final

from stages.corpus.dicom.headers.elements import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT

RLE: Final = "1.2.840.10008.1.2.5"
JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS: Final = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1: Final = "1.2.840.10008.1.2.4.70"
JPEG_LS: Final = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR: Final = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"
JPEG_2000: Final = "1.2.840.10008.1.2.4.91"

DECODERS: Final = {
    **dict.fromkeys((IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN), ""),
    RLE: "pydicom",
    **dict.fromkeys((JPEG_BASELINE, JPEG_EXTENDED), "pillow"),
    **dict.fromkeys((JPEG_LOSSLESS, JPEG_LOSSLESS_SV1), "gdcm"),
    **dict.fromkeys((JPEG_LS, JPEG_LS_NEAR), "pyjpegls"),
    **dict.fromkeys((JPEG_2000_LOSSLESS, JPEG_2000), "pillow"),
}
"""Transfer syntax UID -> name of pydicom's plugin; "" for uncompressed pixels."""
SECOND_DECODERS: Final = dict.fromkeys(
    (JPEG_LS, JPEG_LS_NEAR, JPEG_2000_LOSSLESS, JPEG_2000), "gdcm"
)
"""Plugins for what the first one refuses: some writers deviate from the standards.

They refuse damaged codestreams as the first ones do (tests/corpus/dicom/test_reader.py).
"""
ISOLATED: Final = frozenset((JPEG_LOSSLESS, JPEG_LOSSLESS_SV1))
"""Those whose decoder crashes its process over some damaged files, and so runs in another one."""
ENCAPSULATED: Final = frozenset(syntax for syntax, plugin in DECODERS.items() if plugin)
"""Those with compressed frames, in fragments (PS3.5 A.4)."""
JPEG: Final = frozenset(
    (JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, JPEG_LS_NEAR)
)
"""Encapsulated ones whose frames give their size in a JPEG frame header (SOF marker)."""
