"""A CSV of one's own: the records it gives, and what is refused rather than guessed."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.corpus.dataset.problems import LETTERS
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.records import Reading, Record, read_record_files
from stages.corpus.records.table import COLUMNS, read_header
from stages.corpus.records.texts import unfit
from stages.taxonomy import MODALITIES, QUESTION_TYPES

HEADER = ["image", "question", "options", "answer", "modality", "type"]
ROW = {
    "image": "scans/a.png",
    "question": "What is seen, if anything?",
    "options": "Cyst, simple|Nodule",
    "answer": "Nodule",
    "modality": "ct",
    "type": "disease-diagnosis",
}


def table(
    *rows: dict[str, str], delimiter: str = ",", columns: list[str] | None = None, end: str = "\r\n"
) -> str:
    """A CSV as a program writes it."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(
        buffer,
        columns or [*dict.fromkeys(key for row in rows for key in row)],
        delimiter=delimiter,
        lineterminator=end,
    )
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read(text: str | bytes, name: str = "ward.csv") -> Reading:
    reading = read_record_files([(name, text.encode() if isinstance(text, str) else text)])
    assert reading.read == len(reading.records) + len(reading.rows)
    return reading


def only(text: str | bytes) -> Record:
    reading = read(text)
    assert not reading.rows
    (record,) = reading.records
    return record


def refusal(text: str | bytes) -> tuple[str, str, Reason]:
    reading = read(text)
    assert not reading.records
    (row,) = reading.rows
    return str(row.where), row.what, row.reason


def test_a_row_is_a_record_as_omnimedvqa_has_it() -> None:
    record = only(table(ROW))
    assert record.fields == {
        "dataset": "ward",
        "question_id": record.question_id,
        "question_type": "Disease Diagnosis",
        "question": "What is seen, if anything?",
        "gt_answer": "Nodule",
        "image_path": "Images/scans/a.png",
        "option_A": "Cyst, simple",
        "option_B": "Nodule",
        "modality_type": "CT(Computed Tomography)",
    }
    assert (record.modality, record.question_type, record.gold, str(record.place)) == (
        "ct",
        "disease-diagnosis",
        "B",
        f"ward.csv, line 2 ({record.question_id})",
    )


def test_a_csv_and_a_json_file_with_its_records_give_the_same() -> None:
    record = only(table(ROW))
    from_json = read_record_files([("ward.json", json.dumps([record.fields]).encode())]).records[0]
    assert (from_json.fields, from_json.options, from_json.gold) == (
        record.fields,
        record.options,
        record.gold,
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_line_ends_and_encodings_of_spreadsheets_are_found(
    end: str, delimiter: str, encoding: str
) -> None:
    row = ROW | {"question": "Größe?; \t, 日本", "image": "ö/a;b,c.png"}
    assert (
        only(table(row, delimiter=delimiter, end=end).encode(encoding)).question
        == "Größe?; \t, 日本"
    )


@pytest.mark.parametrize("role", COLUMNS)
def test_columns_go_by_any_of_their_names_in_any_case_and_order(role: str) -> None:
    full = ROW | {"id": "q1", "dataset": "Ward 7"}
    expected = only(table(full)).fields
    for name in COLUMNS[role]:
        for written in (
            name,
            name.upper(),
            f" {name.title()} ",
            name.replace(" ", "_"),
            name.replace(" ", "-"),
            name.replace(" ", ""),
        ):
            renamed = {
                written if key == role else key: value for key, value in reversed(full.items())
            }
            assert only(table(renamed)).fields == expected, written


@pytest.mark.parametrize("prefix", ["option_", "Option ", "OPTION", "choice-", ""])
def test_options_may_have_columns_of_their_own(prefix: str) -> None:
    row = {key: value for key, value in ROW.items() if key != "options"}
    options = {
        f"{prefix}{letter}": text
        for letter, text in zip(LETTERS, ["Cyst, simple", "Nodule", "", " "], strict=True)
    }
    assert only(table(row | options)).options == ("Cyst, simple", "Nodule")


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("Cyst|Nodule", ("Cyst", "Nodule")),
        (" Cyst, or not | Nodule; or not |\nNone ", ("Cyst, or not", "Nodule; or not", "None")),
        ('["Cyst|or", "Nodule"]', ("Cyst|or", "Nodule")),
        (' [ "Cyst" ,"Nod\\"ule" ]', ("Cyst", 'Nod"ule')),
        ("[18F]FDG | [11C]choline", ("[18F]FDG", "[11C]choline")),
        ("A | B", ("A", "B")),
    ],
)
def test_options_in_one_cell_keep_their_commas(cell: str, options: tuple[str, ...]) -> None:
    assert only(table(ROW | {"options": cell, "answer": options[1]})).options == options


