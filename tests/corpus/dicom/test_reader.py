"""DICOM: every photometric interpretation and transfer syntax gives the drawn image."""

from __future__ import annotations

import random
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from stages.corpus.dicom import syntaxes
from stages.corpus.dicom.headers.elements import BIG_ENDIAN, EXPLICIT, IMPLICIT
from stages.corpus.dicom.reader import read_dicom
from stages.corpus.images.decoding import ImageError
from stages.corpus.quarantine.reasons import Reason
from tests.dicoms import (
    ENCODERS,
    colours,
    compressed,
    dataset,
    deflated,
    file,
    ramp,
    settings,
    written,
)

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
LOSSY = (syntaxes.JPEG_BASELINE, syntaxes.JPEG_EXTENDED, syntaxes.JPEG_LS_NEAR, syntaxes.JPEG_2000)


def first_frame(content: bytes, **changes: Any) -> NDArray[np.uint8]:
    return read_dicom(content, settings(**changes)).frames[0]


def encapsulated(data_set: Dataset, frame: bytes, syntax: str) -> bytes:
    """A file with any bytes as its only compressed frame."""
    data_set.PixelData = encapsulate([frame])
    data_set["PixelData"].is_undefined_length = True
    return written(data_set, syntax)


# --- photometric interpretations


def test_eight_bits_without_a_window_keep_their_values() -> None:
    np.testing.assert_array_equal(first_frame(file(ramp())), ramp())


def test_monochrome1_is_inverted() -> None:
    np.testing.assert_array_equal(
        first_frame(file(ramp(), PhotometricInterpretation="MONOCHROME1")), 255 - ramp()
    )


