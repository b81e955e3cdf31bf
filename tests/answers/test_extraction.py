"""Answer extraction: a table of completions, and properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.answers.extraction import extract_answer, read_answer

OPTIONS = {"A": "CT", "B": "Cyst", "C": "No, it's normal.", "D": "Optical coherence tomography"}


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("<answer>B</answer>", "B"),
        ("<answer> B </answer>", "B"),
        ("<answer>\nB\n</answer>", "B"),
        ("<answer>b</answer>", "B"),
        ("<ANSWER>b</Answer>", "B"),
        ("<answer>(B)</answer>", "B"),
        ("<answer>(b).</answer>", "B"),
        ("<answer>B)</answer>", "B"),
        ("<answer>B.</answer>", "B"),
        ("<answer>B:</answer>", "B"),
        ("<answer>B) Cyst</answer>", "B"),
        ("<answer>B Cyst</answer>", "B"),
        ("<answer>(B) cyst.</answer>", "B"),
        ("<answer>Cyst</answer>", "B"),
        ("<answer>  optical   Coherence\ntomography .</answer>", "D"),
        ("<answer>No, it's normal</answer>", "C"),
        ("B", "B"),
        ("B) Cyst", "B"),
        ("Cyst", "B"),
        ("I think it is <answer>B</answer>, but I may be wrong.", "B"),
        ("<think>A cyst would be round.</think><answer>B</answer>", "B"),
        ("<answer>B</answer> <think>It is round.</think>", "B"),
        ("<think>Not A.</think> B", "B"),
        ("<think>Perhaps <answer>A</answer></think><answer>B</answer>", "B"),
        ("<think>Perhaps <answer>A</think><answer>B</answer>", "B"),
        ("<answer><think>round</think>B</answer>", "B"),
        ("<think>not closed <answer>B</answer>", "B"),
    ],
)
def test_one_clear_choice_is_accepted(completion: str, letter: str) -> None:
    assert extract_answer(completion, OPTIONS) == letter


MARKED_UP = (
    "**{}**",
    "*{}*",
    "***{}***",
    "__{}__",
    "_{}_",
    "`{}`",
    "```{}```",
    '"{}"',
    "'{}'",
    "\u201c{}\u201d",
    "\u300c{}\u300d",
    "<b>{}</b>",
    "<strong>{}</strong>",
    "${}$",
    "$$ {} $$",
    "\\boxed{{{}}}",
    "\\boxed {{{}}}.",
    "$\\boxed{{{}}}$",
    "\\(\\boxed{{\\text{{{}}}}}\\)",
    "\\[\\mathbf{{{}}}\\]",
    "**`{}`**.",
)
"""Markup that public models put around an answer."""


@pytest.mark.parametrize("markup", MARKED_UP)
@pytest.mark.parametrize("answer", ["B", "(B)", "B) Cyst", "Cyst"])
@pytest.mark.parametrize("place", ["{}", "<answer>{}</answer>", "<think>A?</think> {}"])
def test_markup_around_an_answer_is_ignored(place: str, answer: str, markup: str) -> None:
    written = read_answer(place.format(markup.format(answer)), OPTIONS)
    assert written is not None
    assert (written.letter, written.in_markup) == ("B", True)
    unmarked = read_answer(place.format(answer), OPTIONS)
    assert unmarked == written._replace(in_markup=False)


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("[B]", "B"),
        ("\uff22", "B"),
        ("\uff08\uff22\uff09", "B"),
        ("<answer>\uff22\uff0e\u3000Cyst</answer>", "B"),
        ("**B**) Cyst", "B"),
        ("**B.** Cyst", "B"),
        ("B) **Cyst**", "B"),
        ("**<answer>B</answer>**", "B"),
        ("\\boxed{<answer>B</answer>}", "B"),
    ],
)
def test_markup_around_letter_text_or_tag_is_ignored(completion: str, letter: str) -> None:
    assert extract_answer(completion, OPTIONS) == letter


@pytest.mark.parametrize(
    "answer",
    [
        "**A** **B**",
        "**A**, **B**",
        "\\boxed{A}\\boxed{B}",
        "\\boxed{A} or \\boxed{B}",
        '"A" or "B"',
        "[A] [B]",
        "[A, B]",
        "**A) Cyst**",
        "**Answer:** B",
        "Answer: B",
        "The answer is **B**",
        "Option B",
        "**E**",
        "{B}",
        "B]",
        "****",
        "\\boxed{}",
        "$$",
        "''",
    ],
)
def test_two_answers_and_prose_stay_invalid_in_markup(answer: str) -> None:
    assert extract_answer(answer, OPTIONS) is None
    assert extract_answer(f"<answer>{answer}</answer>", OPTIONS) is None


@pytest.mark.parametrize(
    ("completion", "form"),
    [("B", "letter"), ("(b).", "letter"), ("B: cyst", "letter and text"), ("CYST.", "text")],
)
def test_the_form_of_an_answer_is_told(completion: str, form: str) -> None:
    assert read_answer(completion, OPTIONS) == ("B", form, False)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "   ",
        ".",
        "<answer></answer>",
        "<answer> </answer>",
        "<answer>.</answer>",
        "<answer>A</answer><answer>B</answer>",
        "<answer>B</answer><answer>B</answer>",
        "<answer>A, B</answer>",
        "<answer>A or B</answer>",
        "<answer>AB</answer>",
        "<answer>A) Cyst</answer>",
        "<answer>A) CT B) Cyst</answer>",
        "<answer>E</answer>",
        "<answer>E) Cyst</answer>",
        "<answer>1</answer>",
        "<answer>Nodule</answer>",
        "<answer>The answer is B</answer>",
        "<answer>B because it is round</answer>",
        "The answer is B",
        "B is right",
        "<answer>B",
        "B</answer>",
        "</answer>B<answer>",
        "<answer><answer>B</answer></answer>",
        "<answer>B<answer>",
        "<think>B</think>",
        "<think>B",
        "<think>It must be <answer>B</answer></think>",
        "<think>a <think>b</think> <answer>B</answer></think>",
        "<think>B</think> the cyst, of course",
    ],
)
def test_anything_else_is_refused(completion: str) -> None:
    assert extract_answer(completion, OPTIONS) is None


def test_only_offered_letters_count() -> None:
    assert extract_answer("<answer>C</answer>", {"A": "Left", "B": "Right"}) is None


def test_a_text_of_two_options_names_neither() -> None:
    options = {"A": "Cyst", "B": "cyst."}
    assert extract_answer("<answer>Cyst</answer>", options) is None
    assert extract_answer("<answer>B) Cyst</answer>", options) == "B"


def test_an_option_text_that_starts_with_a_letter_is_a_text() -> None:
    options = {"A": "Cyst", "B": "C. elegans", "C": "A normal chest", "D": "B"}
    assert extract_answer("<answer>C. elegans</answer>", options) == "B"
    assert extract_answer("<answer>A normal chest</answer>", options) == "C"
    assert extract_answer("<answer>B</answer>", options) == "B"


PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "A",
    "b",
    "(",
    ")",
    ".",
    " ",
    "\n",
    "Cyst",
    "CT",
    "é",
    "\x00",
    "K",
]


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=20).map("".join)))
def test_no_completion_raises_and_every_answer_is_an_option(completion: str) -> None:
    assert extract_answer(completion, OPTIONS) in {None, *OPTIONS}


@given(
    st.sampled_from(sorted(OPTIONS)),
    st.text(alphabet=" \n\t", max_size=3),
    st.text(alphabet="abc <>", max_size=9),
)
def test_an_answer_in_its_tag_is_found_beside_any_thought(
    letter: str, blank: str, thought: str
) -> None:
    tag = f"<answer>{blank}{letter}{blank}</answer>"
    assert extract_answer(f"<think>{thought}</think>{tag}", OPTIONS) == letter
    assert extract_answer(f"{tag}<think>{thought}</think>", OPTIONS) == letter


@given(st.text(), st.dictionaries(st.sampled_from("ABCD"), st.text(max_size=12), max_size=4))
def test_no_options_raise(completion: str, options: dict[str, str]) -> None:
    assert extract_answer(completion, options) in {None, *options}


@given(
    st.permutations(["Cyst", "No, it's normal.", "X-ray (AP)", "Left lobe, upper"]),
    st.integers(0, 3),
)
def test_the_text_of_an_option_names_it_at_any_place(texts: list[str], right: int) -> None:
    options = dict(zip("ABCD", texts, strict=True))
    assert extract_answer(f"<answer>{texts[right]}</answer>", options) == "ABCD"[right]