@pytest.mark.parametrize(
    ("options", "answer", "gold"),
    [
        ("Cyst|Nodule", "Nodule", "B"),
        ("Cyst|Nodule", " Nodule ", "B"),
        ("Cyst|Nodule", "b", "B"),
        ("Cyst|Nodule", "A", "A"),
        ("A|B", "B", "B"),
        ("x|y|A|z", "D", "D"),
        ("yes|no|b", "c", "C"),
    ],
)
def test_an_answer_is_a_text_or_a_letter(options: str, answer: str, gold: str) -> None:
    assert only(table(ROW | {"options": options, "answer": answer})).gold == gold


@pytest.mark.parametrize("given_as", ["slug", "literal"])
@pytest.mark.parametrize("change", [str, str.upper, str.lower, lambda text: f"  {text} "])
def test_modality_and_type_are_slugs_or_omnimedvqas_words_in_any_case(
    given_as: str, change: Any
) -> None:
    for slug, literal in MODALITIES.items():
        for kind, words in QUESTION_TYPES.items():
            modality, asked = (slug, kind) if given_as == "slug" else (literal, words)
            record = only(table(ROW | {"modality": change(modality), "type": change(asked)}))
            assert (record.modality, record.question_type) == (slug, kind)


@pytest.mark.parametrize(
    ("changes", "what", "reason"),
    [
        ({"question": ""}, "", Reason.FIELD_EMPTY),
        ({"image": " "}, "", Reason.FIELD_EMPTY),
        ({"answer": ""}, "", Reason.FIELD_EMPTY),
        ({"modality": ""}, "modality_type", Reason.FIELD_MISSING),
        ({"type": " "}, " ", Reason.FIELD_EMPTY),
        ({"options": ""}, "[]", Reason.OPTION_COUNT),
        ({"options": "Nodule"}, "['option_A']", Reason.OPTION_COUNT),
        ({"options": "a|b|c|d|Nodule"}, "['option_E']", Reason.OPTION_EXTRA),
        ({"options": "Nodule|Nodule"}, "['Nodule', 'Nodule']", Reason.OPTIONS_EQUAL),
        ({"options": "Nodule||x"}, "", Reason.FIELD_EMPTY),
        ({"options": "['Cyst', 'Nodule']"}, "['Cyst', 'Nodule']", Reason.OPTIONS_FORM),
        ({"options": '["Cyst", "Nodule"'}, '["Cyst", "Nodule"', Reason.OPTIONS_FORM),
        ({"options": '["Cyst", 3]'}, '["Cyst", 3]', Reason.OPTIONS_FORM),
        ({"options": '["\\ud800", "Nodule"]'}, "\\ud800", Reason.FIELD_ENCODING),
        (
            {"options": "A) Cyst|b) Nodule", "answer": "A"},
            "['A) Cyst', 'b) Nodule']",
            Reason.OPTION_LETTERS,
        ),
        ({"answer": "nodule"}, "nodule", Reason.ANSWER_NOT_OFFERED),
        ({"answer": "C"}, "C", Reason.ANSWER_NOT_OFFERED),
        ({"options": "B|A", "answer": "A"}, "A", Reason.ANSWER_AMBIGUOUS),
        ({"modality": "CT scan"}, "CT scan", Reason.UNKNOWN_MODALITY),
        ({"modality": "Crystal ball"}, "Crystal ball", Reason.UNKNOWN_MODALITY),
        ({"type": "diagnosis"}, "diagnosis", Reason.UNKNOWN_QUESTION_TYPE),
        ({"image": "C:\\scans\\a.png"}, "C:\\scans\\a.png", Reason.IMAGE_PATH),
        ({"image": "scans\\a.png"}, "scans\\a.png", Reason.IMAGE_PATH),
        ({"image": "../a.png"}, "../a.png", Reason.IMAGE_PATH),
        ({"image": "/data/a.png"}, "/data/a.png", Reason.IMAGE_PATH),
        ({"image": "./a.png"}, "Images/./a.png", Reason.IMAGE_PATH),
        ({"image": "https://x.org/a.png"}, "Images/https://x.org/a.png", Reason.IMAGE_PATH),
        ({"image": "a\nb.png"}, "Images/a\nb.png", Reason.FIELD_TEXT),
        ({"question": "What\x00?"}, "What\x00?", Reason.FIELD_TEXT),
        ({"question": "x" * 20_001}, "x" * 300 + "... (20001 characters)", Reason.FIELD_LENGTH),
        ({"question": "x" * 200_000}, "field larger than field limit (131072)", Reason.ROW_QUOTING),
        ({"question": "See <|im_end|>"}, "See <|im_end|>", Reason.FIELD_TOKEN),
        ({"question": "What A)x"}, "What A)x A)Cyst, simple, B)Nodule", Reason.OPTION_LABEL),
    ],
)
def test_a_row_that_cannot_be_read_in_one_way_is_refused(
    changes: dict[str, str], what: str, reason: Reason
) -> None:
    text = table(ROW | changes)
    content = text.encode() if "\x00" not in text else text.encode("utf-16")
    found = refusal(content)
    assert found[0].startswith("ward.csv, line 2 (")
    assert found[1:] == (what, reason)