@pytest.mark.parametrize(
    ("dtype", "top"),
    [("uint16", 4095), ("uint16", 65535), ("int16", 2000), ("uint32", 2**31), ("int32", 2**30)],
)
def test_deep_grey_without_a_window_is_scaled_to_the_range_of_its_pixels(
    dtype: str, top: int
) -> None:
    pixels = ramp(dtype=dtype, top=top) // 2 + (-top // 4 if dtype.startswith("i") else 7)
    values = pixels.astype(float)
    expected = np.rint((values - values.min()) / np.ptp(values) * 255)
    np.testing.assert_array_equal(first_frame(file(pixels)), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_pixel_data_is_read(dtype: str) -> None:
    pixels = (ramp().astype(dtype) - 100) / 7
    np.testing.assert_array_equal(first_frame(file(pixels)), ramp())


def test_one_bit_per_pixel_is_black_and_white() -> None:
    bits = (ramp((3, 5)) > 127).astype(np.uint8)
    packed = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    content = file(bits, BitsAllocated=1, BitsStored=1, PixelData=packed)
    np.testing.assert_array_equal(first_frame(content), bits * 255)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_are_not_stored_are_masked(signed: bool) -> None:
    """They may hold overlays with text."""
    clean = ramp(dtype="uint16", top=4095)
    dirty = (clean | 0xF000 * (np.arange(40, dtype=np.uint16) % 2)).astype("<u2")
    elements: dict[str, Any] = {
        "BitsStored": 12,
        "PixelRepresentation": int(signed),
        "WindowCenter": 1000,
        "WindowWidth": 2500,
    }
    np.testing.assert_array_equal(
        first_frame(file(dirty, **elements)), first_frame(file(clean, **elements))
    )


def test_bits_of_jpeg_2000_that_are_not_stored_are_masked() -> None:
    clean = ramp(dtype="uint16", top=4095)
    dirty = clean | 0x8000 * (np.arange(40, dtype=np.uint16) % 2)
    syntax = syntaxes.JPEG_2000_LOSSLESS
    sixteen_bits = ENCODERS[syntax](dirty, dataset(dirty))
    elements: dict[str, Any] = {"BitsStored": 12, "WindowCenter": 1000, "WindowWidth": 2500}
    content = encapsulated(dataset(dirty, **elements), sixteen_bits, syntax)
    np.testing.assert_array_equal(first_frame(content), first_frame(file(clean, **elements)))


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_is_read_by_pixel_and_by_plane(planar: int) -> None:
    pixels = colours()
    stored = pixels if planar == 0 else pixels.transpose(2, 0, 1)
    content = file(pixels, PlanarConfiguration=planar, PixelData=stored.tobytes())
    np.testing.assert_array_equal(first_frame(content), pixels)


def test_sixteen_bit_colours_become_eight() -> None:
    np.testing.assert_array_equal(first_frame(file(colours().astype(np.uint16) * 257)), colours())


def test_twelve_of_sixteen_bits_of_a_colour_become_eight() -> None:
    pixels = np.rint(colours() * (4095 / 255)).astype(np.uint16)
    np.testing.assert_array_equal(first_frame(file(pixels, BitsStored=12)), colours())


def test_ybr_full_becomes_rgb() -> None:
    ybr = convert_color_space(colours(), "RGB", "YBR_FULL")
    rgb = first_frame(file(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(rgb.astype(int) - colours()).max() <= 2


def test_ybr_full_422_becomes_rgb() -> None:
    flat = np.repeat(colours()[:, ::2], 2, axis=1)
    ybr = convert_color_space(flat, "RGB", "YBR_FULL").reshape(-1, 2, 3)
    packed = np.stack([ybr[:, 0, 0], ybr[:, 1, 0], ybr[:, 0, 1], ybr[:, 0, 2]], axis=-1)
    rgb = first_frame(
        file(flat, PhotometricInterpretation="YBR_FULL_422", PixelData=packed.tobytes())
    )
    assert np.abs(rgb.astype(int) - flat).max() <= 2


def palette(bits: int, segmented: bool = False) -> dict[str, Any]:
    """256 entries, the first for stored value 10: red rises, green falls, blue is constant."""
    scale = 257 if bits == 16 else 1
    tables = {
        "Red": np.arange(256) * scale,
        "Green": np.arange(255, -1, -1) * scale,
        "Blue": np.full(256, 90 * scale),
    }
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    kind = "<u2" if bits == 16 else "u1"
    for colour, table in tables.items():
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 10, bits]
        if segmented:
            data = np.array([0, 1, table[0], 1, 255, table[-1]], dtype=kind)
            elements[f"Segmented{colour}PaletteColorLookupTableData"] = data.tobytes()
        else:
            elements[f"{colour}PaletteColorLookupTableData"] = table.astype(kind).tobytes()
    return elements


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colours_are_applied(bits: int, segmented: bool) -> None:
    at = np.clip(ramp().astype(int) - 10, 0, 255)
    expected = np.stack([at, 255 - at, np.full_like(at, 90)], axis=-1)
    np.testing.assert_array_equal(first_frame(file(ramp(), **palette(bits, segmented))), expected)


def test_a_palette_agrees_with_pydicom() -> None:
    data_set = dataset(ramp(), **palette(16))
    expected = apply_color_lut(ramp(), data_set) >> 8
    np.testing.assert_array_equal(first_frame(written(data_set)), expected)


def test_stored_values_beyond_a_palette_take_its_last_entry() -> None:
    pixels = np.array([[0, 9, 10, 11, 255, 265, 266, 300, 65535]], dtype="uint16")
    red = [0, 0, 0, 1, 245, 255, 255, 255, 255]
    assert first_frame(file(pixels, **palette(8)))[0, :, 0].tolist() == red


def test_a_linear_segment_is_rounded_to_even() -> None:
    elements = palette(8, segmented=True)
    data = np.array([0, 1, 0, 1, 4, 10, 1, 251, 10, 0], dtype=np.uint8)
    elements["SegmentedRedPaletteColorLookupTableData"] = data.tobytes()
    pixels = np.array([[10, 11, 12, 13, 14, 15]], dtype=np.uint8)
    assert first_frame(file(pixels, **elements))[0, :, 0].tolist() == [0, 2, 5, 8, 10, 10]


def test_an_indirect_segment_of_a_palette_is_refused() -> None:
    elements = palette(16, segmented=True)
    data = np.array([0, 1, 0, 2, 60_000, 0, 0], dtype="<u2")
    elements["SegmentedRedPaletteColorLookupTableData"] = data.tobytes()
    with pytest.raises(ImageError, match="SegmentedRedPaletteColorLookupTableData.*indirect"):
        first_frame(file(ramp(), **elements))


# --- transfer syntaxes


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_uncompressed_files_of_any_byte_order_are_read(syntax: str, dtype: str) -> None:
    pixels = ramp(dtype=dtype)
    data_set = dataset(pixels, WindowCenter=128, WindowWidth=256)
    if syntax == BIG_ENDIAN and dtype == "uint16":
        data_set.PixelData = pixels.byteswap().tobytes()
    np.testing.assert_array_equal(first_frame(written(data_set, syntax)), ramp())


def test_a_deflated_file_is_read() -> None:
    np.testing.assert_array_equal(first_frame(deflated(file(ramp()))), ramp())


@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED))
def test_compressed_grey_is_read(syntax: str) -> None:
    levels = first_frame(compressed(ramp(), syntax)).astype(int)
    assert np.abs(levels - ramp()).max() <= (8 if syntax in LOSSY else 0)


