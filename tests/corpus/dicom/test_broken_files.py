"""Broken and hostile DICOM files are refused with a reason, and checked before they are decoded."""

from __future__ import annotations

import contextlib
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from stages.corpus.dicom import isolated, syntaxes
from stages.corpus.dicom.headers.elements import quiet, read_elements
from stages.corpus.dicom.reader import read_dicom
from stages.corpus.images.decoding import ImageError
from stages.corpus.quarantine.reasons import Reason
from tests.dicoms import ENCODERS, compressed, dataset, deflated, file, ramp, settings, written

# pydicom warns while it writes these files
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
GOOD = file(ramp())


def assert_refused(content: bytes, why: str | None = None) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        list(read_dicom(content, settings()).frames)
    assert caught.value.__context__ is None, "an error of pydicom's may quote values"


def encapsulated(frame: bytes, syntax: str, pixels: NDArray[Any] | None = None) -> bytes:
    """A file with any bytes as its only compressed frame, and the header of `pixels`."""
    data_set = dataset(ramp() if pixels is None else pixels)
    data_set.PixelData = encapsulate([frame])
    data_set["PixelData"].is_undefined_length = True
    return written(data_set, syntax)


def encoded_ramp(syntax: str) -> bytes:
    return ENCODERS[syntax](ramp(), dataset(ramp()))


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
def test_a_file_truncated_at_any_tenth_is_refused(kind: str, tenth: int) -> None:
    content = FILES[kind]
    assert_refused(content[: len(content) * tenth // 10])


@pytest.mark.parametrize("kind", FILES)
def test_a_file_without_its_last_pixels_is_refused(kind: str) -> None:
    assert_refused(FILES[kind][:-20])


@pytest.mark.parametrize("share", [0.3, 0.66, 0.9, 0.99])
@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED))
def test_a_truncated_frame_in_a_complete_file_is_refused(syntax: str, share: float) -> None:
    frame = encoded_ramp(syntax)
    content = encapsulated(frame[: int(len(frame) * share)], syntax)
    assert_refused(content, "truncated|damaged")


@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED - {syntaxes.RLE}))
def test_a_frame_without_its_end_marker_is_refused(syntax: str) -> None:
    """Although decoders may accept it: more than the marker may be missing."""
    frame = encoded_ramp(syntax)
    assert_refused(encapsulated(frame[: frame.rindex(b"\xff\xd9")], syntax), "truncated")


@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED - {syntaxes.RLE}))
def test_a_frame_of_another_size_is_refused_before_it_is_decoded(syntax: str) -> None:
    larger = ramp((64, 80))
    frame = ENCODERS[syntax](larger, dataset(larger))
    assert_refused(encapsulated(frame, syntax), "another size than the DICOM header")


@pytest.mark.parametrize(
    ("elements", "why"),
    [
        ({"Rows": 0}, "Rows or Columns"),
        ({"Columns": None}, "Rows or Columns"),
        ({"PixelData": None}, "without pixel data"),
        ({"PixelData": b""}, "without pixel data"),
        ({"PixelData": ramp().tobytes()[:-2]}, "pixel data are shorter"),
        ({"PixelData": ramp().tobytes() * 2}, "pixel data are longer"),
        ({"Rows": 33}, "pixel data are shorter"),
        ({"NumberOfFrames": 2}, "pixel data are shorter"),
        ({"NumberOfFrames": 0}, "NumberOfFrames"),
        ({"NumberOfFrames": -1}, "NumberOfFrames"),
        ({"NumberOfFrames": 65}, r"frames: 65.*64 \(dicom\.max_frames\)"),
        ({"NumberOfFrames": 19530517}, "frames: a million or more"),
        ({"Rows": 65535, "Columns": 65535}, r"65535 x 65535.*dicom\.max_total_pixels"),
        ({"Rows": 4000, "Columns": 4000}, r"4000 x 4000.*10000000 \(dicom\.max_total_pixels\)"),
        ({"BitsAllocated": 12}, "BitsAllocated"),
        ({"BitsAllocated": 7, "BitsStored": 7}, "BitsAllocated"),
        ({"BitsStored": 9}, "BitsStored and HighBit"),
        ({"BitsStored": 8, "HighBit": 3}, "BitsStored and HighBit"),
        ({"PixelRepresentation": 2}, "PixelRepresentation"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel 3.*MONOCHROME2"),
        (
            {"SamplesPerPixel": 4, "PhotometricInterpretation": "ARGB"},
            "PhotometricInterpretation",
        ),
        ({"PhotometricInterpretation": None}, "PhotometricInterpretation"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PaletteColorLookupTable"),
        ({"FloatPixelData": b"\0" * 4}, "several kinds of pixel data"),
    ],
)
def test_an_inconsistent_header_is_refused(elements: dict[str, Any], why: str) -> None:
    assert_refused(file(ramp(), **elements), why)


def test_a_single_frame_has_a_limit_of_its_own() -> None:
    with pytest.raises(ImageError, match=r"40 x 32.*1279 \(resize\.max_megapixels\)") as caught:
        read_dicom(GOOD, settings(), 40 * 32 - 1)
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE
    assert len(read_dicom(GOOD, settings(), 40 * 32).frames) == 1


@pytest.mark.parametrize("vr", [b"PN", b"UT", b"SQ", b"ZZ", b"\xff\xff", b"us"])
def test_rows_of_a_wrong_value_representation_are_refused(vr: bytes) -> None:
    assert ROWS in GOOD
    assert_refused(GOOD.replace(ROWS, element((0x28, 0x10), vr, struct.pack("<H", 32))))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 500, 65535])
