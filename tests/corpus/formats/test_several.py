"""What a text calls its images, and lists of texts in one cell."""

from __future__ import annotations

import pytest

from stages.corpus.formats.several import name_pictures
from stages.corpus.formats.text_lists import is_list, read_texts
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.texts import MAX_TEXT_LENGTH, RefusedRecord


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is it in <image 1> or <image 2>?", "Is it in Picture 1 or Picture 2?"),
        ("<image 1><image 2>Which is older?", "Picture 1 Picture 2 Which is older?"),
        ("<Image_2> shows", "Picture 2 shows"),
        ("as in<image2>.", "as in Picture 2."),
        ("<image 1>\nWhich?", "Picture 1\nWhich?"),
        ("<image>, <image one> and image 1", "<image>, <image one> and image 1"),
        ("", ""),
    ],
)
def test_marks_of_several_images_become_the_numbers_of_the_prompt(text: str, expected: str) -> None:
    assert name_pictures(text, [1, 2]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is in <image 1>?", "What is in the image?"),
        ("<image 1> shows a chest.", "The image shows a chest."),
        ("Look. <image 1> shows a chest.", "Look. The image shows a chest."),
        ("<image 1> What is seen?", "What is seen?"),
        ("What is seen? <image 1>", "What is seen? "),
        ("What is seen?\n<image 1>\nChoose.", "What is seen?\n\nChoose."),
        ("A chest. <image 1> What is seen?", "A chest. What is seen?"),
        ("the chest in (<image 1>)", "the chest in (the image)"),
        ("see<image 1>", "see the image"),
        ("<image 1>", "the image"),
        ("No mark", "No mark"),
    ],
)
def test_a_mark_of_the_only_image_names_it_or_is_left_out(text: str, expected: str) -> None:
    assert name_pictures(text, [1]) == expected


def test_marks_follow_the_numbers_of_columns() -> None:
    assert name_pictures("<image 3>, <image 7>", [3, 7]) == "Picture 1, Picture 2"
    with pytest.raises(RefusedRecord) as caught:
        name_pictures("In <image 1> or <image 3>?", [3, 7])
    assert (caught.value.what, caught.value.reason) == ("<image 1>", Reason.IMAGE_LIST)


def test_a_text_too_long_to_be_used_stays() -> None:
    text = "<image 9>" * MAX_TEXT_LENGTH
    assert name_pictures(text, [1]) == text


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("[]", []),
        ("  [ ] ", []),
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("""['it', "it's"]""", ["it", "it's"]),
        ("""['a, ]', "b\\"]"]""", ["a, ]", 'b"]']),
        (r"['a\'b', 'c\\']", ["a'b", "c\\"]),
        (r'["\u00e9", "\/", "\x41"]', ["é", "/", "A"]),
        ("['a',\n 'b',]", ["a", "b"]),
    ],
)
def test_lists_of_json_and_python_are_read(cell: str, texts: list[str]) -> None:
    assert is_list(cell)
    assert read_texts(cell, 64) == texts


@pytest.mark.parametrize(
    "cell",
    [
        "['a' 'b']",
        "['a' + 'b']",
        "['a', 3]",
        "['a', None]",
        "[['a']]",
        "[a]",
        "['a'] + ['b']",
        "['a'",
        "['a",
        "[,]",
        "['a',,'b']",
        "[f'{1}']",
        "[b'a']",
        "['a' * 10**9]",
        "[__import__('os').getcwd()]",
        r"['\N{no such letter}']",
        "[" * 100_000 + "]" * 100_000,
        "a",
        "",
    ],
)
def test_nothing_else_is_a_list_of_texts(cell: str) -> None:
    assert read_texts(cell, 64) is None


def test_a_list_is_read_up_to_one_above_the_limit() -> None:
    assert read_texts("[" + "'', " * 10**6 + "]", 2) == ["", "", ""]
