"""DICOM series: the order of their slices, and files that do not form one series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stages.core.iteration.lazy_sequence import LazySequence
from stages.corpus.dicom.series import read_series
from stages.corpus.images.decoding import ImageError
from stages.corpus.images.files import decode_files
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import resize_settings
from tests.dicoms import deflated, file, ramp, settings

AXIAL = [1, 0, 0, 0, 1, 0]
CORONAL = [1, 0, 0, 0, 0, -1]


def a_slice(level: int, **elements: Any) -> bytes:
    """A file with an image of a single level, which identifies it."""
    return file(np.full((4, 5), level, dtype=np.uint8), **elements)


def order(contents: Sequence[bytes], **changes: Any) -> list[int]:
    return [int(frame.max()) for frame in read_series(contents, settings(**changes)).frames]


def test_slices_are_sorted_along_their_normal_whatever_their_numbers() -> None:
    positions = {30: -10.0, 10: -50.5, 20: -20.0}
    slices = [
        a_slice(
            level,
            ImagePositionPatient=[9 - at, 5, at],
            ImageOrientationPatient=AXIAL,
            InstanceNumber=level // 7,
        )
        for level, at in positions.items()
    ]
    assert order(slices) == [10, 20, 30]


def test_slices_of_any_orientation_are_sorted_along_their_normal() -> None:
    # normal of the coronal plane: (1,0,0) x (0,0,-1) = (0,1,0)
    slices = [
        a_slice(level, ImagePositionPatient=[0, y, z], ImageOrientationPatient=CORONAL)
        for level, y, z in ((2, 5, 1), (1, 4, 9), (3, 6, 0))
    ]
    assert order(slices) == [1, 2, 3]


def test_without_positions_files_are_sorted_by_number_or_left_in_order() -> None:
    assert order([a_slice(level, InstanceNumber=level) for level in (30, 4, 100)]) == [4, 30, 100]
    unnumbered = [a_slice(3, InstanceNumber=1), a_slice(1), a_slice(2, InstanceNumber=0)]
    assert order(unnumbered) == [3, 1, 2]


def test_positions_of_slices_that_are_not_parallel_are_ignored() -> None:
    slices = [
        a_slice(
            number,
            ImagePositionPatient=[0, 0, z],
            ImageOrientationPatient=orientation,
            InstanceNumber=number,
        )
        for number, z, orientation in ((1, 9, AXIAL), (2, 0, CORONAL))
    ]
    assert order(slices) == [1, 2]


def test_slices_at_the_same_position_are_sorted_by_number() -> None:
    position = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": AXIAL}
    slices = [a_slice(level, InstanceNumber=level, **position) for level in (3, 1, 2)]
    assert order(slices) == [1, 2, 3]


@pytest.mark.parametrize(("frame", "level"), [("middle", 3), ("first", 1)])
def test_the_representative_is_chosen_after_sorting(frame: str, level: int) -> None:
    slices = [a_slice(number, InstanceNumber=number) for number in (5, 1, 4, 2, 3)]
    series = read_series(slices, settings(frame=frame))
    assert series.frames[series.representative].max() == level
    assert series.tags.frames == 5


def test_files_with_several_frames_follow_each_other() -> None:
    frames = np.stack([np.full((4, 5), level, dtype=np.uint8) for level in (20, 21)])
    assert order([file(frames, InstanceNumber=2), a_slice(1, InstanceNumber=1)]) == [1, 20, 21]


def fetching(contents: list[bytes], fetched: list[int]) -> LazySequence[bytes]:
    """Contents that append the index of each access to `fetched`."""

    def fetch(index: int) -> bytes:
        fetched.append(index)
        return contents[index]

    return LazySequence(len(contents), fetch)


def test_only_the_file_of_the_accessed_frame_is_fetched() -> None:
    fetched: list[int] = []
    series = read_series(fetching([a_slice(level) for level in (1, 2, 3)], fetched), settings())
    fetched.clear()
    assert series.frames[1].max() == 2
    assert fetched == [1]


def test_a_single_file_is_fetched_once() -> None:
    fetched: list[int] = []
    decode_files(fetching([a_slice(1)], fetched), resize_settings(), settings())
    assert fetched == [0]


@pytest.mark.parametrize(
    ("contents", "why", "reason"),
    [
        ([], "a series without files", Reason.IMAGE_SERIES),
        (
            [a_slice(1), a_slice(2, SeriesInstanceUID="1.2.3.77")],
            "SeriesInstanceUID",
            Reason.IMAGE_SERIES,
        ),
        (
            [a_slice(1), a_slice(2, SeriesInstanceUID=None)],
            "SeriesInstanceUID",
            Reason.IMAGE_SERIES,
        ),
        ([a_slice(1), file(ramp())], "5 x 4 and 40 x 32", Reason.IMAGE_SERIES),
        (
            [a_slice(1), a_slice(2, PhotometricInterpretation="MONOCHROME1")],
            "sizes or kinds",
            Reason.IMAGE_SERIES,
        ),
        ([a_slice(1), a_slice(2, Modality="CT")], "several modalities", Reason.IMAGE_SERIES),
        ([a_slice(1), b"a text"], "file 2 of 2", Reason.IMAGE_FORMAT),
        ([a_slice(1), a_slice(2)[:-3]], "file 2 of 2", Reason.IMAGE_DAMAGED),
        ([a_slice(1)] * 65, r"files.*65.*64 \(dicom\.max_frames\)", Reason.IMAGE_TOO_LARGE),
        (
            [file(np.stack([ramp()] * 40))] * 2,
            r"frames.*80, the limit is 64 \(dicom\.max_frames\)",
            Reason.IMAGE_TOO_LARGE,
        ),
        (
            [a_slice(1), deflated(a_slice(2, BurnedInAnnotation="YES"))],
            "file 2 of 2.*BurnedInAnnotation",
            Reason.IMAGE_ANNOTATION,
        ),
    ],
)
def test_files_that_do_not_form_one_series_are_refused(
    contents: list[bytes], why: str, reason: Reason
) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        read_series(contents, settings())
    assert caught.value.reason == reason
    assert "1.2.3.77" not in str(caught.value)
    assert caught.value.__context__ is None
