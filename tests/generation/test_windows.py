"""Windows: a partition by hash of image, so that a new question changes only its own window."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.generation.windows import (
    BLANK,
    Question,
    Variant,
    Window,
    cut_windows,
    images_rank,
    row_keys,
)

CASES = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from("abc"), st.integers(1, 3), st.booleans()),
    max_size=120,
)

PINNED = [(6, 14, 13), (2, 7), (3, 11), (8,), (9, 1), (12, 4), (10, 0), (5, 15)]
PINNED_LARGE = [(6, 14, 13, 2, 7, 3, 11, 8, 9, 1), (12, 4), (10, 0, 5, 15)]


def question(image: int, text: str, variants: int = 1, group: str = "") -> Question:
    path = f"{group}/{image}.png"
    images = {"real": path, "blank": BLANK, "shuffled": f"{group}/{image + 1}.png"}
    shown = list(images.items())[:variants]
    return Question({name: Variant(text, (each,)) for name, each in shown}, group)


def contents(questions: list[Question], windows: list[Window]) -> list[list[Question]]:
    return [[questions[index] for index in window] for window in windows]


@given(CASES, st.integers(1, 20))
def test_every_question_is_in_one_window_of_bounded_size(
    cases: list[tuple[int, str, int, bool]], batch_rows: int
) -> None:
    questions = [
        question(image, text, variants, "ct" if ct else "mri")
        for image, text, variants, ct in cases
    ]
    windows = cut_windows(questions, batch_rows)
    assert sorted(chain.from_iterable(windows)) == list(range(len(questions)))
    places = []
    for window in windows:
        members = [questions[index] for index in window]
        images = {(each.group, each.own_images) for each in members}
        assert len({group for group, _ in images}) == 1
        assert len(row_keys(questions, window)) <= 2 * batch_rows or len(images) == 1
        places += list(images)
    assert len(set(places)) == len(places), "questions about one image share a window"
    assert contents(questions[::-1], cut_windows(questions[::-1], batch_rows)) == contents(
        questions, windows
    ), "the order of the questions decides nothing"


@pytest.mark.parametrize("new", [0, 17, 40, 63])
@pytest.mark.parametrize("images_known", [True, False])
def test_a_new_question_changes_its_own_window_only(new: int, images_known: bool) -> None:
    before = [question(number // 4, str(number), 2) for number in range(256)]
    added = question(new if images_known else 1000 + new, "new", 2)
    windows = contents(before, cut_windows(before, 16))
    after = contents([added, *before], cut_windows([added, *before], 16))
    assert len(windows) > 15
    unchanged = [window for window in after if window in windows]
    changed = [window for window in after if window not in windows]
    assert sum(map(len, unchanged)) >= len(before) - 16
    assert 1 <= len(changed) <= 2, "one window, or the two that it was split into"
    assert added in chain.from_iterable(changed)


def test_neighbours_in_rank_share_windows() -> None:
    questions = [question(number, "Scan?") for number in range(64)]
    windows = cut_windows(questions, 4)
    ranks = [images_rank(questions[index].own_images) for index in chain.from_iterable(windows)]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize(
    ("batch_rows", "largest"), [(1, 2), (64, 128), (512, 1024), (800, 1024), (4096, 4096)]
)
def test_windows_are_as_large_as_memory_allows(batch_rows: int, largest: int) -> None:
    questions = [question(number, "Scan?") for number in range(8192)]
    lengths = list(map(len, cut_windows(questions, batch_rows)))
    assert largest / 2 <= max(lengths) <= largest
    assert sum(lengths) / len(lengths) >= largest / 4


def test_one_image_is_never_split_and_no_question_needs_no_window() -> None:
    questions = [question(0, str(number), 3) for number in range(50)]
    assert [len(window) for window in cut_windows(questions, 1)] == [50]
    assert cut_windows([], 8) == []


def test_the_order_of_windows_and_questions_about_one_image_never_changes() -> None:
    """Answers and their cache depend on it; the expected order is written down."""
    questions = [
        question(number * 5 % 8, f"{number % 3}?", 1 + number % 2, "ct" if number % 5 else "mri")
        for number in range(16)
    ]
    assert cut_windows(questions, 2) == PINNED
    assert cut_windows(questions, 8) == PINNED_LARGE
    assert row_keys(questions, (6, 13)) == [(6, "real"), (13, "real"), (13, "blank")]


def several(number: int, images: int, variants: int = 1) -> Question:
    paths = tuple(f"{number}-{place}.png" for place in range(images))
    shown = [paths, (BLANK,) * images, paths[::-1], paths[1:], paths]
    named = zip(("real", "blank", "reordered", "removed", "no_context"), shown, strict=True)
    return Question({name: Variant("Scan?", each) for name, each in list(named)[:variants]})


@pytest.mark.parametrize(("images", "variants"), [(2, 1), (8, 1), (8, 5), (64, 5)])
def test_windows_show_a_bounded_number_of_images(images: int, variants: int) -> None:
    questions = [several(number, images, variants) for number in range(600)]
    windows = cut_windows(questions, 512)
    assert sorted(chain.from_iterable(windows)) == list(range(600))
    for window in windows:
        shown = [{each.images for each in questions[index].variants.values()} for index in window]
        assert sum(map(len, chain.from_iterable(shown))) <= 1024
        assert len(row_keys(questions, window)) <= 1024
    assert max(map(len, windows)) >= min(1024 // (images * variants) // 2, 512 // variants)


def test_questions_about_one_image_share_no_window_with_others() -> None:
    alone = [question(number, "Scan?", 3) for number in range(40)]
    mixed = [*alone, *(several(number, 2 + number % 11, 2) for number in range(1, 60))]
    windows = cut_windows(mixed, 8)
    assert [window for window in windows if window[0] < 40] == cut_windows(alone, 8)
    for window in windows:
        counts = [len(mixed[index].own_images) for index in window]
        assert max(counts) < 2 * min(counts), "about as many images"


def test_the_order_of_images_tells_questions_apart() -> None:
    assert images_rank(("a", "b")) != images_rank(("b", "a"))
    assert images_rank(("a", "b")) != images_rank(("ab",))
