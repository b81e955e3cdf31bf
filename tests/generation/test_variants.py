"""Variants: exchanged, removed and reordered images and contexts, drawn by hash alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.generation.variants import (
    build_questions,
    image_variants,
    other_contexts,
    reordered,
    shuffled_images,
    without_one,
)
from stages.generation.windows import BLANK
from stages.predictions.schema import CONTEXT_PARTS

IMAGES = st.lists(st.sampled_from("abcdef"), min_size=2, max_size=8).map(tuple)


def item(*images: str, **more: str) -> dict[str, Any]:
    made: dict[str, Any] = {"image": images[0], "modality": "ct", "question_id": "q"}
    made |= {"problem": "Scan? A)CT, B)MRI"} | ({"images": list(images)} if images[1:] else {})
    return made | more


def names(*items: dict[str, Any]) -> list[list[str]]:
    return [list(each.variants) for each in build_questions(items, "no-think", ablations=True)]


@given(IMAGES, st.text(max_size=5))
def test_one_image_is_removed_and_the_others_keep_their_order(
    images: tuple[str, ...], question_id: str
) -> None:
    left = without_one(images, question_id)
    places = range(len(images))
    assert left in [(*images[:at], *images[at + 1 :]) for at in places]
    assert left == without_one(images, question_id)


@given(IMAGES, st.text(max_size=5))
def test_another_order_has_the_same_images_and_is_never_the_same(
    images: tuple[str, ...], question_id: str
) -> None:
    variants = image_variants(images, question_id, None)
    if len(set(images)) == 1:
        assert "reordered" not in variants
        return
    assert variants["reordered"] != images
    assert Counter(variants["reordered"]) == Counter(images)
    assert variants["reordered"] == reordered(images, question_id)
    assert variants["middle"] == (images[len(images) // 2],)
    assert variants["blank"] == (BLANK,) * len(images)


def test_which_one_is_removed_and_which_order_is_drawn_depend_on_the_question() -> None:
    images = ("a", "b", "c")
    removed = Counter(without_one(images, str(number)) for number in range(600))
    orders = Counter(reordered(images, str(number)) for number in range(600))
    assert sorted(removed) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert len(orders) == 5, "every order but their own"
    assert min(removed.values()) > 150
    assert min(orders.values()) > 80


def test_one_image_is_exchanged_as_always_for_the_next_by_the_hash_of_its_path() -> None:
    paths = [f"data/images/ct/{number}.png" for number in range(9)]
    items = [item(path) for path in (*paths, *paths[:4])]
    items += [item("data/images/mri/0.png", modality="mri"), item("x", "y"), item("y", "z")]
    ranked = sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())
    following = dict(zip(ranked, ranked[1:] + ranked[:1], strict=True))
    partner = shuffled_images(items)
    assert {path: partner[path,] for path in paths} == {
        path: (other,) for path, other in following.items()
    }
    assert ("data/images/mri/0.png",) not in partner


def shuffled(*items: dict[str, Any]) -> dict[tuple[str, ...], tuple[str, ...]]:
    partner = shuffled_images(items)
    assert shuffled_images(items[::-1]) == partner, "whatever the order of the questions"
    return partner


def test_several_images_are_exchanged_for_as_many_of_the_same_modality() -> None:
    items = [item(f"{number}a", f"{number}b") for number in range(6)]
    partner = shuffled(*items, *items, item("x", "y", "z"), item("m", "n", modality="mri"))
    assert set(partner) == set(partner.values()) == {(f"{n}a", f"{n}b") for n in range(6)}
    seen: list[tuple[str, ...]] = []
    images: tuple[str, ...] = ("0a", "0b")
    while images not in seen:
        seen.append(images)
        images = partner[images]
    assert len(seen) == 6, "one cycle"


def test_the_same_images_in_another_order_are_no_exchange() -> None:
    assert shuffled(item("a", "b"), item("b", "a")) == {}
    partner = shuffled(item("a", "b"), item("b", "a"), item("c", "d"))
    assert partner["a", "b"] == partner["b", "a"] == ("c", "d")
    assert set(partner["c", "d"]) == {"a", "b"}


def test_contexts_are_exchanged_within_a_modality() -> None:
    items = [item("a", context=str(number)) for number in range(5)]
    items += [item("a"), item("b", context="", modality="mri")]
    items += [item("b", context="alone", modality="us"), items[0]]
    others = other_contexts(items)
    assert set(others) == {("ct", str(number)) for number in range(5)}
    assert sorted(others.values()) == list("01234")
    assert all(context != other for (_, context), other in others.items())


def test_image_variants_keep_the_context_and_context_variants_the_images() -> None:
    items = [item("a", "b", context="Old."), item("c", "d", context="Young.")]
    first, _ = build_questions(items, "no-think", ablations=True)
    real = first.variants["real"]
    assert real.text.startswith("Context: Old. Scan?")
    for name, variant in first.variants.items():
        if name in CONTEXT_PARTS:
            assert variant.images == real.images
        else:
            assert variant.text == real.text
    assert first.variants["no_context"].text == real.text.removeprefix("Context: Old. ")
    assert first.variants["other_context"].text == real.text.replace("Old.", "Young.")


def test_a_variant_that_is_impossible_is_left_out() -> None:
    assert names(item("a")) == [["real", "blank"]]
    assert names(item("a"), item("b")) == [["real", "blank", "shuffled"]] * 2
    assert names(item("a", "a")) == [["real", "blank", "removed", "middle"]]
    several = ["real", "blank", "removed", "reordered", "middle"]
    assert names(item("a", "b")) == [several]
    assert names(item("a", "b", context="Old.")) == [[*several, "no_context"]]
    assert (
        names(item("a", context="Old."), item("a", context="Young."))
        == [["real", "blank", "no_context", "other_context"]] * 2
    )


@pytest.mark.parametrize("context", ["", None])
def test_without_ablations_and_without_context_a_question_is_as_it_always_was(
    context: str | None,
) -> None:
    given = item("a") | {"context": context}
    (question,) = build_questions([given], "no-think", ablations=False)
    assert list(question.variants) == ["real"]
    assert question.own_images == ("a",)
    assert question.text.startswith("Scan? A)CT, B)MRI Provide")
    assert question.group == "ct"