@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED))
def test_compressed_colours_are_read(syntax: str) -> None:
    photometric = {
        syntaxes.JPEG_BASELINE: "YBR_FULL_422",
        syntaxes.JPEG_EXTENDED: "YBR_FULL_422",
        syntaxes.JPEG_2000_LOSSLESS: "YBR_RCT",
        syntaxes.JPEG_2000: "YBR_ICT",
    }.get(syntax, "RGB")
    content = compressed(colours(), syntax, PhotometricInterpretation=photometric)
    rgb = first_frame(content).astype(int)
    assert np.abs(rgb - colours()).max() <= (12 if syntax in LOSSY else 0)


@pytest.mark.parametrize(
    "syntax", sorted(syntaxes.ENCAPSULATED - {syntaxes.JPEG_BASELINE, syntaxes.JPEG_EXTENDED})
)
@pytest.mark.parametrize(("dtype", "stored"), [("uint16", 16), ("uint16", 12), ("int16", 16)])
def test_compressed_deep_grey_is_read(syntax: str, dtype: str, stored: int) -> None:
    pixels = ramp(dtype=dtype, top=4000) - (2000 if dtype == "int16" else 0)
    window = {"WindowCenter": 0 if dtype == "int16" else 2000, "WindowWidth": 4001}
    expected = first_frame(file(pixels, BitsStored=stored, **window)).astype(int)
    levels = first_frame(compressed(pixels, syntax, BitsStored=stored, **window)).astype(int)
    assert np.abs(levels - expected).max() <= (4 if syntax in LOSSY else 0)