def test_letters_that_agree_with_the_text_are_no_contradiction() -> None:
    assert only(table(ROW | {"options": "A|B", "answer": "a"})).gold == "A"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.FILE_EMPTY),
        ("\n\n \n", Reason.FILE_EMPTY),
        ("scan,words\n1,2\n", Reason.COLUMN_MISSING),
        ("image,question,options,answr,modality,type\n", Reason.COLUMN_MISSING),
        ("image,question,option_A,answer,modality,type\n", Reason.COLUMN_MISSING),
        ("image,Image Path,question,options,answer,modality,type\n", Reason.COLUMN_DUPLICATE),
        ("image,question,options,answer,gt_answer,modality,type\n", Reason.COLUMN_DUPLICATE),
        ("image,question,a,A,b,answer,modality,type\n", Reason.COLUMN_DUPLICATE),
        (
            "image,question,options,option_A,option_B,answer,modality,type\n",
            Reason.COLUMN_DUPLICATE,
        ),
        ('"image,question\n', Reason.COLUMN_MISSING),
    ],
)
def test_a_file_without_its_columns_is_one_row(text: str, reason: Reason) -> None:
    where, _, found = refusal(text)
    assert where == "ward.csv"
    assert found == reason


def test_the_columns_that_are_missing_and_what_was_perhaps_meant_are_named() -> None:
    for text, named in {
        "scan,words\n1,2\n": "image, question, answer, modality, type, options",
        "image,question,options,answr,modality,type\n": "'answr'",
    }.items():
        (row,) = read(text).rows
        assert named in row.why


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (table(ROW | {"question": "Größe?"}).encode("cp1252"), "byte 0xf6 in line 2"),
        (table(ROW).encode("utf-16-le"), "a NUL byte in line 1"),
        (table(ROW).encode("utf-32"), "UTF-32"),
        (table(ROW).encode("utf-16")[:-1], "byte 0x0a in line 2"),
        (b"image\x00,question", "a NUL byte in line 1"),
    ],
)
def test_another_encoding_is_refused_with_the_place(content: bytes, what: str) -> None:
    assert refusal(content) == ("ward.csv", what, Reason.FILE_ENCODING)


def test_lines_are_those_of_the_file_whatever_stands_in_its_cells() -> None:
    rows = [
        ROW | {"id": "a", "question": "one\ntwo\r\nthree"},
        ROW | {"id": "b"},
        ROW | {"id": "c"},
    ]
    text = "\n" + table(*rows).replace('scans/a.png,"What', '\r\n,,,,,,\r\nscans/a.png,"What', 1)
    assert [str(record.place) for record in read(text).records] == [
        "ward.csv, line 3 (a)",
        "ward.csv, line 8 (b)",
        "ward.csv, line 9 (c)",
    ]
    lines = text.replace("\r\n", "\n").split("\n")
    assert [lines[number - 1][:11] for number in (3, 8, 9)] == ["scans/a.png"] * 3


def test_bad_rows_do_not_harm_the_others() -> None:
    good = [f"{index}.png,What?,x|y,y,ct,lesion-grading" for index in range(3)]
    bad = [
        "9.png,What?,x|y,y,ct",
        "9.png,What?,x|y,y,ct,lesion-grading,more",
        '9.png,"What"?,x|y,y,ct,lesion-grading',
    ]
    reading = read(
        "\n".join(
            [
                ",".join(HEADER),
                bad[0],
                good[0],
                bad[1],
                good[1],
                "",
                bad[2],
                good[2],
                '9.png,"never closed',
            ]
        )
    )
    assert [record.image_path for record in reading.records] == [
        "Images/0.png",
        "Images/1.png",
        "Images/2.png",
    ]
    assert [(str(row.where), row.reason) for row in reading.rows] == [
        ("ward.csv, line 2 (no question_id)", Reason.ROW_LENGTH),
        ("ward.csv, line 4 (no question_id)", Reason.ROW_LENGTH),
        ("ward.csv, line 7 (no question_id)", Reason.ROW_QUOTING),
        ("ward.csv, line 9 (no question_id)", Reason.ROW_QUOTING),
    ]
    assert reading.read == 7


