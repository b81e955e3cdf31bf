"""Decode frames of pixel data to arrays, with pydicom's decoders.

The decoders are given bytes and checked numbers, never the data set. The header of a compressed
frame must agree with the DICOM header before the frame is decoded, because a decoder allocates the
size that it finds there.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

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
    SECOND_DECODERS,
)
from stages.corpus.quarantine.image_errors import ImageError, located
from stages.corpus.quarantine.reasons import Reason

_END: Final = b"\xff\xd9"
"""Last marker of a JPEG (EOI), JPEG-LS (EOI) or JPEG 2000 (EOC) codestream."""
_JPEG_START: Final = b"\xff\xd8"
_NO_LENGTH: Final = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG markers without a segment: TEM, RST0 to RST7, SOI (ISO 10918-1 B.1.1.3)."""
_FRAME_HEADERS: Final = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15, without DHT, JPG and DAC among them, and SOF55 of JPEG-LS."""
_SCAN: Final = 0xDA
_FILL: Final = 0xFF
_J2K_START: Final = b"\xff\x4f\xff\x51"
"""SOC marker, then SIZ marker."""
_J2K_SIZE_BYTES: Final = 43
"""Up to and including Ssiz of the first component (ISO 15444-1 A.5.1)."""
_RLE_HEADER: Final = 64
_RLE_GROWTH: Final = 64
"""At most: two bytes make a run of 128."""
_RLE_UNCHECKED: Final = 2**26
"""Bytes that a frame may unpack to without its runs being counted first."""


class Frames:
    """Frames of a file, decoded one at a time, on each access."""

    def __init__(self, header: Header) -> None:
        """Locate the frames; ImageError if there are not as many as the header says."""
        self.header = header
        self._encoded = _encoded_frames(header) if header.syntax in ENCAPSULATED else None

    def __len__(self) -> int:
        """Number of frames."""
        return self.header.tags.frames

    def stored(self, index: int) -> NDArray[Any]:
        """Stored values (rows, columns) of a grey or palette frame, or RGB (rows, columns, 3).

        Raises ImageError, of several frames with the number of the damaged one.
        """
        if len(self) == 1:
            return self._decode(index)
        return located(f"frame {index + 1} of {len(self)}", lambda: self._decode(index))

    def _decode(self, index: int) -> NDArray[Any]:
        header = self.header
        source = header.pixels
        count = header.tags.frames
        if self._encoded is not None:
            # pydicom is given the one frame only, as if it were the whole of the pixel data
            _check_codestream(self._encoded[index], header)
            source = encapsulate([self._encoded[index]], has_bot=False)
            count = 1
            index = 0
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
            "decoding_plugin": DECODERS[header.syntax],
        }
        values, photometric = _decode(source, index, header.syntax, options)
        if header.samples == 3 and photometric != "RGB":
            raise ImageError(
                f"{header.tags.photometric} cannot be converted to RGB in this transfer syntax"
            )
        return _mask_unused_bits(values, header)


class _Size(NamedTuple):
    """Size in the header of a codestream."""

    rows: int
    columns: int
    samples: int
    bits: int


def _decode(
    source: bytes, index: int, syntax: str, options: dict[str, Any]
) -> tuple[NDArray[Any], str]:
    """(frame at an index, its photometric interpretation after decoding).

    A frame that its decoder refuses is tried by the second decoder, if the syntax has one.
    """
    if syntax in ISOLATED:
        return decode_isolated(source, syntax, options)

    def decode() -> tuple[NDArray[Any], str]:
        values, properties = get_decoder(syntax).as_array(source, index=index, **options)
        return values, str(properties["photometric_interpretation"])

    try:
        return guarded("the pixel data are damaged, or do not match the DICOM header", decode)
    except ImageError:
        if syntax not in SECOND_DECODERS:
            raise
        options = options | {"decoding_plugin": SECOND_DECODERS[syntax]}
        return decode_isolated(source, syntax, options)


def _encoded_frames(header: Header) -> list[bytes]:
    """Compressed frames, joined from their fragments."""
    count = header.tags.frames

    def split() -> list[bytes]:
        frames = []
        for frame in generate_frames(header.pixels, number_of_frames=count):
            frames.append(frame)
            if len(frames) > count:
                break
        return frames

    frames = guarded("the fragments of the pixel data are damaged", split)
    if len(frames) != count:
        raise ImageError("the pixel data do not hold as many frames as the header says")
    return frames


def _mask_unused_bits(values: NDArray[Any], header: Header) -> NDArray[Any]:
    """Values without the bits that are not stored, where old files hide overlays with text."""
    unused = 8 * values.dtype.itemsize - header.tags.bits_stored
    if values.dtype.kind == "f" or header.allocated == 1 or not unused:
        return values
    if values.dtype.kind == "i":
        return (values << unused) >> unused  # extends the sign
    return values & values.dtype.type(2**header.tags.bits_stored - 1)


def _check_codestream(frame: bytes, header: Header) -> None:
    """ImageError unless a compressed frame is complete and of the size in the DICOM header."""
    if header.syntax == RLE:
        _check_rle(frame, header)
        return
    if _END not in frame[-4:]:
        raise ImageError("the compressed pixel data are truncated")
    size = _jpeg_size(frame) if header.syntax in JPEG else _j2k_size(frame)
    if size is None:
        raise ImageError("the compressed pixel data do not match the transfer syntax")
    if size[:3] != (header.tags.rows, header.tags.columns, header.samples):
        raise ImageError("the compressed image has another size than the DICOM header says")
    if header.syntax == JPEG_EXTENDED and size.bits > 8:
        raise ImageError("JPEG Extended with 12 bits is not supported", Reason.IMAGE_SYNTAX)
    max_bits = 8 if size.samples == 3 else 16
    if header.syntax in (JPEG_2000, JPEG_2000_LOSSLESS) and size.bits > max_bits:
        why = "JPEG 2000 with more than 16 bits, or more than 8 for a colour, is not supported"
        raise ImageError(why, Reason.IMAGE_SYNTAX)
    if size.bits > header.allocated:
        raise ImageError("the compressed image has more bits than the DICOM header says")


def _jpeg_size(frame: bytes) -> _Size | None:
    """Size of a JPEG (ISO 10918-1 B.2.2) or JPEG-LS codestream; None if it is neither.

    Marker segments are skipped up to the frame header: FF, marker, length (2 bytes), bits (1),
    rows (2), columns (2), samples (1).
    """
    if not frame.startswith(_JPEG_START):
        return None
    at = len(_JPEG_START)
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == _SCAN:
            return None
        if marker == _FILL:
            at += 1
            continue
        if marker in _NO_LENGTH:
            at += 2
            continue
        if marker in _FRAME_HEADERS and at + 10 <= len(frame):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", frame, at + 4)
            return _Size(rows, columns, samples, bits)
        (length,) = struct.unpack_from(">H", frame, at + 2)  # counts itself, not the marker
        at += 2 + length
    return None


def _j2k_size(frame: bytes) -> _Size | None:
    """Size of a JPEG 2000 codestream (SIZ marker, ISO 15444-1 A.5.1); None if it is none.

    Some files hold a whole JP2 file, which DICOM does not allow: its boxes are skipped.
    """
    start = 0
    if not frame.startswith(_J2K_START):
        start = frame.find(_J2K_START) if frame[4:8] == b"jP  " else -1
    if start < 0 or start + _J2K_SIZE_BYTES > len(frame):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
    (samples,) = struct.unpack_from(">H", frame, start + 40)
    bits = (frame[start + 42] & 0x7F) + 1  # the highest bit is the sign
    return _Size(bottom - top, right - left, samples, bits)


def _check_rle(frame: bytes, header: Header) -> None:
    """ImageError if the segments of an RLE frame (PS3.5 Annex G) are damaged or unpack to too much.

    The frame begins with 16 numbers: how many segments there are, then where each begins. There is
    one segment per byte of a pixel.
    """
    if len(frame) < _RLE_HEADER:
        raise ImageError("the compressed pixel data are truncated")
    count, *offsets = struct.unpack_from("<16I", frame)
    if not count or count != header.samples * header.allocated // 8:  # 0 if one bit per pixel
        raise ImageError("the compressed pixel data do not match the transfer syntax")
    ends = [*offsets[1:count], len(frame)]
    segments = list(zip(offsets[:count], ends, strict=True))
    if any(not _RLE_HEADER <= start <= end for start, end in segments):
        raise ImageError("the fragments of the pixel data are damaged")
    if _RLE_GROWTH * len(frame) <= _RLE_UNCHECKED:
        return
    max_size = header.tags.rows * header.tags.columns + _RLE_HEADER
    if any(_unpacked_size(frame[start:end]) > max_size for start, end in segments):
        raise ImageError("the compressed image has another size than the DICOM header says")


def _unpacked_size(segment: bytes) -> int:
    """Bytes that an RLE segment unpacks to (PackBits, PS3.5 G.3.2)."""
    size = 0
    at = 0
    while at < len(segment):
        head = segment[at]
        if head < 128:  # head + 1 literal bytes
            size += head + 1
            at += head + 2
        elif head > 128:  # a run of the next byte
            size += 257 - head
            at += 2
        else:  # no operation
            at += 1
    return size
