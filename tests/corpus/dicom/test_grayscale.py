"""Grayscale pipeline, compared with the standard's equations and with pydicom's functions."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing

from stages.corpus.dicom.grayscale import Rescale, Window
from stages.corpus.dicom.reader import read_dicom
from stages.corpus.images.decoding import ImageError
from tests.dicoms import dataset, file, ramp, settings, written

HU: dict[str, Any] = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def rendered(
    image: Dataset | NDArray[Any],
    index: int = 0,
    ct_window: list[float] | None = None,
    **elements: Any,
) -> NDArray[np.uint8]:
    """A frame of a data set, or of pixels with further elements, in 8 bits."""
    content = written(image) if isinstance(image, Dataset) else file(image, **elements)
    return read_dicom(content, settings(ct_window=ct_window)).frames[index]


def levels(*values: float, dtype: str = "int16") -> NDArray[Any]:
    """An image one row high."""
    return np.array([values], dtype=dtype)


@pytest.mark.parametrize(
    ("function", "center", "width", "value", "expected"),
    [
        # PS3.3 C.11.2.1.2: x <= c - 0.5 - (w-1)/2 is black, x > c - 0.5 + (w-1)/2 white
        ("LINEAR", 2048, 4096, 0, 0),
        ("LINEAR", 2048, 4096, 4095, 1),
        ("LINEAR", 2048, 4096, 2047.5, 0.5),
        ("LINEAR", 2048, 1, 2047, 0),
        ("LINEAR", 2048, 1, 2048, 1),
        ("LINEAR", 0, 100, -50, 0),
        ("LINEAR", 0, 100, 49, 1),
        ("LINEAR", 0, 100, 10, 10.5 / 99 + 0.5),
        # C.11.2.1.3.2: x <= c - w/2, x > c + w/2
        ("LINEAR_EXACT", 2048, 4096, 0, 0),
        ("LINEAR_EXACT", 2048, 4096, 4096, 1),
        ("LINEAR_EXACT", 2048, 4096, 2048, 0.5),
        ("LINEAR_EXACT", 0, 0.5, 0.1, 0.7),
        # C.11.2.1.3.1
        ("SIGMOID", 100, 50, 100, 0.5),
        ("SIGMOID", 100, 50, 150, 1 / (1 + math.exp(-4))),
        ("SIGMOID", 100, 50, -1e9, 0),
        ("SIGMOID", 100, 50, 1e9, 1),
    ],
)
def test_a_window_follows_the_equations_of_the_standard(
    function: Any, center: float, width: float, value: float, expected: float
) -> None:
    assert Window(center, width, function)(np.array([value])) == pytest.approx(expected, abs=1e-12)


def test_rescale_is_slope_times_value_plus_intercept() -> None:
    assert Rescale(2.5, -1024)(np.array([0.0, 400.0])).tolist() == [-1024, -24]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (-600, 1500), (300.5, 77.25)])
def test_a_window_agrees_with_pydicom(function: str, center: float, width: float) -> None:
    elements = HU | {
        "WindowCenter": center,
        "WindowWidth": width,
        "VOILUTFunction": function,
        "BitsStored": 12,
    }
    pixels = ramp(dtype="uint16", top=4095)
    data_set = dataset(pixels, **elements)
    windowed = apply_windowing(apply_modality_lut(pixels, data_set), data_set)
    # pydicom scales to the range of modality values: -1024 to 3071
    expected = (windowed + 1024) / 4095 * 255
    assert np.abs(rendered(data_set) - expected).max() <= 0.5 + 1e-9


def lut(first: int, bits: int, entries: NDArray[Any], vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries) % 2**16, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


@pytest.mark.parametrize(("first", "bits"), [(0, 10), (100, 12), (1000, 16)])
def test_a_voi_lut_agrees_with_pydicom_and_precedes_a_window(first: int, bits: int) -> None:
    entries = np.rint(np.linspace(0, 1, 2000) ** 2 * (2**bits - 1))
    elements = {
        "VOILUTSequence": [lut(first, bits, entries)],
        "WindowCenter": 5,
        "WindowWidth": 10,
        "BitsStored": 12,
    }
    pixels = ramp(dtype="uint16", top=4095)
    data_set = dataset(pixels, **elements)
    mapped = apply_voi_lut(pixels, dcmread(BytesIO(written(data_set))))
    assert np.abs(rendered(data_set) - mapped / (2**bits - 1) * 255).max() <= 0.5 + 1e-9


def test_the_first_value_of_a_voi_lut_may_be_negative() -> None:
    table = lut(-2, 8, np.array([10, 20, 30, 40]), "SS")
    pixels = levels(-9, -2, -1, 0, 1, 9)
    assert rendered(pixels, VOILUTSequence=[table]).tolist() == [[10, 10, 20, 30, 40, 40]]


def test_a_modality_lut_agrees_with_pydicom_and_replaces_a_rescale() -> None:
    pixels = ramp(dtype="uint16", top=200)
    table = lut(20, 8, np.arange(150)[::-1])
    table.ModalityLUTType = "US"
    data_set = dataset(pixels, ModalityLUTSequence=[table], BitsStored=8)
    np.testing.assert_array_equal(rendered(data_set), apply_modality_lut(pixels, data_set))


@pytest.mark.parametrize("entries", [65536, 10])
def test_a_descriptor_of_0_entries_means_65536(entries: int) -> None:
    step = 65535 // (entries - 1)
    table = lut(0, 16, np.arange(entries) * step)
    expected = [round(value * step / 65535 * 255) for value in (0, 5, 9)]
    pixels = levels(0, 5, 9, dtype="uint16")
    assert rendered(pixels, VOILUTSequence=[table]).tolist() == [expected]


VALUES = (-30, 0, 13, 50, 77, 100, 150, 400)


@pytest.mark.parametrize(
    ("function", "photometric", "expected"),
    [
        ("LINEAR", "MONOCHROME2", [10, 42, 56, 95, 124, 149, 203, 255]),
        ("LINEAR", "MONOCHROME1", [245, 213, 199, 160, 131, 106, 52, 0]),
        ("LINEAR_EXACT", "MONOCHROME2", [10, 41, 55, 95, 123, 148, 201, 255]),
        ("LINEAR_EXACT", "MONOCHROME1", [245, 214, 200, 160, 132, 107, 54, 0]),
        ("SIGMOID", "MONOCHROME2", [35, 52, 62, 95, 123, 148, 194, 254]),
        ("SIGMOID", "MONOCHROME1", [220, 203, 193, 160, 132, 107, 61, 1]),
    ],
)
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_golden_windows_after_a_rescale(
    function: str,
    photometric: str,
    expected: list[int],
    dtype: str,
) -> None:
    elements: dict[str, Any] = {
        "PhotometricInterpretation": photometric,
        "VOILUTFunction": function,
        "WindowCenter": 60.5,
        "WindowWidth": 120,
        "RescaleSlope": 0.5,
        "RescaleIntercept": 20,
    }
    assert rendered(levels(*VALUES, dtype=dtype), **elements).tolist() == [expected]


def test_golden_levels_of_a_window_after_a_negative_slope() -> None:
    window: dict[str, Any] = {"WindowCenter": -60, "WindowWidth": 100}
    grey = rendered(levels(*VALUES), RescaleSlope=-1.5, RescaleIntercept=3, **window)
    assert grey.tolist() == [[255, 255, 241, 98, 0, 0, 0, 0]]


def test_golden_levels_of_values_too_far_apart_for_a_table() -> None:
    pixels = levels(-(2**31), -70000, 0, 100000, 2**31 - 1, dtype="int32")
    expected = [[0, 68, 128, 213, 255]]
    assert rendered(pixels, WindowCenter=0, WindowWidth=300000).tolist() == expected


def test_golden_levels_of_a_window_after_a_modality_lut_of_12_bits() -> None:
    table = lut(5, 12, np.array([0, 100, 900, 4095]))
    table.ModalityLUTType = "US"
    elements: dict[str, Any] = {
        "ModalityLUTSequence": [table],
        "WindowCenter": 500,
        "WindowWidth": 1000,
    }
    assert rendered(levels(0, 5, 6, 7, 8, 99), **elements).tolist() == [[0, 0, 26, 230, 255, 255]]


def test_golden_levels_of_a_voi_lut_after_a_rescale_to_fractions() -> None:
    table = lut(-1, 8, np.array([10, 20, 30, 40]), "SS")
    elements: dict[str, Any] = {
        "RescaleSlope": 0.75,
        "RescaleIntercept": -1,
        "VOILUTSequence": [table],
    }
    assert rendered(levels(0, 1, 2, 3, 4), **elements).tolist() == [[10, 20, 20, 30, 40]]


@pytest.mark.parametrize(
    ("table", "values", "expected"),
    [
        # pydicom's apply_voi wraps the first two and refuses the third
        (lut(0, 8, np.arange(4096) // 16), (0, 15, 16, 300, 4095, 5000), [0, 0, 1, 18, 255, 255]),
        (lut(0, 16, np.arange(65536)), (0, 30000, 65535, 70000), [0, 117, 255, 255]),
        (lut(0, 6, np.array([0, 20, 40, 63])), (0, 3, 9), [0, 255, 255]),
    ],
)
def test_the_index_of_a_voi_lut_may_exceed_the_range_of_its_entries(
    table: Dataset,
    values: tuple[int, ...],
    expected: list[int],
) -> None:
    pixels = levels(*values, dtype="uint32")
    assert rendered(pixels, VOILUTSequence=[table]).tolist() == [expected]


def test_frames_of_different_ranges_map_equal_values_to_equal_levels() -> None:
    frames = np.stack([levels(0, 5, 6, 10), levels(-3000, 5, 6, 30000), levels(5, 5, 6, 6)])
    window: dict[str, Any] = {"WindowCenter": 5.5, "WindowWidth": 11}
    expected = [[[0, 128, 153, 255]], [[0, 128, 153, 255]], [[128, 128, 153, 153]]]
    assert [rendered(frames, index, **window).tolist() for index in range(3)] == expected


# --- CT


def test_ct_in_hounsfield_units_uses_the_window_of_the_settings() -> None:
    pixels = levels(1024 - 160, 1024 + 40, 1024 + 239, 1024 - 1000, 3000)
    # c 40, w 400: -160 HU is black, 239 HU white, 40 HU (0.5 / 399 + 0.5) of the way
    grey = rendered(pixels, ct_window=[40, 400], WindowCenter=0, WindowWidth=10, **HU)
    assert grey.tolist() == [[0, 128, 255, 0, 255]]


def test_without_ct_window_ct_uses_its_own_window() -> None:
    grey = rendered(levels(1023, 1024, 1025), WindowCenter=1, WindowWidth=1, **HU)
    assert grey.tolist() == [[0, 0, 255]]


@pytest.mark.parametrize(
    "elements",
    [
        {"Modality": "MR", "RescaleSlope": 1, "RescaleIntercept": 0},
        {"Modality": "CT"},
        {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US"},
    ],
)
def test_ct_window_applies_to_hounsfield_units_only(elements: dict[str, Any]) -> None:
    own_window: dict[str, Any] = {"WindowCenter": 5.5, "WindowWidth": 11}
    grey = rendered(levels(0, 5, 10), ct_window=[40, 400], **own_window, **elements)
    assert grey.tolist() == [[0, 128, 255]]


# --- ranges, inversion, padding


def test_the_first_of_several_windows_is_used() -> None:
    grey = rendered(levels(0, 5, 10), WindowCenter=[5.5, 900], WindowWidth=[11, 3])
    assert grey.tolist() == [[0, 128, 255]]


def test_eight_bits_use_their_full_range_after_a_rescale() -> None:
    np.testing.assert_array_equal(
        rendered(ramp(), RescaleSlope=-2, RescaleIntercept=9), 255 - ramp()
    )


def test_padding_is_ignored_for_the_range() -> None:
    assert rendered(levels(-2000, 0, 50, 100), PixelPaddingValue=-2000).tolist() == [
        [0, 0, 128, 255]
    ]
    padded = rendered(
        levels(-2000, -1500, 0, 50, 100), PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1000
    )
    assert padded.tolist() == [[0, 0, 0, 128, 255]]


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
    ],
)
def test_the_inversion_is_applied_last_and_once(
    photometric: str, shape: str | None, inverted: bool
) -> None:
    elements: dict[str, Any] = {
        "PhotometricInterpretation": photometric,
        "WindowCenter": 5.5,
        "WindowWidth": 11,
    }
    if shape is not None:
        elements["PresentationLUTShape"] = shape
    grey = rendered(levels(0, 5, 10), **elements)
    assert grey.tolist() == [[255, 128, 0] if inverted else [0, 128, 255]]


def test_a_flat_image_is_black() -> None:
    assert not rendered(levels(7, 7, 7)).any()


def test_pixels_over_the_full_range_of_32_bits_are_scaled() -> None:
    assert rendered(levels(-(2**31), 0, 2**31 - 1, dtype="int32")).tolist() == [[0, 128, 255]]


def test_each_frame_of_an_enhanced_file_has_its_own_steps() -> None:
    def group(intercept: float, center: float) -> Dataset:
        transformation = Dataset()
        transformation.RescaleSlope = 1
        transformation.RescaleIntercept = intercept
        transformation.RescaleType = "US"
        window = Dataset()
        window.WindowCenter = center
        window.WindowWidth = 11
        functional_group = Dataset()
        functional_group.PixelValueTransformationSequence = [transformation]
        functional_group.FrameVOILUTSequence = [window]
        return functional_group

    frames = np.stack([levels(0, 5, 10, 10), levels(0, 5, 10, 10)])
    groups = [group(0, 5.5), group(100, 110.5)]
    per_frame = dataset(frames, PerFrameFunctionalGroupsSequence=groups)
    assert rendered(per_frame, 0).tolist() == [[0, 128, 255, 255]]
    assert rendered(per_frame, 1).tolist() == [[0, 0, 128, 128]]
    shared = dataset(frames, SharedFunctionalGroupsSequence=[group(100, 105.5)])
    assert rendered(shared, 1).tolist() == [[0, 128, 255, 255]]


def without(item: Dataset, keyword: str) -> Dataset:
    delattr(item, keyword)
    return item


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("items", [[], [Dataset()]])
def test_an_empty_sequence_of_luts_is_none(keyword: str, items: list[Dataset]) -> None:
    levels = read_dicom(file(ramp(), **{keyword: items}), settings()).frames[0]
    assert np.array_equal(levels, read_dicom(file(ramp()), settings()).frames[0])


@pytest.mark.parametrize(
    ("elements", "why"),
    [
        ({"WindowCenter": 5, "WindowWidth": 0}, "WindowWidth"),
        ({"WindowCenter": 5, "WindowWidth": -3, "VOILUTFunction": "SIGMOID"}, "WindowWidth"),
        ({"WindowCenter": 5}, "WindowWidth is missing"),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "JANE"}, "VOILUTFunction"),
        ({"RescaleSlope": 0}, "RescaleSlope"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}, "not finite"),
        ({"VOILUTSequence": [lut(0, 17, np.arange(9))]}, "LUTDescriptor"),
        ({"VOILUTSequence": [without(lut(0, 8, np.arange(9)), "LUTData")]}, "LUTData"),
    ],
)
def test_steps_that_the_standard_does_not_define_are_refused(
    elements: dict[str, Any], why: str
) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        rendered(levels(0, 500, 1000), **elements)
    assert "JANE" not in str(caught.value)


def test_a_table_shorter_than_its_descriptor_is_refused() -> None:
    table = lut(0, 12, np.arange(9))
    table.LUTData = table.LUTData[:-4]
    with pytest.raises(ImageError, match=r"LUTData.*LUTDescriptor"):
        rendered(levels(0, 5), VOILUTSequence=[table])


def test_float_pixels_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ImageError, match="not finite"):
        rendered(levels(0, math.nan, dtype="float32"))


def test_a_range_that_is_not_finite_refuses_all_frames() -> None:
    frames = np.stack([levels(0, math.nan, dtype="float32"), levels(0, 1, dtype="float32")])
    for index in range(2):
        with pytest.raises(ImageError, match="not finite"):
            rendered(frames, index)
