"""Options written with their letters are refused in every input, whatever the mark behind them."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from stages.corpus.dataset.problems import LETTERS
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.records import read_record_files
from tests.conftest import MakeRecord
from tests.omnimedvqa import TAXONOMY

MARKS = ("{}) {}", "({}) {}", "{}. {}", "{}.{}", "{}: {}", "{} - {}", "[{}] {}", "{}] {}", "{}, {}")
FULL_WIDTH = ("\uff21\uff0e{}", "\uff08\uff22\uff09{}")


def labelled(mark: str, letters: str) -> list[str]:
    return [mark.format(letters[0], "Cyst"), mark.format(letters[1], "Nodule")]


def reasons(make_record: MakeRecord, options: list[str], form: str) -> list[Reason]:
    """Reasons for which a question with these options is refused, as JSON or as CSV."""
    names = [f"option_{letter}" for letter in LETTERS[: len(options)]]
    if form == "json":
        record = make_record(option_A=None, option_B=None, gt_answer=options[0])
        content = json.dumps([record | dict(zip(names, options, strict=True))])
    else:
        row = {"image": "a.png", "question": "What?", "answer": "A", "modality": "ct"}
        row["type"] = "disease-diagnosis"
        row |= (
            {"options": "|".join(options)}
            if form == "cell"
            else dict(zip(names, options, strict=True))
        )
        content = pd.DataFrame([row]).to_csv(index=False)
    name = "a.json" if form == "json" else "a.csv"
    return [row.reason for row in read_record_files([(name, content.encode())], TAXONOMY).rows]


FORMS = ("json", "cell", "columns")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("letters", ["AB", "ab"])
def test_options_with_their_letters_are_refused(
    make_record: MakeRecord, form: str, mark: str, letters: str
) -> None:
    assert reasons(make_record, labelled(mark, letters), form) == [Reason.OPTION_LETTERS]


@pytest.mark.parametrize("form", FORMS)
def test_full_width_letters_and_marks_are_letters_and_marks(
    make_record: MakeRecord, form: str
) -> None:
    options = [mark.format(text) for mark, text in zip(FULL_WIDTH, ("Cyst", "Nodule"), strict=True)]
    assert reasons(make_record, options, form) == [Reason.OPTION_LETTERS]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [
        ["A) Cyst", "Nodule"],
        ["Cyst", "(B) Nodule", "Neither"],
        ["Cyst", "Nodule", "c] Neither"],
        ["(A)", "(B)"],
    ],
)
def test_one_option_with_its_letter_in_brackets_is_enough(
    make_record: MakeRecord, form: str, options: list[str]
) -> None:
    assert reasons(make_record, options, form) == [Reason.OPTION_LETTERS]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [
        ["E. coli", "S. aureus"],
        ["A. fumigatus", "C. albicans"],
        ["A-scan", "B-scan"],
        ["A", "B"],
        ["Cyst (A)", "Nodule (B)"],
        ["B) Cyst", "A) Nodule"],
        ["Vitamin A", "B12"],
        ["1) Cyst", "2) Nodule"],
    ],
)
def test_texts_that_begin_with_another_letter_are_texts(
    make_record: MakeRecord, form: str, options: list[str]
) -> None:
    assert Reason.OPTION_LETTERS not in reasons(make_record, options, form)
