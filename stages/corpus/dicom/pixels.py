"""Frames of pixel data as arrays, by pydicom's decoders, which are given bytes and checked numbers
and never the data set.

Before a compressed frame is decoded its own header must agree with the DICOM one: a decoder takes
memory for what the former says.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from numpy.typing import NDArray
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder

from stages.corpus.dicom.header import Header
from stages.corpus.dicom.headers.elements import guarded
from stages.corpus.dicom.isolated import decode_isolated
from stages.corpus.dicom.syntaxes import (
    DECODERS,
    ENCAPSULATED,
    ISOLATED,
    JPEG,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_EXTENDED,
    RLE,
)
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

_END: Final = b"\xff\xd9"
"""The last marker of a JPEG, JPEG-LS or JPEG 2000 codestream."""
_NO_LENGTH: Final = frozenset((0x01, *range(0xD0, 0xD9)))
_FRAME_HEADERS: Final = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_SCAN: Final = 0xDA
_J2K: Final = b"\xff\x4f\xff\x51"
_RLE_HEADER: Final = 64
_RLE_GROWTH: Final = 64
"""A run of 128 bytes takes two."""
_RLE_UNCHECKED: Final = 2**26
"""Bytes that a frame may at most unpack to for its runs not to be counted first."""


class Frames:
    """The frames of a file, decoded one at a time, each time they are asked for."""

    def __init__(self, header: Header) -> None:
        """Find where frames begin; ImageError if there are not as many as the header says."""
        self.header = header
        self._encoded = _encoded_frames(header) if header.syntax in ENCAPSULATED else None

    def __len__(self) -> int:
        """How many there are."""
        return self.header.tags.frames

    def stored(self, index: int) -> NDArray[Any]:
        """Stored values of a grey or palette frame (rows, columns), or RGB (rows, columns, 3).
        Raises ImageError.
        """
        header = self.header
        source, at, count = header.pixels, index, header.tags.frames
        if self._encoded is not None:
            _check_codestream(self._encoded[index], header)
            source, at, count = encapsulate([self._encoded[index]], has_bot=False), 0, 1

        options: dict[str, Any] = {
            "rows": header.tags.rows,
            "columns": header.tags.columns,
            "number_of_frames": count,
            "samples_per_pixel": header.samples,
            "photometric_interpretation": header.tags.photometric,
            "bits_allocated": header.allocated,
            "bits_stored": header.tags.bits_stored,
            "pixel_representation": int(header.signed),
            "planar_configuration": header.planar,
            "pixel_keyword": header.keyword,
            "pixel_vr": header.representation or "OW",
            "allow_excess_frames": False,
        }

        found, photometric = _decoded(source, at, header.syntax, options)
        if header.samples == 3 and photometric != "RGB":
            raise ImageError(
                f"{header.tags.photometric} cannot be turned into RGB in this transfer syntax"
            )
        return _used_bits(found, header)


def _decoded(
    source: bytes, index: int, syntax: str, options: dict[str, Any]
) -> tuple[NDArray[Any], str]:
    """The frame at an index, and its photometric interpretation once decoded."""
    options = {**options, "decoding_plugin": DECODERS[syntax]}
    if syntax in ISOLATED:
        return decode_isolated(source, syntax, options)

    def decode() -> tuple[NDArray[Any], str]:
        found, facts = get_decoder(syntax).as_array(source, index=index, **options)
        return found, str(facts["photometric_interpretation"])

    return guarded("the pixel data are damaged, or not what the header says", decode)


def _encoded_frames(header: Header) -> list[bytes]:
    """The compressed frames, which may lie in several fragments each."""
    count = header.tags.frames

    def split() -> list[bytes]:
        found = []
        for frame in generate_frames(header.pixels, number_of_frames=count):
            found.append(frame)
            if len(found) > count:
                break
        return found

    found = guarded("the fragments of the pixel data are damaged", split)
    if len(found) != count:
        raise ImageError("the pixel data do not hold as many frames as the header says")
    return found


def _used_bits(found: NDArray[Any], header: Header) -> NDArray[Any]:
    """Values without the bits that are not stored: overlays, with text, may lie there."""
    unused = 8 * found.dtype.itemsize - header.tags.bits_stored
    if found.dtype.kind == "f" or header.allocated == 1 or not unused:
        return found
    if found.dtype.kind == "i":
        return (found << unused) >> unused
    return found & found.dtype.type(2**header.tags.bits_stored - 1)


def _check_codestream(frame: bytes, header: Header) -> None:
    """ImageError unless a compressed frame is whole and of the size that the DICOM header says."""
    if header.syntax == RLE:
        _check_runs(frame, header)
        return
    if _END not in frame[-4:]:
        raise ImageError("the compressed pixel data were cut short")
    size = _jpeg_size(frame) if header.syntax in JPEG else _j2k_size(frame)
    if size is None:
        raise ImageError("the pixel data are not compressed as the transfer syntax says")
    rows, columns, samples, bits = size
    if (rows, columns, samples) != (header.tags.rows, header.tags.columns, header.samples):
        raise ImageError("the compressed image has another size than the DICOM header says")
    if header.syntax == JPEG_EXTENDED and bits > 8:
        raise ImageError("JPEG Extended with 12 bits is not supported", Reason.IMAGE_SYNTAX)
    if header.syntax in (JPEG_2000, JPEG_2000_LOSSLESS) and bits > (8 if samples == 3 else 16):
        why = "JPEG 2000 with more than 16 bits, or more than 8 for a colour, is not supported"
        raise ImageError(why, Reason.IMAGE_SYNTAX)
    if bits > header.allocated:
        raise ImageError("the compressed image has more bits than the DICOM header says")


def _jpeg_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """(rows, columns, samples, bits) of a JPEG or JPEG-LS codestream; None if it is none."""
    at = 2
    while frame.startswith(b"\xff\xd8") and at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF or marker in _NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == _SCAN:
            return None
        (length,) = struct.unpack_from(">H", frame, at + 2)
        if marker in _FRAME_HEADERS and at + 10 <= len(frame):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", frame, at + 4)
            return rows, columns, samples, bits
        at += 2 + length
    return None


def _j2k_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """(rows, columns, samples, bits) of a JPEG 2000 codestream, be it in a JP2 file or not as it
    should be; None if it is none.
    """
    start = 0 if frame.startswith(_J2K) else frame.find(_J2K) if frame[4:8] == b"jP  " else -1
    if start < 0 or start + 43 > len(frame):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    (samples,) = struct.unpack_from(">H", frame, start + 40)
    return bottom - top, right - left, samples, (frame[start + 42] & 0x7F) + 1


def _check_runs(frame: bytes, header: Header) -> None:
    """ImageError if the segments of an RLE frame (PS3.5 Annex G) are damaged or unpack to more than
    the image has.
    """
    if len(frame) < _RLE_HEADER:
        raise ImageError("the compressed pixel data were cut short")
    count, *offsets = struct.unpack_from("<16I", frame)
    if count != header.samples * header.allocated // 8:
        raise ImageError("the pixel data are not compressed as the transfer syntax says")
    ends = [*offsets[1:count], len(frame)]
    if any(
        not _RLE_HEADER <= start <= end for start, end in zip(offsets[:count], ends, strict=True)
    ):
        raise ImageError("the fragments of the pixel data are damaged")
    if _RLE_GROWTH * len(frame) <= _RLE_UNCHECKED:
        return
    most = header.tags.rows * header.tags.columns + _RLE_HEADER
    if any(
        _unpacked(frame[start:end]) > most for start, end in zip(offsets[:count], ends, strict=True)
    ):
        raise ImageError("the compressed image has another size than the DICOM header says")


def _unpacked(segment: bytes) -> int:
    """Bytes that a segment unpacks to."""
    size = at = 0
    while at < len(segment):
        head = segment[at]
        if head < 128:
            size += head + 1
            at += head + 2
        else:
            size += 257 - head if head > 128 else 0
            at += 2 if head > 128 else 1
    return size