@pytest.mark.parametrize(
    "syntax", [syntaxes.RLE, syntaxes.JPEG_BASELINE, syntaxes.JPEG_LS, syntaxes.JPEG_2000_LOSSLESS]
)
def test_every_frame_of_a_compressed_file_is_read(syntax: str) -> None:
    frames = np.stack([ramp() // (number + 1) for number in range(3)])
    decoded = read_dicom(compressed(frames, syntax), settings()).frames
    assert len(decoded) == 3
    for frame, expected in zip(decoded, frames, strict=True):
        assert np.abs(frame.astype(int) - expected).max() <= 4


def test_a_frame_that_its_decoder_refuses_is_tried_by_the_second_one() -> None:
    content = (PYDICOM_FILES / "GDCMJ2K_TextGBR.dcm").read_bytes()  # not read by Pillow
    frame = first_frame(content, accept_unflagged=True)
    original = pydicom.dcmread(PYDICOM_FILES / "GDCMJ2K_TextGBR.dcm")
    original.pixel_array_options(decoding_plugin="gdcm")
    np.testing.assert_array_equal(frame, original.pixel_array)


@pytest.mark.parametrize("syntax", sorted(syntaxes.SECOND_DECODERS))
def test_the_second_decoder_refuses_the_damaged_frames_that_the_first_refuses(syntax: str) -> None:
    data_set = dataset(ramp(dtype="uint16", top=4000), BitsStored=12)
    frame = ENCODERS[syntax](ramp(dtype="uint16", top=4000), data_set).rstrip(b"\0")
    draw = random.Random(syntax)
    refused = 0
    for number in range(40):
        at = draw.randrange(len(frame) // 3, len(frame) - 4)
        if number % 2:
            damaged = frame[:at] + b"\xff\xd9"
        else:
            damaged = frame[:at] + bytes([frame[at] ^ 1 << draw.randrange(8)]) + frame[at + 1 :]
        content = encapsulated(data_set, damaged + bytes(len(damaged) % 2), syntax)
        decoder, plugin = get_decoder(syntax), syntaxes.DECODERS[syntax]
        try:
            decoder.as_array(pydicom.dcmread(BytesIO(content)), index=0, decoding_plugin=plugin)
        except (RuntimeError, ValueError):
            refused += 1
            with pytest.raises(ImageError):
                first_frame(content)
    assert refused >= 20, "at least the truncated ones"


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        ("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1"),
        ("1.2.840.10008.1.2.4.107", "HEVC/H.265 Main Profile / Level 5.1"),
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000 Image Compression (Lossless Only)"),
    ],
)
def test_unsupported_syntaxes_are_refused_by_name(uid: str, name: str) -> None:
    with pytest.raises(ImageError, match=re.escape(name)) as caught:
        first_frame(encapsulated(dataset(ramp()), b"\0\0", uid))
    assert caught.value.reason == Reason.IMAGE_SYNTAX


def test_an_unregistered_syntax_is_refused_without_quoting_it() -> None:
    content = file(ramp()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.19530517.66.77\0\0")
    with pytest.raises(ImageError, match="not registered") as caught:
        first_frame(content)
    assert "19530517" not in str(caught.value)


OWN_REFUSALS = {
    "ExplVR_BigEndNoMeta": "not a DICOM file",
    "ExplVR_LitEndNoMeta": "not a DICOM file",
    "JPEG-lossy": "12 bits",
    "JPEG2000-embedded-sequence-delimiter": "another size",
    "JPGExtended": "12 bits",
    "MR_truncated": "truncated",
    "badVR": "not a number",
    "liver_1frame": "functional groups",
    "liver_expb_1frame": "functional groups",
    "meta_missing_tsyntax": "TransferSyntaxUID",
    "no_meta": "not a DICOM file",
    "rtstruct": "not a DICOM file",
}
"""pydicom's files with an image that this reader refuses, and why."""
NO_IMAGE = (
    "UN_sequence",
    "empty_charset_LEI",
    "nested_priv_SQ",
    "no_meta_group_length",
    "priv_SQ",
    "reportsi",
    "reportsi_with_empty_number_tags",
    "rtplan",
    "rtplan_truncated",
    "test-SR",
    "waveform_ecg",
)


@pytest.mark.parametrize("path", sorted(PYDICOM_FILES.glob("*.dcm")), ids=lambda path: path.stem)
def test_pydicoms_test_files_are_read_or_refused_for_a_known_reason(path: Path) -> None:
    def read() -> list[NDArray[np.uint8]]:
        return list(read_dicom(path.read_bytes(), settings(accept_unflagged=True)).frames)

    if path.stem in (*OWN_REFUSALS, *NO_IMAGE):
        with pytest.raises(ImageError, match=OWN_REFUSALS.get(path.stem, "without an image")):
            read()
    else:
        assert all(frame.dtype == np.uint8 and frame.any() for frame in read())


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE",
        "MR_small_bigendian",
        "MR_small_implicit",
        "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless",
    ],
)
def test_an_image_is_the_same_in_every_lossless_syntax(name: str) -> None:
    uncompressed, other = (
        first_frame((PYDICOM_FILES / f"{stem}.dcm").read_bytes(), accept_unflagged=True)
        for stem in ("MR_small", name)
    )
    np.testing.assert_array_equal(uncompressed, other)
