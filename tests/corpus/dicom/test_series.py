"""Several files as one image: their order, and what may not be mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stages.core.iteration.lazy_sequence import LazySequence
from stages.corpus.dicom.series import read_series
from stages.corpus.images.decoding import ImageError, decode_files
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import resize_settings
from tests.dicoms import deflated, file, ramp, settings

AXIAL = [1, 0, 0, 0, 1, 0]
CORONAL = [1, 0, 0, 0, 0, -1]


def a_slice(level: int, **elements: Any) -> bytes:
    """An image of one level, by which it is known."""
    return file(np.full((4, 5), level, dtype=np.uint8), **elements)


def order(contents: Sequence[bytes], **changes: Any) -> list[int]:
    return [int(frame.max()) for frame in read_series(contents, settings(**changes)).frames]


def test_slices_are_sorted_along_their_normal_whatever_their_numbers_say() -> None:
    places = {30: -10.0, 10: -50.5, 20: -20.0}
    slices = [
        a_slice(
            level,
            ImagePositionPatient=[9 - at, 5, at],
            ImageOrientationPatient=AXIAL,
            InstanceNumber=level // 7,
        )
        for level, at in places.items()
    ]
    assert order(slices) == [10, 20, 30]


def test_the_normal_counts_not_the_last_coordinate() -> None:
    # normal of the coronal plane: (1,0,0) x (0,0,-1) = (0,1,0)
    slices = [
        a_slice(level, ImagePositionPatient=[0, y, z], ImageOrientationPatient=CORONAL)
        for level, y, z in ((2, 5, 1), (1, 4, 9), (3, 6, 0))
    ]
    assert order(slices) == [1, 2, 3]


def test_without_positions_instance_numbers_decide_and_without_them_the_order_given() -> None:
    assert order([a_slice(level, InstanceNumber=level) for level in (30, 4, 100)]) == [4, 30, 100]
    assert order([a_slice(3, InstanceNumber=1), a_slice(1), a_slice(2, InstanceNumber=0)]) == [
        3,
        1,
        2,
    ]


def test_positions_of_slices_that_are_not_parallel_do_not_compare() -> None:
    turned = [
        a_slice(1, ImagePositionPatient=[0, 0, 9], ImageOrientationPatient=AXIAL, InstanceNumber=1)
    ]
    turned += [
        a_slice(
            2, ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=CORONAL, InstanceNumber=2
        )
    ]
    assert order(turned) == [1, 2]


def test_slices_in_one_place_are_sorted_by_number() -> None:
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": AXIAL}
    assert order([a_slice(level, InstanceNumber=level, **place) for level in (3, 1, 2)]) == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(("frame", "wanted"), [("middle", 3), ("first", 1)])
def test_the_representative_is_chosen_by_place(frame: str, wanted: int) -> None:
    found = read_series(
        [a_slice(level, InstanceNumber=level) for level in (5, 1, 4, 2, 3)], settings(frame=frame)
    )
    assert found.frames[found.representative].max() == wanted
    assert found.tags.frames == 5


def test_files_with_several_frames_follow_each_other() -> None:
    many = file(
        np.stack([np.full((4, 5), level, dtype=np.uint8) for level in (20, 21)]), InstanceNumber=2
    )
    assert order([many, a_slice(1, InstanceNumber=1)]) == [1, 20, 21]


def fetching(contents: list[bytes], fetched: list[int]) -> LazySequence[bytes]:
    """Contents that note in `fetched` which of them is fetched."""

    def fetch(index: int) -> bytes:
        fetched.append(index)
        return contents[index]

    return LazySequence(len(contents), fetch)


def test_files_are_fetched_when_they_are_needed() -> None:
    fetched: list[int] = []
    found = read_series(fetching([a_slice(level) for level in (1, 2, 3)], fetched), settings())
    fetched.clear()
    assert found.frames[1].max() == 2
    assert fetched == [1]


def test_a_file_alone_is_fetched_once() -> None:
    fetched: list[int] = []
    decode_files(fetching([a_slice(1)], fetched), resize_settings(), settings())
    assert fetched == [0]


@pytest.mark.parametrize(
    ("contents", "why", "reason"),
    [
        ([], "a series without files", Reason.IMAGE_SERIES),
        (
            [a_slice(1), a_slice(2, SeriesInstanceUID="1.2.3.77")],
            "files of several series",
            Reason.IMAGE_SERIES,
        ),
        (
            [a_slice(1), a_slice(2, SeriesInstanceUID=None)],
            "files of several series",
            Reason.IMAGE_SERIES,
        ),
        (
            [a_slice(1), file(ramp())],
            "several sizes or kinds in one series: 5 x 4 and 40 x 32",
            Reason.IMAGE_SERIES,
        ),
        (
            [a_slice(1), a_slice(2, PhotometricInterpretation="MONOCHROME1")],
            "several sizes or kinds",
            Reason.IMAGE_SERIES,
        ),
        ([a_slice(1), a_slice(2, Modality="CT")], "several modalities", Reason.IMAGE_SERIES),
        (
            [a_slice(1), b"a text"],
            "file 2 of the 2 of a series: not a DICOM file",
            Reason.IMAGE_FORMAT,
        ),
        (
            [a_slice(1), a_slice(2)[:-3]],
            "file 2 of the 2 of a series: .*cut short",
            Reason.IMAGE_DAMAGED,
        ),
        (
            [a_slice(1)] * 65,
            r"too many files in a series: 65, the limit is 64 \(dicom\.max_frames\)",
            Reason.IMAGE_TOO_LARGE,
        ),
        (
            [file(np.stack([ramp()] * 40))] * 2,
            r"too many frames in a series: 80",
            Reason.IMAGE_TOO_LARGE,
        ),
        (
            [a_slice(1), deflated(a_slice(2, BurnedInAnnotation="YES"))],
            "file 2 .* text is burned into",
            Reason.IMAGE_ANNOTATION,
        ),
    ],
)
def test_files_that_do_not_make_one_series_are_refused(
    contents: list[bytes], why: str, reason: Reason
) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        read_series(contents, settings())
    assert caught.value.reason == reason
    assert "1.2.3.77" not in str(caught.value)
    assert caught.value.__context__ is None
