"""Answers of an evaluation by variant: counted from questions, and expected from a size."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stages.profiles.evaluation_times import answer_parts, decode_loops, evaluation_parts
from stages.profiles.measured import Measured
from stages.profiles.schema import Scale
from stages.profiles.shown import shapes_of
from stages.profiles.variants import (
    Answers,
    added,
    count_answers,
    describe_answers,
    expected_answers,
)
from tests.profiles.test_times import H200, MODEL, SCALE, params_with

ABLATED = params_with(evaluate={"ablations": True})
PLAIN = params_with(evaluate={"ablations": False})


def item(number: int, images: int = 1, context: str | None = None, **more: Any) -> dict[str, Any]:
    paths = [f"{number}/{at}.png" for at in range(images)]
    found: dict[str, Any] = {
        "image": paths[0],
        "problem": "What is seen? A)Cyst, B)Nodule",
        "question_id": str(number),
        "modality": "ct",
    }
    if images > 1:
        found["images"] = paths
    return found | ({"context": context} if context else {}) | more


def test_each_variant_counts_with_the_images_that_it_shows() -> None:
    items = [item(1), item(2, 3), item(3, 3, "cough"), item(4, 1, "fever"), item(5, 2, "fever")]
    assert count_answers(items, ABLATED) == {
        "as_asked": Answers(5, 10),
        "blank": Answers(5, 10),
        # the only question about two images has no partner
        "shuffled": Answers(4, 8),
        "removed": Answers(3, 5),
        "reordered": Answers(3, 8),
        "middle": Answers(3, 3),
        "no_context": Answers(3, 6),
        "other_context": Answers(3, 6),
    }
    assert count_answers(items, PLAIN) == {"as_asked": Answers(5, 10)}


def test_a_variant_that_no_question_has_is_left_out() -> None:
    same = [item(1, context="cough"), item(2, context="cough", modality="mri")]
    assert list(count_answers(same, ABLATED)) == ["as_asked", "blank", "no_context"]
    twice = [item(1, 2) | {"images": ["a.png", "a.png"]}, item(2, 2) | {"images": ["b", "b"]}]
    assert "reordered" not in count_answers(twice, ABLATED)
    assert count_answers([], ABLATED) == {}


def scale(**changes: Any) -> Scale:
    return Scale.model_validate(SCALE.model_dump() | changes)


@pytest.mark.parametrize(
    ("items", "size"),
    [
        ([item(number) for number in range(6)], {}),
        (
            [item(n, 4 if n < 2 else 1, f"c{n}" if n % 2 else None) for n in range(8)],
            {
                "images_per_question": 1.75,
                "most_images_per_question": 4,
                "several_share": 0.25,
                "context_share": 0.5,
            },
        ),
        (
            [item(n, 3, f"c{n}") for n in range(4)],
            {"volume_share": 1.0, "context_share": 1.0},
        ),
    ],
)
def test_what_is_expected_of_a_size_is_what_is_counted_of_such_questions(
    items: list[dict[str, Any]], size: dict[str, Any]
) -> None:
    params = params_with(evaluate={"ablations": True}, volume={"frames": 3})
    counted = count_answers(items, params)
    expected = expected_answers(params, scale(**size))
    assert list(expected) == list(counted)
    for name, count in counted.items():
        assert expected[name].answers == pytest.approx(count.answers / len(items))
        assert expected[name].images == pytest.approx(count.images / len(items))


def test_of_an_unknown_share_of_several_images_each_has_two() -> None:
    size = scale(images_per_question=1.25, most_images_per_question=4)
    assert shapes_of(size, PLAIN.volume) == [(0.75, 1.0), (0.25, 2.0)]
    more = scale(images_per_question=3.0, most_images_per_question=4)
    assert shapes_of(more, PLAIN.volume) == [(1.0, 3.0)]
    few = PLAIN.volume.model_copy(update={"max_images": 2})
    assert shapes_of(more, few) == [(1.0, 2.0)]


def test_a_share_that_contradicts_the_mean_is_refused() -> None:
    with pytest.raises(ValidationError, match="several_share"):
        scale(images_per_question=2.0, most_images_per_question=3, several_share=0.25)


def test_hours_are_those_of_each_variant_with_its_images() -> None:
    size = scale(volume_share=1.0, context_share=0.5)
    params = params_with(evaluate={"ablations": True}, volume={"frames": 4})
    parts = evaluation_parts(params, MODEL, size, H200, Measured())
    questions = SCALE.questions * 0.2 * 15
    counts = expected_answers(params, size).values()
    of_modality = SCALE.questions * 0.2 / len(params.modalities)
    rows = of_modality * sum(count.answers for count in counts)
    loops = decode_loops(params, rows, of_modality * sum(count.images for count in counts))
    for part in ("products", "sampling"):
        # as asked, blank, exchanged, reordered; half of both contexts; one removed; the middle
        of_four, of_three, of_one = (
            answer_parts(params, MODEL, H200, n, rows / loops)[part] for n in (4, 3, 1)
        )
        assert parts[part] == pytest.approx(questions * (5 * of_four + of_three + of_one))
    assert "answers" not in parts


def test_counts_are_added_and_described() -> None:
    one = {"as_asked": Answers(2, 5), "blank": Answers(2, 5)}
    total = added([one, {"middle": Answers(1, 1), "as_asked": Answers(1_000, 1_000)}])
    assert list(total) == ["as_asked", "blank", "middle"]
    assert total["as_asked"] == Answers(1_002, 1_005)
    assert describe_answers(one) == "as asked 2 (2.5 images each), black images 2 (2.5)"