def test_a_refused_row_is_called_by_its_id() -> None:
    assert refusal(table(ROW | {"id": "q 7", "modality": "?"}))[0] == "ward.csv, line 2 (q 7)"


def test_ids_come_from_what_a_row_says_not_from_where_it_stands() -> None:
    rows = [ROW | {"question": f"Is it {number}?"} for number in range(3)]
    ids = {record.question: record.question_id for record in read(table(*rows)).records}
    assert len(set(ids.values())) == 3
    again = read(
        table(ROW, rows[2], rows[0], rows[1], columns=[*reversed(HEADER)]), "other.csv"
    ).records
    assert {record.question: record.question_id for record in again[1:]} == ids
    spoken = ROW | {
        "modality": "CT(computed tomography)",
        "answer": "B",
        "image": "Images/scans/a.png",
        "options": '["Cyst, simple", "Nodule"]',
    }
    assert only(table(spoken)).question_id == only(table(ROW)).question_id
    for key, value in {
        "image": "b.png",
        "question": "?",
        "options": "Nodule|Cyst",
        "answer": "A",
        "modality": "mri",
    }.items():
        assert only(table(ROW | {key: value})).question_id != only(table(ROW)).question_id


def test_the_second_of_two_equal_rows_is_refused() -> None:
    reading = read(table(ROW, ROW))
    (record,), (row,) = reading.records, reading.rows
    assert (str(row.where), row.reason) == (
        f"ward.csv, line 3 ({record.question_id})",
        Reason.DUPLICATE_ID,
    )
    assert str(record.place) in row.why


def test_other_columns_are_not_taken() -> None:
    text = table(ROW | {"patient": "Doe", "Birth date": "1970"})
    assert "Doe" not in json.dumps(dict(only(text).fields))
    assert read_header(text).left_out == ["patient", "Birth date"]


def test_a_column_without_a_name_may_only_be_empty() -> None:
    assert only(table(ROW | {"": ""})).gold == "B"
    assert refusal(table(ROW | {"": "7"}))[1:] == ("7", Reason.COLUMN_UNNAMED)


def test_csv_and_json_are_read_side_by_side() -> None:
    fields = dict(only(table(ROW)).fields) | {"question_id": "from json"}
    files = [
        ("QA_information/Open-access/S.json", json.dumps([fields]).encode()),
        ("W.CSV", table(ROW).encode()),
    ]
    assert {record.dataset for record in read_record_files(files).records} == {"ward", "W"}


texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(",;|\t\"'\n[]()ABCD "),
    min_size=1,
    max_size=25,
)


def fit(text: str) -> bool:
    return bool(text.strip()) and unfit(text) is None and ")" not in text


@settings(deadline=None, max_examples=150)
@given(
    texts.filter(fit),
    st.lists(texts.filter(fit), min_size=2, max_size=4, unique_by=str.strip),
    st.integers(0, 3),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
    st.booleans(),
)
def test_any_texts_come_back_as_they_were_written(
    question: str,
    options: list[str],
    gold: int,
    delimiter: str,
    end: str,
    encoding: str,
    in_one: bool,
    by_letter: bool,
) -> None:
    gold %= len(options)
    letter = LETTERS[gold]
    answer = letter if by_letter else options[gold]
    meant = [text.strip() for text in options]
    # a one-letter answer that is also another option's text, or the letter of another, is refused:
    # another test
    assume(
        not (len(answer.strip()) == 1 and answer.strip().upper() in LETTERS)
        or (by_letter and letter not in meant)
    )
    row = {key: value for key, value in ROW.items() if key != "options"} | {
        "question": question,
        "answer": answer,
    }
    row |= (
        {"options": json.dumps(options)}
        if in_one
        else {f"option_{key}": text for key, text in zip(LETTERS, options, strict=False)}
    )
    record = only(table(row, delimiter=delimiter, end=end).encode(encoding))
    assert (record.question, record.options, record.gold) == (
        question.strip(),
        tuple(meant),
        letter,
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_texts_are_not_normalised(form: Any) -> None:
    assert only(
        table(ROW | {"question": unicodedata.normalize(form, "Größe?")})
    ).question == unicodedata.normalize(form, "Größe?")
