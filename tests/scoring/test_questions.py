"""Split files in the published form, valid and invalid."""

import gzip
import json
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.scoring.questions import Question, as_questions, chance, read_questions

ITEM = {
    "image": "a.png",
    "problem": "What is it? A)CT, B)MRI, or so, C)X-ray (AP)",
    "solution": "<answer> B </answer>",
}


def refusal(data: bytes, folder: Path) -> str:
    path = folder / "split.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        read_questions(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["split.json", "split.json.gz"])
def test_a_split_is_read_plain_or_gzipped_under_any_name(
    tmp_path: Path, pack: Any, name: str
) -> None:
    (tmp_path / name).write_bytes(pack(json.dumps([ITEM, ITEM | {"question_id": "x"}]).encode()))
    options = ("CT", "MRI, or so", "X-ray (AP)")
    assert read_questions(tmp_path / name) == [
        Question("#0", options, 1),
        Question("x", options, 1),
    ]


def test_the_field_options_takes_precedence_over_the_problem_text() -> None:
    options = ["MRI", "CT, B)or not"]
    (question,) = as_questions([ITEM | {"options": options}], "")
    assert question == Question("#0", tuple(options), 1)


def test_a_question_holds_neither_image_nor_wording() -> None:
    other = {
        "image": "other.png",
        "problem": "Is this a mouse? " + ITEM["problem"].split("? ")[1],
        "solution": ITEM["solution"],
    }
    assert as_questions([ITEM], "") == as_questions([other], "")
    assert set(vars(as_questions([ITEM], "")[0])) == {"question_id", "options", "gold"}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (gzip.compress(b"[]", mtime=0)[:-6], "cannot be read"),
        (b"\x1f\x8b\x00\x00", "cannot be read"),
        (b"[]", "holds no questions"),
        (b"{}", "not a split but {}"),
        (b"null", "not a split but missing"),
        (b"[3]", "record 0 is not a question but 3"),
        (b"[{}]", "record 0: problem is missing"),
    ],
)
def test_an_invalid_file_is_refused_by_name(tmp_path: Path, data: bytes, problem: str) -> None:
    message = refusal(data, tmp_path)
    assert problem in message
    assert "give" in message


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"solution": "<answer> D </answer>"},
            "gold 'D' is not among the options A, B, C of 'What is it?",
        ),
        ({"solution": "MRI"}, "solution 'MRI' is not of the form"),
        ({"solution": 2}, "solution is 2, not text"),
        (
            {"problem": "What is it?"},
            "no options 'A)..., B)...', in order, but no labels in problem 'What is it?'",
        ),
        ({"problem": None}, "problem is missing"),
        ({"options": None}, "options is missing, not a list"),
        ({"options": ["CT"]}, "options is ['CT'], not a list of 2 to 26 texts"),
        ({"options": ["CT", 3]}, "options is ['CT', 3], not a list"),
        (
            {"options": ["CT", "MRI"], "solution": "<answer> C </answer>"},
            "gold 'C' is not among the options A, B of",
        ),
        ({"question_id": "#0"}, "question_id '#0' is also that of record 0"),
    ],
)
def test_an_invalid_record_is_refused_with_its_index_and_value(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    message = refusal(json.dumps([ITEM, ITEM | change]).encode(), tmp_path)
    assert "record 1: " in message
    assert problem in message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json is missing: give the path"):
        read_questions(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(tmp_path)


FIELD_NAMES = ["image", "problem", "solution", "options", "question_id"]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELD_NAMES) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(
    JSON
    | st.lists(st.fixed_dictionaries({"problem": st.text(), "solution": st.text()}), max_size=2)
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with suppress(InputError):
        assert as_questions(value, "x")


def test_chance_is_the_mean_over_the_options_of_each_question() -> None:
    questions = [
        Question("a", ("x", "y"), 0),
        Question("b", ("x", "y", "z"), 0),
        Question("c", ("w", "x", "y", "z"), 3),
    ]
    assert chance(questions) == Fraction(13, 36)
    assert [question.letter for question in questions] == ["A", "A", "D"]