def test_rows_of_a_wrong_length_are_refused(length: int) -> None:
    assert_refused(GOOD.replace(ROWS, struct.pack("<HH2sHH", 0x28, 0x10, b"US", length, 32)))


def test_pixel_data_longer_than_the_file_are_refused() -> None:
    at = GOOD.index(b"\xe0\x7f\x10\0OB\0\0") + 8
    for length in (2**31, 2**32 - 2, 2000):
        assert_refused(
            GOOD[:at] + struct.pack("<I", length) + GOOD[at + 4 :],
            "PixelData is longer than the file",
        )


@pytest.mark.parametrize("second", [b"NO", b""])
def test_a_duplicate_element_is_refused(second: bytes) -> None:
    """Two readers could use different ones, say of the flags for burned-in text."""
    flag = (0x28, 0x301)
    flags = element(flag, b"CS", b"YES ") + element(flag, b"CS", second)
    at = GOOD.index(b"\xe0\x7f\x10\0")
    assert_refused(GOOD[:at] + flags + GOOD[at:], "twice")


@pytest.mark.parametrize("tag", [(0x0009, 0x1001), (0x0028, 0x3010)], ids=["skipped", "wanted"])
@pytest.mark.parametrize("depth", [50, 20_000])
def test_endlessly_nested_sequences_do_not_crash_the_reader(
    tag: tuple[int, int], depth: int
) -> None:
    sequence = struct.pack("<HH2sHI", *tag, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    at = GOOD.index(ROWS[:6])
    assert_refused(GOOD[:at] + (sequence + item) * depth + GOOD[at:])


def test_a_deflated_bomb_is_refused_at_the_limit() -> None:
    bomb = deflated(file(np.zeros((2000, 2000), dtype=np.uint8)))
    assert len(bomb) < 10_000
    assert_refused(bomb, r"1 MiB \(dicom\.max_inflated_mb\)")


def test_rle_runs_that_unpack_to_more_than_the_image_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.corpus.dicom.pixels._RLE_UNCHECKED", 0)
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 2000
    assert_refused(encapsulated(frame, syntaxes.RLE), "another size")


@pytest.mark.parametrize("offsets", [(64, 4_000_000_000), (0, 64), (900, 64)])
def test_rle_segments_that_do_not_follow_each_other_are_refused(
    offsets: tuple[int, int],
) -> None:
    frame = struct.pack("<16I", 2, *offsets, *[0] * 13) + b"\x81\0" * 500
    assert_refused(encapsulated(frame, syntaxes.RLE, ramp(dtype="uint16")), "damaged")


def test_rle_of_one_bit_per_pixel_and_without_segments_is_refused() -> None:
    data_set = dataset(ramp())
    data_set.BitsAllocated, data_set.BitsStored, data_set.HighBit = 1, 1, 0
    data_set.PixelData = encapsulate([struct.pack("<16I", 0, *[0] * 15)])
    data_set["PixelData"].is_undefined_length = True
    assert_refused(written(data_set, syntaxes.RLE))


@pytest.mark.parametrize("count", [2, 64])
def test_more_frames_than_there_are_fragments_are_refused(count: int) -> None:
    frame = encoded_ramp(syntaxes.RLE)
    content = encapsulated(frame, syntaxes.RLE, np.stack([ramp()] * count))
    assert_refused(content, "damaged|as many frames")


def test_pixel_data_in_another_transfer_syntax_are_refused() -> None:
    rle = encoded_ramp(syntaxes.RLE)
    assert_refused(encapsulated(rle, syntaxes.JPEG_BASELINE), "truncated|transfer syntax")
    uncompressed = GOOD.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    assert_refused(uncompressed, "transfer syntax")


@pytest.mark.parametrize("fault", ["os.abort()", "time.sleep(3600)"])
def test_a_decoder_that_crashes_or_hangs_refuses_its_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """GDCM crashes its process over some damaged files."""
    content = compressed(ramp(), syntaxes.JPEG_LOSSLESS_SV1)
    crashing = tmp_path / "worker.py"
    crashing.write_text(
        f"import os, sys, time\nsys.stdin.buffer.readline()\n{fault}\n", encoding="utf-8"
    )
    with monkeypatch.context() as patched:
        patched.setattr(isolated, "_TIMEOUT", 1.0)
        patched.setattr(isolated, "_WORKER", crashing)
        patched.setattr(isolated._thread, "worker", None, raising=False)
        assert_refused(content, "crash or hang")
    np.testing.assert_array_equal(read_dicom(content, settings()).frames[0], ramp())


@pytest.mark.parametrize("kind", FILES)
def test_files_with_random_bytes_changed_are_read_or_refused(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(40):
        damaged = bytearray(FILES[kind])
        for _ in range(rng.choice((1, 2, 8))):
            damaged[rng.randrange(128, len(damaged))] = rng.randrange(256)
        with contextlib.suppress(ImageError):
            frames = read_dicom(bytes(damaged), settings(accept_unflagged=True)).frames
            assert all(frame.dtype == np.uint8 for frame in frames)


def test_warnings_are_suppressed_until_the_last_user_leaves() -> None:
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        first = quiet()
        second = quiet()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        warnings.warn("inside", stacklevel=1)
        second.__exit__(None, None, None)
        warnings.warn("after", stacklevel=1)
    assert [str(each.message) for each in recorded] == ["after"]


def test_repr_shows_no_values_of_a_data_set() -> None:
    _, elements = read_elements(file(ramp(), Modality="JANE"), ("Modality",), 2**20)
    assert "JANE" not in repr(elements)
    assert isinstance(elements._dataset, Dataset)
