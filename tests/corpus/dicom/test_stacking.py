"""Several slices of a series, or frames of a file: their order, and what is no volume."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import dcmread

from stages.corpus.dicom import syntaxes
from stages.corpus.dicom.series import read_series
from stages.corpus.images.decoding import ImageError
from stages.corpus.images.files import decode_files
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import resize_settings
from tests.dicoms import (
    acquired,
    compressed,
    dataset,
    enhanced,
    file,
    geometry,
    phantom,
    ramp,
    series,
    settings,
    written,
)
from tests.volumes import IDENTITY, volume_settings

VOLUME = phantom((4, 5, 12))
AXIAL = [1, 0, 0, 0, 1, 0]
CORONAL = [1, 0, 0, 0, 0, -1]
PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
SMALL = resize_settings(size=28)


def stack(contents: list[bytes], **changes: Any) -> np.ndarray[Any, Any]:
    frames = read_series(contents, settings(**changes), window=IDENTITY, stacked=True).frames
    return np.stack(list(frames))


def refusal(contents: list[bytes], **changes: Any) -> str:
    """Why several slices of it are refused; one of them, as stored, is shown all the same."""
    with pytest.raises(ImageError) as caught:
        read_series(contents, settings(**changes), stacked=True)
    assert caught.value.reason is Reason.IMAGE_VOLUME
    assert caught.value.__context__ is None
    assert read_series(contents, settings(**changes)).frames[0].size
    return str(caught.value)


def at(*heights: float, orientation: list[int] | None = None) -> list[bytes]:
    """Axial slices of these heights, numbered in their order."""
    return [
        file(
            np.full((4, 5), number, dtype=np.uint8),
            InstanceNumber=number,
            ImagePositionPatient=[3.0, 4.0, height],
            ImageOrientationPatient=orientation or AXIAL,
        )
        for number, height in enumerate(heights, start=1)
    ]


def test_slices_are_in_the_order_of_the_patient() -> None:
    contents = series(VOLUME)
    np.testing.assert_array_equal(stack(contents[5:] + contents[:5]), acquired(VOLUME))


def test_frames_of_a_file_are_sorted_by_their_positions_if_several_are_shown() -> None:
    order = [3, 0, 2, 1, *range(11, 3, -1)]
    content = enhanced(VOLUME, order=order)
    np.testing.assert_array_equal(stack([content]), acquired(VOLUME))
    as_stored = read_series([content], settings(), window=IDENTITY)
    np.testing.assert_array_equal(np.stack(list(as_stored.frames)), acquired(VOLUME)[order])
    assert as_stored.affine is None


def test_frames_of_several_files_are_sorted_together() -> None:
    even, odd = (enhanced(VOLUME, order=list(range(first, 12, 2))) for first in (0, 1))
    np.testing.assert_array_equal(stack([odd, even]), acquired(VOLUME))


def test_frames_without_positions_stay_as_they_are_stored() -> None:
    clip = np.stack([np.full((4, 5), level, np.uint8) for level in (9, 3, 7)])
    for elements in ({}, {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": AXIAL}):
        assert stack([file(clip, **elements)])[:, 0, 0].tolist() == [9, 3, 7]


def test_slices_without_positions_stay_sorted_by_their_numbers() -> None:
    contents = series(VOLUME, ImagePositionPatient=None)
    np.testing.assert_array_equal(stack(contents[::-1]), acquired(VOLUME))
    some = [*at(0, 5), file(np.full((4, 5), 3, np.uint8), InstanceNumber=0)]
    assert stack(some)[:, 0, 0].tolist() == [3, 1, 2]


def test_slices_of_one_position_are_a_dynamic_series_sorted_by_number() -> None:
    assert stack(at(7, 7, 7.001, 7)[::-1])[:, 0, 0].tolist() == [1, 2, 3, 4]


def test_a_localiser_is_named_by_its_file() -> None:
    contents = series(VOLUME)
    scout = geometry(VOLUME, "coronal", 0)
    contents[3:3] = [file(VOLUME[:, :5, 0].T, **scout), file(VOLUME[:, :5, 1].T, **scout)]
    why = refusal(contents)
    assert "file 4, file 5 are not parallel to the others" in why
    several = [
        *at(0, 1),
        *at(0, orientation=CORONAL),
        *at(2, 3),
    ]
    assert "file 3 is not parallel" in refusal(several)


def test_orientations_that_differ_by_rounding_are_parallel() -> None:
    tilted = [1, 0.0004, 0, -0.0004, 1, 0]
    contents = [*at(0, 5), *at(10, orientation=tilted)]  # type: ignore[arg-type]
    assert len(stack(contents)) == 3


def test_a_radial_acquisition_names_some_of_its_files() -> None:
    contents = []
    for step in range(20):
        cosine, sine = np.cos(step / 20), np.sin(step / 20)
        orientation = [cosine, sine, 0, -sine * 0, 0, -1]
        contents += at(float(step), orientation=orientation)
    assert "not parallel" in refusal(contents)
    assert len(refusal(contents)) < 300


@pytest.mark.parametrize("heights", [(0, 5, 5, 10), (0, 5, 5.004, 10), (0, 10, 5, 5)])
def test_a_slice_that_is_there_twice_is_named_with_its_position(heights: Any) -> None:
    why = refusal(at(*heights))
    files = [number for number, height in enumerate(heights, start=1) if 5 <= height < 6]
    assert f"file {files[0]} and file {files[1]} lie at one position, 5.0 mm" in why
    assert "more such pairs" not in why


def test_a_volume_that_is_there_several_times_is_refused() -> None:
    why = refusal(at(*[0, 5, 10] * 4))
    assert "file 1 and file 4 lie at one position, 0.0 mm" in why
    assert "and 8 more such pairs" in why


@pytest.mark.parametrize(
    ("heights", "why"),
    [
        ((0, 5, 10, 25, 30), "10.0 and 25.0 mm.*15.0 mm.*most are 5.0 mm: about 2 slices"),
        ((0, 5, 15), "5.0 and 15.0 mm.*10.0 mm.*about 1 slice seems to be missing$"),
        ((0, 5, 10, 16.1, 21), "10.0 and 16.1 mm.*6.1 mm from each other, while most are 5.0 mm$"),
        ((0, 5, 10, 13, 18), "10.0 and 13.0 mm.*3.0 mm from each other"),
        ((-30, -20, -10, 30), "-10.0 and 30.0 mm.*about 3 slices"),
    ],
)
def test_an_uneven_distance_is_named_with_what_seems_to_be_missing(
    heights: tuple[float, ...], why: str
) -> None:
    with pytest.raises(ImageError, match=why):
        read_series(at(*heights), settings(), stacked=True)
    assert refusal(at(*heights)[::-1]).startswith("file ")


def test_the_files_on_both_sides_of_a_gap_are_named() -> None:
    contents = series(VOLUME)
    del contents[4:6]
    assert "file 4 and file 5 are neighbours, at -24.0 and -18.0 mm" in refusal(contents)
    del_from = enhanced(VOLUME, order=[0, 1, 2, 3, 6, 7, 8])
    assert "frame 4 and frame 5 are neighbours" in refusal([del_from])
    halves = [enhanced(VOLUME, order=[0, 1, 2]), enhanced(VOLUME, order=[5, 6])]
    assert "frame 3 of file 1 and frame 1 of file 2 are" in refusal(halves)


@pytest.mark.parametrize("heights", [(0, 5, 10, 15.9), (0, 4.1, 9, 14), (1e-2, 2e-2, 3e-2), (0, 9)])
def test_distances_within_a_fifth_of_the_usual_one_are_even(heights: Any) -> None:
    assert stack(at(*heights))[:, 0, 0].tolist() == list(range(1, len(heights) + 1))


@pytest.mark.parametrize(
    "element",
    [
        {"ImagePositionPatient": [0, 0, 19_800_102]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]},
    ],
)
def test_what_is_no_place_counts_as_unknown(element: dict[str, Any]) -> None:
    contents = series(VOLUME, **element)
    np.testing.assert_array_equal(stack(contents[::-1]), acquired(VOLUME))


def test_a_wrong_number_of_groups_is_refused() -> None:
    found = dataset(acquired(VOLUME))
    found.PerFrameFunctionalGroupsSequence = [dataset(ramp()) for _ in range(3)]
    with pytest.raises(ImageError, match="3 functional groups for 12 frames"):
        read_series([written(found)], settings(), stacked=True)


def test_a_damaged_position_is_named_with_its_file() -> None:
    contents = series(VOLUME)
    contents[8] = file(acquired(VOLUME)[8], InstanceNumber=9, ImageOrientationPatient=[1, 0, 0])
    with pytest.raises(
        ImageError, match="file 9 of 12, InstanceNumber 9: .*ImageOrientationPatient"
    ):
        read_series(contents, settings(), stacked=True)


def test_a_corrupt_slice_of_forty_is_named_when_it_is_decoded() -> None:
    pixels = np.stack([ramp()] * 40)
    contents = [compressed(each, syntaxes.RLE, InstanceNumber=n) for n, each in enumerate(pixels)]
    start = contents[16].rindex(b"\xfe\xff\x00\xe0") + 8
    contents[16] = contents[16][:start] + b"\x09" + contents[16][start + 1 :]
    for stacked in (False, True):
        image = read_series(contents, settings(), stacked=stacked)
        assert image.frames[15].shape == (32, 40)
        with pytest.raises(ImageError, match="^file 17 of 40, InstanceNumber 16: ") as caught:
            image.frames[16]
        assert caught.value.__context__ is None
    contents[16] = contents[16][:200]
    with pytest.raises(ImageError, match="^file 17 of 40: "):
        read_series(contents, settings())


def test_a_clip_of_too_many_frames_is_refused_before_it_is_decoded() -> None:
    content = file(np.zeros((10_000, 2, 2), np.uint8))
    with pytest.raises(ImageError, match=r"frames: 10000, the limit is 64 \(dicom\.max_frames\)"):
        decode_files([content], SMALL, settings(), volume_settings(frames=8))


# --- through decode_files


def test_several_frames_or_named_slices_ask_for_a_stack() -> None:
    contents = at(0, 5, 10, 25, 30)
    several: list[Callable[[], Any]] = [
        lambda: decode_files(contents, SMALL, settings(), volume_settings(frames=2), folder=True),
        lambda: decode_files(
            contents, SMALL, settings(), volume_settings(selection="all"), folder=True
        ),
        lambda: decode_files(
            contents, SMALL, settings(), volume_settings(), folder=True, stacked=True
        ),
    ]
    for ask in several:
        with pytest.raises(ImageError, match="about 2 slices seem to be missing"):
            ask()
    one = decode_files(contents, SMALL, settings(), volume_settings(), folder=True)
    assert len(one.frames) == 5


def test_the_window_of_volumes_replaces_that_of_the_file() -> None:
    own: dict[str, Any] = {"WindowCenter": 10, "WindowWidth": 4}
    image = decode_files(series(VOLUME, **own), SMALL, settings(), folder=True)
    wide = decode_files(
        series(VOLUME, **own), SMALL, settings(), volume_settings(window=IDENTITY), folder=True
    )
    assert len(image.image.getcolors() or []) < len(wide.image.getcolors() or [])
    plain = decode_files(series(VOLUME), SMALL, settings(), folder=True)
    assert wide.image.tobytes() == plain.image.tobytes()


def test_the_window_of_volumes_is_not_for_single_images() -> None:
    content = file(ramp(), Modality="CR")
    narrow = volume_settings(window=[10.0, 4.0])
    assert (
        decode_files([content], SMALL, settings(), narrow).image.tobytes()
        == decode_files([content], SMALL, settings()).image.tobytes()
    )


def test_the_window_of_volumes_is_in_hounsfield_units_for_ct() -> None:
    raw = (acquired(VOLUME).astype(np.int16) * 4) + 1000
    elements: dict[str, Any] = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}
    contents = [file(each, InstanceNumber=n, **elements) for n, each in enumerate(raw)]
    by_volume = read_series(contents, settings(ct_window=None), window=[40.0, 400.0])
    by_dicom = read_series(contents, settings(ct_window=[40.0, 400.0]))
    for frame, same in zip(by_volume.frames, by_dicom.frames, strict=True):
        np.testing.assert_array_equal(frame, same)


# --- files of scanners, which pydicom ships


@pytest.mark.parametrize(
    ("name", "frames"),
    [("CT_small.dcm", 1), ("MR_small.dcm", 1), ("rtdose.dcm", 15), ("examples_ybr_color.dcm", 30)],
)
def test_frames_of_scanners_stay_in_order_where_they_do_not_say_where_they_lie(
    name: str, frames: int
) -> None:
    content = (PYDICOM_FILES / name).read_bytes()
    lenient = settings(accept_unflagged=True)
    plain = decode_files([content], SMALL, lenient)
    several = decode_files([content], SMALL, lenient, volume_settings(frames=4))
    assert plain.image.tobytes() == several.image.tobytes()
    assert len(plain.frames) == len(several.frames) == (frames if frames > 1 else 0)
    for one, other in zip(plain.frames, several.frames, strict=True):
        assert one.tobytes() == other.tobytes()


def of_scanner(folder: str, series_of: str) -> list[bytes]:
    """The files of the series that a file belongs to."""
    paths = sorted((PYDICOM_FILES / "dicomdirtests" / folder).iterdir())
    uids = {path: dcmread(path, stop_before_pixels=True).SeriesInstanceUID for path in paths}
    wanted = next(uid for path, uid in uids.items() if path.name == series_of)
    return [path.read_bytes() for path, uid in uids.items() if uid == wanted]


def test_slices_of_a_scanner_are_stacked_and_cut() -> None:
    contents = of_scanner("98892001/CT5N", "2062")
    image = read_series(contents, settings(), stacked=True)
    heights = [float(dcmread(BytesIO(each)).ImagePositionPatient[2]) for each in contents]
    assert image.affine is not None
    np.testing.assert_allclose(image.affine[2, 2:], [2.5, min(heights)], atol=1e-3)
    lowest = read_series([contents[int(np.argmin(heights))]], settings())
    np.testing.assert_array_equal(image.frames[0], lowest.frames[0])
    coronal = decode_files(
        contents, SMALL, settings(), volume_settings(plane="coronal"), folder=True
    )
    assert (coronal.width, coronal.height, len(coronal.frames)) == (16, 5, 16)


@pytest.mark.parametrize(
    ("folder", "series_of"),
    [("98892001/CT2N", "6293"), ("98892003/MR2", "4950"), ("98892003/MR700", "4467")],
    ids=["two localisers", "three planes", "radial"],
)
def test_slices_of_a_scanner_that_are_no_volume_are_refused(folder: str, series_of: str) -> None:
    contents = of_scanner(folder, series_of)
    assert len(contents) > 1
    assert "not parallel to the others" in refusal(contents, accept_unflagged=True)
