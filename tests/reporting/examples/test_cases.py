"""Cases of questions about several images and with context: which are picked, what they show."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.predictions.schema import CONTEXT_PARTS, IMAGE_PARTS
from stages.reporting.examples import gallery
from stages.reporting.examples.cases import (
    ONLY_WITH_CONTEXT,
    ONLY_WITH_IMAGES,
    ONLY_WITHOUT,
    Case,
    pick_cases,
)
from stages.reporting.examples.gallery import inline_strips, strip
from stages.scoring.tables import Target
from tests.several_images import scored

IMAGES = ["a.png", "b.png", "c.png"]
OTHERS = ["x.png", "y.png", "z.png"]
PLAIN: dict[str, Any] = {
    "checkpoint": "ct",
    "question_id": "q0",
    "dataset": "Phantom",
    "modality": "ct",
    "question_type": "lesion-grading",
    "modality_test": True,
    "task_test": False,
    "image": "b.png",
    "options": ["Cyst", "Nodule"],
    "gold": "B",
    "output": "B",
    "completion_tokens": 1,
}
SHOWN = {
    "shuffled": OTHERS,
    "removed": IMAGES[1:],
    "reordered": IMAGES[::-1],
    "middle": IMAGES[1:2],
}


def question(number: int, output: str = "B", **variants: str) -> dict[str, Any]:
    """A question with all that its variants need; they are answered "B" if not told otherwise."""
    row = PLAIN | {"question_id": f"q{number}", "output": output}
    if variants.keys() & {"blank", "shuffled", *IMAGE_PARTS}:
        row |= {"images": IMAGES, "blank_image": "", "shuffled_image": "y.png"}
        row |= {f"{variant}_images": shown for variant, shown in SHOWN.items()}
    if variants.keys() & {*CONTEXT_PARTS}:
        row |= {"context": "Age: 61 years.", "other_context_context": "Age: 3 years."}
    for variant, said in variants.items():
        row |= {f"{variant}_output": said, f"{variant}_completion_tokens": 1}
    return row


def picked(*rows: dict[str, Any]) -> dict[str, Case]:
    cases = pick_cases({"ct": scored(rows)}, {"ct": Target("modality", "ct")}, {"q0": "What?"})
    return {case.verdict: case for case in cases}


@pytest.mark.parametrize("variant", ["blank", "shuffled", *IMAGE_PARTS])
def test_a_question_wrong_in_an_image_variant_shows_what_that_showed(variant: str) -> None:
    right = dict.fromkeys(("blank", "shuffled", *IMAGE_PARTS), "B")
    cases = picked(question(0, **right | {variant: "A"}), question(1, **right))
    assert {verdict: case.question_id for verdict, case in cases.items()} == {
        ONLY_WITH_IMAGES: "q0",
        "right": "q1",
    }
    case = cases[ONLY_WITH_IMAGES]
    assert case.images == tuple(IMAGES)
    assert case.context is None
    assert case.without is not None
    assert (case.without.variant, case.without.output) == (variant, "A")
    assert case.without.images == tuple(SHOWN.get(variant, ()))


def test_the_image_that_was_removed_is_told_by_its_number() -> None:
    case = picked(question(0, removed="A"))[ONLY_WITH_IMAGES]
    assert case.variant == "one image removed (number 1)"
    twice = dataclasses.replace(case, images=("b.png", "b.png"))
    assert twice.variant == "one image removed", "of equal images nobody can tell"


@pytest.mark.parametrize(
    ("variant", "shown"), [("no_context", None), ("other_context", "Age: 3 years.")]
)
def test_a_question_wrong_without_its_context_shows_what_was_known_instead(
    variant: str, shown: str | None
) -> None:
    right = dict.fromkeys(CONTEXT_PARTS, "B")
    case = picked(question(0, **right | {variant: "A"}))[ONLY_WITH_CONTEXT]
    assert case.context == "Age: 61 years."
    assert case.images == ()
    assert case.without is not None
    assert (case.without.variant, case.without.context) == (variant, shown)


def test_a_question_right_only_with_other_images_shows_them() -> None:
    case = picked(question(0, "A", shuffled="B", blank="B"))[ONLY_WITHOUT]
    assert case.without is not None
    assert (case.without.variant, case.without.images) == ("shuffled", tuple(OTHERS))


def test_each_question_has_one_verdict() -> None:
    cases = picked(question(0, reordered="A", no_context="A"), question(1, "A", reordered="A"))
    assert {verdict: case.question_id for verdict, case in cases.items()} == {
        ONLY_WITH_IMAGES: "q0",
        "wrong": "q1",
    }


@pytest.mark.parametrize(
    ("count", "numbers"),
    [
        (1, [1]),
        (2, [1, 2]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (9, [1, 2, 3, 4, 6, 7, 8, 9]),
        (64, [1, 10, 19, 28, 37, 46, 55, 64]),
    ],
)
def test_a_strip_has_the_first_the_last_and_some_between(count: int, numbers: list[int]) -> None:
    images = [f"{number}.png" for number in range(1, count + 1)]
    assert strip(images) == [(number, f"{number}.png") for number in numbers]


def test_images_of_a_variant_keep_their_numbers_and_others_are_counted() -> None:
    assert strip(IMAGES[::-1], IMAGES) == [(3, "c.png"), (2, "b.png"), (1, "a.png")]
    assert strip(OTHERS, IMAGES) == [(1, "x.png"), (2, "y.png"), (3, "z.png")]


def test_strips_are_inlined_once_and_within_their_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*IMAGES, *OTHERS[:2]):
        Image.new("RGB", (300, 200)).save(name)
    case = picked(question(0, shuffled="A"))[ONLY_WITH_IMAGES]
    urls = inline_strips([case, case])
    assert list(urls) == [*IMAGES, *OTHERS[:2]], "one of another question is missing"
    monkeypatch.setattr(gallery, "BUDGET", 2 * len(urls["a.png"]))
    assert list(inline_strips([case])) == IMAGES[:2]
