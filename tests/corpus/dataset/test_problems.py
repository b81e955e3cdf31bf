"""The published text of a question: formatting and parsing."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stages.corpus.dataset.problems import (
    LETTERS,
    format_problem,
    format_solution,
    letter_options,
    parse_problem,
    parse_solution,
)

LABELS = (" A)", *(f", {letter})" for letter in LETTERS[1:]))
TEXTS = st.text(
    st.sampled_from("abAB ,.()[]?é\n") | st.characters(codec="utf-8"), min_size=1, max_size=20
)


@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=26))
def test_texts_with_commas_and_brackets_survive_a_round_trip(
    question: str, options: list[str]
) -> None:
    texts = "\0".join((question, *options))
    assume(not any(label in texts for label in LABELS))
    parsed = parse_problem(format_problem(question, options))
    assert parsed == (question, letter_options(options))


def test_the_published_form_is_that_of_med_r1() -> None:
    assert (
        format_problem("What is it?", ["CT", "MRI, or so", "X-ray (AP)"])
        == "What is it? A)CT, B)MRI, or so, C)X-ray (AP)"
    )
    assert format_solution("C") == "<answer> C </answer>"


@pytest.mark.parametrize("problem", ["", "What is it?", "What? A)CT", "What? B)CT, C)MRI"])
def test_a_problem_without_two_options_is_refused(problem: str) -> None:
    with pytest.raises(ValueError, match="no options"):
        parse_problem(problem)


@pytest.mark.parametrize(
    "problem",
    [
        "What? A)1, B)2, D)4",
        "What? A)1, B)2, C)3, B)4",
        "What? A)1, C)2, B)3",
        "See A)1 and A)2, B)3",
        "What? A)1, B)2, Z)3",
    ],
)
def test_no_label_is_taken_for_a_part_of_an_option(problem: str) -> None:
    with pytest.raises(ValueError, match="labels A, "):
        parse_problem(problem)


def test_a_fifth_option_is_one() -> None:
    assert parse_problem("How many? A)1, B)2, C)3, D)4, E)5") == (
        "How many?",
        {"A": "1", "B": "2", "C": "3", "D": "4", "E": "5"},
    )


@pytest.mark.parametrize(
    "solution", ["<answer> C </answer>", "<answer>C</answer>", " <answer>\nC </answer> "]
)
def test_a_solution_gives_its_letter(solution: str) -> None:
    assert parse_solution(solution) == "C"


@pytest.mark.parametrize(
    "solution", ["", "C", "<answer> 5 </answer>", "<answer> AB </answer>", "<answer> A </answer> x"]
)
def test_a_solution_without_one_letter_is_refused(solution: str) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        parse_solution(solution)
