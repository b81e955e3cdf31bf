"""Broken and hostile DICOM files: each is refused for a reason, none crashes the reader, none gets
memory before it is checked.
"""

from __future__ import annotations

import contextlib
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from stages.corpus.dicom import isolated as dicom_isolated
from stages.corpus.dicom import syntaxes
from stages.corpus.dicom.headers.elements import quiet
from stages.corpus.dicom.reader import read_dicom
from stages.corpus.images.decoding import ImageError
from stages.corpus.quarantine.reasons import Reason
from tests.dicoms import ENCODERS, compressed, dataset, deflated, file, ramp, settings, written

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:pydicom"
)  # of what these files are made with
GOOD = file(ramp())


def refused(content: bytes, why: str | None = None, **changes: Any) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        list(read_dicom(content, settings(**changes)).frames)
    assert caught.value.__context__ is None  # it would carry what pydicom said, values and all


def element(keyword_tag: tuple[int, int], vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", *keyword_tag, vr, len(value)) + value


ROWS = element((0x28, 0x10), b"US", struct.pack("<H", 32))
FILES = {
    "plain": GOOD,
    "deflated": deflated(GOOD),
    **{str(syntax): compressed(ramp(), syntax) for syntax in sorted(syntaxes.ENCAPSULATED)},
}


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_at_any_tenth_is_refused(kind: str, tenth: int) -> None:
    content = FILES[kind]
    refused(content[: len(content) * tenth // 10])


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_lacks_its_last_pixels_is_refused(kind: str) -> None:
    refused(FILES[kind][:-20])


@pytest.mark.parametrize("left", [0.3, 0.66, 0.9, 0.99])
@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED))
def test_a_compressed_image_cut_short_in_a_whole_file_is_refused(syntax: str, left: float) -> None:
    found = dataset(ramp())
    frame = ENCODERS[syntax](ramp(), found)
    found.PixelData = encapsulate([frame[: int(len(frame) * left)]])
    found["PixelData"].is_undefined_length = True
    refused(written(found, syntax), "cut short|damaged")


@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED - {syntaxes.RLE}))
def test_a_compressed_image_without_its_end_is_refused(syntax: str) -> None:
    """Though decoders may be content with it: nothing says that no more is missing."""
    found = dataset(ramp())
    frame = ENCODERS[syntax](ramp(), found)
    found.PixelData = encapsulate([frame[: frame.rindex(b"\xff\xd9")]])
    found["PixelData"].is_undefined_length = True
    refused(written(found, syntax), "cut short")


@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED - {syntaxes.RLE}))
def test_a_compressed_image_of_another_size_is_refused_before_it_is_decoded(syntax: str) -> None:
    found = dataset(ramp())
    found.PixelData = encapsulate([ENCODERS[syntax](ramp((64, 80)), dataset(ramp((64, 80))))])
    found["PixelData"].is_undefined_length = True
    refused(written(found, syntax), "has another size than the DICOM header says")


