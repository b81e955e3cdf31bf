"""DICOM: every photometric interpretation and transfer syntax shows the image that was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from stages.corpus.dicom import syntaxes
from stages.corpus.dicom.headers.elements import BIG_ENDIAN, EXPLICIT, IMPLICIT
from stages.corpus.dicom.reader import read_dicom
from stages.corpus.images.decoding import ImageError
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

PYDICOMS = Path(pydicom.__file__).parent / "data" / "test_files"
LOSSY = (syntaxes.JPEG_BASELINE, syntaxes.JPEG_EXTENDED, syntaxes.JPEG_LS_NEAR, syntaxes.JPEG_2000)


def shown(content: bytes, **changes: Any) -> NDArray[np.uint8]:
    """The first frame."""
    return read_dicom(content, settings(**changes)).frames[0]


# --- photometric interpretations
# ---------------------------------------------------------------------------------------


def test_eight_bits_without_a_window_keep_their_values() -> None:
    np.testing.assert_array_equal(shown(file(ramp())), ramp())


def test_monochrome1_is_inverted() -> None:
    np.testing.assert_array_equal(
        shown(file(ramp(), PhotometricInterpretation="MONOCHROME1")), 255 - ramp()
    )


@pytest.mark.parametrize(
    ("dtype", "top"),
    [("uint16", 4095), ("uint16", 65535), ("int16", 2000), ("uint32", 2**31), ("int32", 2**30)],
)
def test_deep_grey_without_a_window_takes_the_range_of_its_pixels(dtype: str, top: int) -> None:
    pixels = ramp(dtype=dtype, top=top) // 2 + (-top // 4 if dtype.startswith("i") else 7)
    values = pixels.astype(float)
    wanted = np.rint((values - values.min()) / np.ptp(values) * 255)
    np.testing.assert_array_equal(shown(file(pixels)), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_pixel_data_is_read(dtype: str) -> None:
    pixels = (ramp().astype(dtype) - 100) / 7
    np.testing.assert_array_equal(shown(file(pixels)), ramp())


def test_one_bit_a_pixel_is_black_and_white() -> None:
    bits = (ramp((3, 5)) > 127).astype(np.uint8)
    packed = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    content = file(bits, BitsAllocated=1, BitsStored=1, PixelData=packed)
    np.testing.assert_array_equal(shown(content), bits * 255)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_are_not_stored_do_not_show(signed: bool) -> None:
    """Overlays, with text, may lie in them."""
    clean = ramp(dtype="uint16", top=4095)
    dirty = (clean | 0xF000 * (np.arange(40, dtype=np.uint16) % 2)).astype("<u2")
    elements: dict[str, Any] = {
        "BitsStored": 12,
        "PixelRepresentation": int(signed),
        "WindowCenter": 1000,
        "WindowWidth": 2500,
    }
    np.testing.assert_array_equal(shown(file(dirty, **elements)), shown(file(clean, **elements)))


def test_bits_of_jpeg_2000_that_are_not_stored_do_not_show_either() -> None:
    clean = ramp(dtype="uint16", top=4095)
    dirty = clean | 0x8000 * (np.arange(40, dtype=np.uint16) % 2)
    sixteen = encapsulate([ENCODERS[syntaxes.JPEG_2000_LOSSLESS](dirty, dataset(dirty))])
    found = dataset(dirty, BitsStored=12, PixelData=sixteen, WindowCenter=1000, WindowWidth=2500)
    found["PixelData"].is_undefined_length = True
    wanted = shown(file(clean, BitsStored=12, WindowCenter=1000, WindowWidth=2500))
    np.testing.assert_array_equal(shown(written(found, syntaxes.JPEG_2000_LOSSLESS)), wanted)


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_is_read_by_pixel_and_by_plane(planar: int) -> None:
    pixels = colours()
    stored = pixels if planar == 0 else pixels.transpose(2, 0, 1)
    content = file(pixels, PlanarConfiguration=planar, PixelData=stored.tobytes())
    np.testing.assert_array_equal(shown(content), pixels)


def test_sixteen_bit_colours_become_eight() -> None:
    np.testing.assert_array_equal(shown(file(colours().astype(np.uint16) * 257)), colours())


def test_twelve_of_sixteen_bits_of_a_colour_become_eight() -> None:
    pixels = np.rint(colours() * (4095 / 255)).astype(np.uint16)
    np.testing.assert_array_equal(shown(file(pixels, BitsStored=12)), colours())


def test_ybr_full_becomes_rgb() -> None:
    ybr = convert_color_space(colours(), "RGB", "YBR_FULL")
    found = shown(file(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(found.astype(int) - colours()).max() <= 2


def test_ybr_full_422_becomes_rgb() -> None:
    flat = np.repeat(colours()[:, ::2], 2, axis=1)
    ybr = convert_color_space(flat, "RGB", "YBR_FULL").reshape(-1, 2, 3)
    packed = np.stack([ybr[:, 0, 0], ybr[:, 1, 0], ybr[:, 0, 1], ybr[:, 0, 2]], axis=-1)
    found = shown(file(flat, PhotometricInterpretation="YBR_FULL_422", PixelData=packed.tobytes()))
    assert np.abs(found.astype(int) - flat).max() <= 2


def palette(bits: int, segmented: bool = False) -> dict[str, Any]:
    """Red rises, green falls, blue stays; 256 entries, the first for the stored value 10."""
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
def test_palette_colours_are_looked_up(bits: int, segmented: bool) -> None:
    at = np.clip(ramp().astype(int) - 10, 0, 255)
    wanted = np.stack([at, 255 - at, np.full_like(at, 90)], axis=-1)
    np.testing.assert_array_equal(shown(file(ramp(), **palette(bits, segmented))), wanted)


def test_a_palette_agrees_with_pydicoms() -> None:
    found = dataset(ramp(), **palette(16))
    theirs = apply_color_lut(ramp(), found)
    np.testing.assert_array_equal(shown(written(found)), theirs >> 8)


def test_stored_values_beyond_a_palette_take_its_last_entry_whatever_the_depth_of_entries() -> None:
    pixels = np.array([[0, 9, 10, 11, 255, 265, 266, 300, 65535]], dtype="uint16")
    red = [0, 0, 0, 1, 245, 255, 255, 255, 255]
    assert shown(file(pixels, **palette(8)))[0, :, 0].tolist() == red


def test_a_linear_segment_is_rounded_to_even() -> None:
    elements = palette(8, segmented=True)
    data = np.array([0, 1, 0, 1, 4, 10, 1, 251, 10, 0], dtype=np.uint8)
    elements["SegmentedRedPaletteColorLookupTableData"] = data.tobytes()
    pixels = np.array([[10, 11, 12, 13, 14, 15]], dtype=np.uint8)
    assert shown(file(pixels, **elements))[0, :, 0].tolist() == [0, 2, 5, 8, 10, 10]


def test_an_indirect_segment_of_a_palette_is_refused() -> None:
    elements = palette(16, segmented=True)
    elements["SegmentedRedPaletteColorLookupTableData"] = np.array(
        [0, 1, 0, 2, 60_000, 0, 0], dtype="<u2"
    ).tobytes()
    with pytest.raises(ImageError, match="segment that is damaged, or indirect"):
        shown(file(ramp(), **elements))


# --- transfer syntaxes
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_uncompressed_files_of_any_order_of_bytes_are_read(syntax: str, dtype: str) -> None:
    pixels = ramp(dtype=dtype)
    found = dataset(pixels, WindowCenter=128, WindowWidth=256)
    if syntax == BIG_ENDIAN and dtype == "uint16":
        found.PixelData = pixels.byteswap().tobytes()
    np.testing.assert_array_equal(shown(written(found, syntax)), ramp())


def test_a_deflated_file_is_read() -> None:
    np.testing.assert_array_equal(shown(deflated(file(ramp()))), ramp())


@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED))
def test_compressed_grey_is_read(syntax: str) -> None:
    found = shown(compressed(ramp(), syntax)).astype(int)
    assert np.abs(found - ramp()).max() <= (8 if syntax in LOSSY else 0)


@pytest.mark.parametrize("syntax", sorted(syntaxes.ENCAPSULATED))
def test_compressed_colours_are_read(syntax: str) -> None:
    kinds = {syntaxes.JPEG_BASELINE: "YBR_FULL_422", syntaxes.JPEG_EXTENDED: "YBR_FULL_422"}
    kinds |= {syntaxes.JPEG_2000_LOSSLESS: "YBR_RCT", syntaxes.JPEG_2000: "YBR_ICT"}
    found = shown(
        compressed(colours(), syntax, PhotometricInterpretation=kinds.get(syntax, "RGB"))
    ).astype(int)
    assert np.abs(found - colours()).max() <= (12 if syntax in LOSSY else 0)


@pytest.mark.parametrize(
    "syntax", sorted(syntaxes.ENCAPSULATED - {syntaxes.JPEG_BASELINE, syntaxes.JPEG_EXTENDED})
)
@pytest.mark.parametrize(("dtype", "stored"), [("uint16", 16), ("uint16", 12), ("int16", 16)])
def test_compressed_deep_grey_is_read(syntax: str, dtype: str, stored: int) -> None:
    pixels = ramp(dtype=dtype, top=4000) - (2000 if dtype == "int16" else 0)
    window = {"WindowCenter": 0 if dtype == "int16" else 2000, "WindowWidth": 4001}
    plain = shown(file(pixels, BitsStored=stored, **window)).astype(int)
    found = shown(compressed(pixels, syntax, BitsStored=stored, **window)).astype(int)
    assert np.abs(found - plain).max() <= (4 if syntax in LOSSY else 0)


@pytest.mark.parametrize(
    "syntax", [syntaxes.RLE, syntaxes.JPEG_BASELINE, syntaxes.JPEG_LS, syntaxes.JPEG_2000_LOSSLESS]
)
def test_every_frame_of_a_compressed_file_is_read(syntax: str) -> None:
    frames = np.stack([ramp() // (number + 1) for number in range(3)])
    found = read_dicom(compressed(frames, syntax), settings()).frames
    assert len(found) == 3
    for one, wanted in zip(found, frames, strict=True):
        assert np.abs(one.astype(int) - wanted).max() <= 4


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        ("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1"),
        ("1.2.840.10008.1.2.4.107", "HEVC/H.265 Main Profile / Level 5.1"),
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000 Image Compression (Lossless Only)"),
    ],
)
def test_other_syntaxes_are_refused_by_their_name(uid: str, name: str) -> None:
    found = dataset(ramp())
    found.PixelData = pydicom.encaps.encapsulate([b"\0\0"])
    found["PixelData"].is_undefined_length = True
    with pytest.raises(ImageError, match="is not supported") as caught:
        shown(written(found, uid))
    assert name in str(caught.value)


def test_a_syntax_that_is_not_registered_is_refused_without_quoting_it() -> None:
    found = dataset(ramp())
    content = written(found, EXPLICIT).replace(b"1.2.840.10008.1.2.1\0", b"1.2.19530517.66.77\0\0")
    with pytest.raises(ImageError, match="not registered") as caught:
        shown(content)
    assert "19530517" not in str(caught.value)


OWN_REFUSALS = {
    "ExplVR_BigEndNoMeta": "not a DICOM file",
    "ExplVR_LitEndNoMeta": "not a DICOM file",
    "GDCMJ2K_TextGBR": "damaged",
    "JPEG-lossy": "12 bits",
    "JPEG2000-embedded-sequence-delimiter": "another size",
    "JPGExtended": "12 bits",
    "MR_truncated": "cut short",
    "badVR": "not a number",
    "liver_1frame": "functional groups",
    "liver_expb_1frame": "functional groups",
    "meta_missing_tsyntax": "transfer syntax",
    "no_meta": "not a DICOM file",
    "rtstruct": "not a DICOM file",
}
"""Of pydicom's files with an image those that this reader refuses, and why."""
NO_IMAGE = (
    *(
        "UN_sequence",
        "empty_charset_LEI",
        "nested_priv_SQ",
        "no_meta_group_length",
        "priv_SQ",
        "reportsi",
        "rtplan",
        "rtplan_truncated",
    ),
    *("reportsi_with_empty_number_tags", "test-SR", "waveform_ecg"),
)


@pytest.mark.parametrize("path", sorted(PYDICOMS.glob("*.dcm")), ids=lambda path: path.stem)
def test_pydicoms_own_files_are_read_or_refused_for_a_known_reason(path: Path) -> None:
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
def test_one_image_looks_the_same_in_every_lossless_syntax(name: str) -> None:
    plain, other = (
        shown((PYDICOMS / f"{stem}.dcm").read_bytes(), accept_unflagged=True)
        for stem in ("MR_small", name)
    )
    np.testing.assert_array_equal(plain, other)
