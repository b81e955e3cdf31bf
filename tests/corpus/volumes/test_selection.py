"""Which frames of a volume are shown: every choice, and what a question names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.core.params import Volume, check_params
from stages.core.yaml_files import read_yaml
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.volumes.selection import select_frames
from tests.conftest import ROOT
from tests.volumes import volume_settings

COUNTS = st.integers(1, 3000)
FRAMES = st.integers(1, 64)


@given(COUNTS, FRAMES, st.sampled_from(["uniform", "center"]))
def test_frames_are_different_in_order_and_within_the_volume(
    count: int, frames: int, selection: Any
) -> None:
    chosen = select_frames(
        count, volume_settings(frames=frames, selection=selection, max_images=64)
    )
    assert len(chosen) == min(frames, count)
    assert list(chosen) == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < count


@given(COUNTS, FRAMES)
def test_uniform_frames_are_the_centres_of_equal_parts(count: int, frames: int) -> None:
    chosen = select_frames(count, volume_settings(frames=frames, max_images=64))
    for part, index in enumerate(chosen):
        # the middle of frame `index` lies within a frame of the centre of the part
        centre = (part + 0.5) * count / len(chosen)
        assert index <= centre <= index + 1
    if frames < count / 2:
        assert chosen[0] > 0
        assert chosen[-1] < count - 1


@given(COUNTS, FRAMES)
def test_central_frames_are_neighbours_around_the_middle(count: int, frames: int) -> None:
    settings = volume_settings(frames=frames, selection="center", max_images=64)
    chosen = select_frames(count, settings)
    assert chosen == tuple(range(chosen[0], chosen[0] + len(chosen)))
    before, after = chosen[0], count - 1 - chosen[-1]
    assert abs(before - after) <= 1
    assert count // 2 in chosen


@given(COUNTS, st.sampled_from(["uniform", "center"]))
def test_a_single_frame_is_the_one_in_the_middle(count: int, selection: Any) -> None:
    settings = volume_settings(selection=selection)
    assert select_frames(count, settings) == (count // 2,)


@given(st.data(), COUNTS)
def test_named_slices_stay_in_the_order_of_the_question(data: st.DataObject, count: int) -> None:
    numbers = st.lists(st.integers(1, count), min_size=1, max_size=16, unique=True)
    named = data.draw(numbers)
    assert [index + 1 for index in select_frames(count, volume_settings(), named)] == named


@given(COUNTS, st.integers())
def test_a_slice_beyond_the_volume_is_named_with_its_size(count: int, number: int) -> None:
    if 1 <= number <= count:
        assert select_frames(count, volume_settings(), [number]) == (number - 1,)
        return
    with pytest.raises(ImageError, match=rf"slice {number} .* slices 1 to {count}$") as caught:
        select_frames(count, volume_settings(), [number])
    assert caught.value.reason is Reason.IMAGE_SLICE


def test_a_slice_named_twice_is_refused() -> None:
    with pytest.raises(ImageError, match="slice 3 is named twice"):
        select_frames(9, volume_settings(), [3, 4, 3])


def test_a_question_that_names_none_gets_those_of_the_settings() -> None:
    assert select_frames(40, volume_settings(frames=4), []) == (5, 15, 25, 35)


def test_all_frames_are_shown_up_to_the_limit() -> None:
    settings = volume_settings(selection="all", max_images=16)
    assert select_frames(16, settings) == tuple(range(16))
    with pytest.raises(ImageError, match=r"17 slices.*16 \(volume\.max_images\)") as caught:
        select_frames(17, settings)
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE
    with pytest.raises(ImageError, match=r"17 slices named.*volume\.max_images"):
        select_frames(40, settings, list(range(1, 18)))


def test_a_volume_without_frames_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        select_frames(0, volume_settings())


# --- the settings


def checked(**changes: Any) -> Volume:
    tree = read_yaml(ROOT / "params.yaml")
    tree["volume"] |= changes
    return check_params(tree, ROOT / "params.yaml").volume


def test_by_default_nothing_changes() -> None:
    settings = checked()
    assert (settings.plane, settings.frames, settings.window) == ("acquired", 1, None)
    assert not settings.several


def test_more_than_one_frame_are_several() -> None:
    assert checked(frames=2).several
    assert checked(selection="all").several
    assert not checked(selection="center").several


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"plane": "oblique"}, "volume.plane = 'oblique'"),
        ({"frames": 0}, "volume.frames = 0"),
        ({"frames": 65}, "volume.frames = 65"),
        ({"frames": 17}, "frames: 17 are more than max_images, 16"),
        ({"frames": 2.5}, "volume.frames = 2.5"),
        ({"selection": "random"}, "volume.selection = 'random'"),
        ({"window": [40.0]}, "volume.window"),
        ({"window": [40.0, 0.5]}, "window: the width, 0.5, is less than 1"),
        ({"window": [40.0, -400.0]}, "window: the width, -400.0, is less than 1"),
        ({"window": [float("nan"), 400.0]}, "volume.window"),
        ({"window": "wide"}, "volume.window = 'wide'"),
        ({"max_images": 0}, "volume.max_images = 0"),
        ({"max_images": 65}, "volume.max_images = 65"),
        ({"plain": "axial"}, "did you mean 'plane'?"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(**changes)
    assert expected in str(caught.value)
    assert "constrained" not in str(caught.value)