@pytest.mark.parametrize(
    ("elements", "why"),
    [
        ({"Rows": 0}, "Rows or Columns is missing or 0"),
        ({"Columns": None}, "Rows or Columns is missing or 0"),
        ({"PixelData": None}, "without pixel data"),
        ({"PixelData": b""}, "without pixel data"),
        ({"PixelData": ramp().tobytes()[:-2]}, "shorter than the image's size demands"),
        ({"PixelData": ramp().tobytes() * 2}, "longer, by a frame or more"),
        ({"Rows": 33}, "shorter than"),
        ({"NumberOfFrames": 2}, "shorter than"),
        ({"NumberOfFrames": 0}, "less than 1"),
        ({"NumberOfFrames": -1}, "less than 1"),
        ({"NumberOfFrames": 65}, r"too many frames: 65, the limit is 64 \(dicom\.max_frames\)"),
        ({"NumberOfFrames": 19530517}, "a million or more"),
        (
            {"Rows": 65535, "Columns": 65535},
            "too many pixels: 65535 x 65535 in 1 frames, the limit is",
        ),
        (
            {"Rows": 4000, "Columns": 4000},
            r"4000 x 4000 in 1 frames, the limit is 10000000 \(dicom\.max_total_pixels\)",
        ),
        ({"BitsAllocated": 12}, "BitsAllocated is none of"),
        ({"BitsAllocated": 7, "BitsStored": 7}, "BitsAllocated is none of"),
        ({"BitsStored": 9}, "BitsStored and HighBit"),
        ({"BitsStored": 8, "HighBit": 3}, "BitsStored and HighBit"),
        ({"PixelRepresentation": 2}, "PixelRepresentation is neither"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel 3 does not go with MONOCHROME2"),
        (
            {"SamplesPerPixel": 4, "PhotometricInterpretation": "ARGB"},
            "PhotometricInterpretation is missing or none of",
        ),
        ({"PhotometricInterpretation": None}, "PhotometricInterpretation is missing"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PaletteColorLookupTable.* is missing"),
        ({"FloatPixelData": b"\0" * 4}, "several kinds of pixel data"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(elements: dict[str, Any], why: str) -> None:
    refused(file(ramp(), **elements), why)


def test_more_than_is_decoded_of_a_frame_is_refused_whatever_all_frames_may_have() -> None:
    with pytest.raises(
        ImageError, match=r"too many pixels: 40 x 32, the limit is 1279 \(resize\.max_megapixels\)"
    ) as caught:
        read_dicom(GOOD, settings(), 40 * 32 - 1)
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE
    assert len(read_dicom(GOOD, settings(), 40 * 32).frames) == 1


@pytest.mark.parametrize("vr", [b"PN", b"UT", b"SQ", b"ZZ", b"\xff\xff", b"us"])
def test_rows_of_a_wrong_value_representation_are_refused(vr: bytes) -> None:
    assert ROWS in GOOD
    refused(GOOD.replace(ROWS, element((0x28, 0x10), vr, struct.pack("<H", 32))))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 500, 65535])
def test_rows_of_a_wrong_length_are_refused(length: int) -> None:
    refused(GOOD.replace(ROWS, struct.pack("<HH2sHH", 0x28, 0x10, b"US", length, 32)))


def test_pixel_data_longer_than_the_file_are_refused() -> None:
    at = GOOD.index(b"\xe0\x7f\x10\0OB\0\0") + 8
    for length in (2**31, 2**32 - 2, 2000):
        refused(GOOD[:at] + struct.pack("<I", length) + GOOD[at + 4 :], "longer than the file")


def test_an_element_that_stands_twice_is_refused() -> None:
    """Two readers would take two different ones: of the flags for burned-in text, say."""
    flags = element((0x28, 0x301), b"CS", b"YES ") + element((0x28, 0x301), b"CS", b"NO")
    at = GOOD.index(b"\xe0\x7f\x10\0")
    refused(GOOD[:at] + flags + GOOD[at:], "stands twice")
    refused(GOOD[:at] + flags[:12] + element((0x28, 0x301), b"CS", b"") + GOOD[at:], "stands twice")


@pytest.mark.parametrize("tag", [(0x0009, 0x1001), (0x0028, 0x3010)], ids=["skipped", "wanted"])
@pytest.mark.parametrize("depth", [50, 20_000])
def test_sequences_in_sequences_without_end_do_not_take_the_reader_down(
    tag: tuple[int, int], depth: int
) -> None:
    opened = struct.pack("<HH2sHI", *tag, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    at = GOOD.index(element((0x28, 0x10), b"US", struct.pack("<H", 32))[:6])
    content = GOOD[:at] + opened * depth + GOOD[at:]
    refused(content)


def test_a_deflated_bomb_is_stopped_at_the_limit() -> None:
    bomb = deflated(file(np.zeros((2000, 2000), dtype=np.uint8)))
    assert len(bomb) < 10_000
    refused(bomb, r"larger than 1 MiB \(dicom\.max_inflated_mb\)")


def test_runs_that_unpack_to_more_than_the_image_are_not_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.corpus.dicom.pixels._RLE_UNCHECKED", 0)
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 2000
    found = dataset(ramp())
    found.PixelData = encapsulate([frame])
    found["PixelData"].is_undefined_length = True
    refused(written(found, syntaxes.RLE), "another size")


@pytest.mark.parametrize("offsets", [(64, 4_000_000_000), (0, 64), (900, 64)])
def test_segments_of_runs_that_do_not_follow_each_other_are_refused(
    offsets: tuple[int, int],
) -> None:
    found = dataset(ramp(dtype="uint16"))
    found.PixelData = encapsulate([struct.pack("<16I", 2, *offsets, *[0] * 13) + b"\x81\0" * 500])
    found["PixelData"].is_undefined_length = True
    refused(written(found, syntaxes.RLE), "damaged")


@pytest.mark.parametrize("count", [2, 64])
def test_more_frames_than_there_are_fragments_are_refused(count: int) -> None:
    found = dataset(ramp(), NumberOfFrames=count)
    found.PixelData = encapsulate([ENCODERS[syntaxes.RLE](ramp(), found)])
    found["PixelData"].is_undefined_length = True
    refused(written(found, syntaxes.RLE), "damaged|as many frames")


def test_the_wrong_syntax_for_the_pixel_data_is_refused() -> None:
    plain, packed = dataset(ramp()), dataset(ramp())
    packed.PixelData = encapsulate([ENCODERS[syntaxes.RLE](ramp(), packed)])
    packed["PixelData"].is_undefined_length = True
    refused(written(packed, syntaxes.JPEG_BASELINE), "cut short|not compressed as")
    swapped = written(plain).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    refused(swapped, "not in the form that the transfer syntax has")


@pytest.mark.parametrize("fault", ["os.abort()", "time.sleep(3600)"])
def test_a_decoder_that_crashes_or_hangs_is_a_reason_and_the_next_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """GDCM ends its process over some damaged files."""
    content = compressed(ramp(), syntaxes.JPEG_LOSSLESS_SV1)
    crashing = tmp_path / "worker.py"
    crashing.write_text(
        f"import os, sys, time\nsys.stdin.buffer.readline()\n{fault}\n", encoding="utf-8"
    )
    with monkeypatch.context() as planted:
        planted.setattr(dicom_isolated, "_PATIENCE", 1.0)
        planted.setattr(dicom_isolated, "_WORKER", crashing)
        planted.setattr(dicom_isolated._mine, "worker", None, raising=False)
        refused(content, "crash their decoder")
    np.testing.assert_array_equal(read_dicom(content, settings()).frames[0], ramp())


@pytest.mark.parametrize("kind", FILES)
def test_bytes_changed_anywhere_give_an_image_or_a_reason(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(40):
        spoilt = bytearray(FILES[kind])
        for _ in range(rng.choice((1, 2, 8))):
            spoilt[rng.randrange(128, len(spoilt))] = rng.randrange(256)
        with contextlib.suppress(ImageError):
            assert all(
                frame.dtype == np.uint8
                for frame in read_dicom(bytes(spoilt), settings(accept_unflagged=True)).frames
            )


def test_silence_lasts_until_the_last_one_leaves() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        first, second = quiet(), quiet()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        warnings.warn("inside", stacklevel=1)
        second.__exit__(None, None, None)
        warnings.warn("after", stacklevel=1)
    assert [str(each.message) for each in heard] == ["after"]


def test_a_data_set_is_never_shown_by_repr() -> None:
    from stages.corpus.dicom.headers.elements import read_elements

    _, elements = read_elements(file(ramp(), Modality="JANE"), ("Modality",), 2**20)
    assert "JANE" not in repr(elements)
    assert isinstance(elements._dataset, Dataset)
