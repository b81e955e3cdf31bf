"""Leaks are counted by image, by group, and along the other axis."""

from __future__ import annotations

import pytest

from stages.corpus.splitting.leaks import Leak, count_leaks, total

GROUP_OF = {"a": "a", "copy of a": "a", "b": "b", "c": "c"}


def item(name: str, image: str) -> dict[str, str]:
    return {"question_id": name, "image": image}


def test_leaks_of_an_image_of_a_copy_and_of_the_other_axis_are_distinguished() -> None:
    same_image = item("1", "a")
    copy = item("2", "copy of a")
    fresh = item("3", "b")
    train = [item("0", "a"), item("4", "c")]
    draw = {
        "modality": {"ct": (train, [same_image, copy, fresh])},
        "task": {"lesion-grading": ([fresh, same_image], [*train, copy])},
    }
    leaks = count_leaks([draw], GROUP_OF)
    assert leaks["modality"]["ct"] == Leak(test=3, image=1, group=2, other_axis=2)
    assert leaks["task"]["lesion-grading"] == Leak(test=3, image=1, group=2, other_axis=2)
    assert total([leaks["modality"]["ct"], leaks["task"]["lesion-grading"]]) == Leak(6, 2, 4, 4)


@pytest.mark.parametrize("parts", [([], []), ([item("1", "a")], [])])
def test_an_empty_test_leaks_nothing(
    parts: tuple[list[dict[str, str]], list[dict[str, str]]],
) -> None:
    leaks = count_leaks([{"modality": {"ct": parts}}], GROUP_OF)
    assert leaks["modality"]["ct"] == Leak(0, 0, 0, 0)
