"""Question tables in CSV: accepted spellings, and rows refused instead of guessed."""

from __future__ import annotations

import csv
import io
import itertools
import json
import unicodedata
from string import ascii_uppercase
from typing import Any

import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from stages.corpus.dataset.problems import LETTERS
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.labels import check_labels
from stages.corpus.records.records import Reading, Record, read_record_files
from stages.corpus.records.table import COLUMNS, read_header
from stages.corpus.records.texts import RefusedRecord, find_text_problem
from tests.omnimedvqa import MODALITIES, QUESTION_TYPES, TAXONOMY

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
    names = columns or list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    writer = csv.DictWriter(buffer, names, delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read(text: str | bytes, name: str = "ward.csv") -> Reading:
    reading = read_record_files(
        [(name, text.encode() if isinstance(text, str) else text)], TAXONOMY
    )
    assert reading.read == len(reading.records) + len(reading.rows)
    return reading


def read_one(text: str | bytes) -> Record:
    reading = read(text)
    assert not reading.rows
    (record,) = reading.records
    return record


def read_refusal(text: str | bytes) -> tuple[str, str, Reason]:
    """Location, offending value and reason of the only row."""
    reading = read(text)
    assert not reading.records
    (row,) = reading.rows
    return str(row.where), row.what, row.reason


def test_a_row_becomes_a_record_of_omnimedvqas_form() -> None:
    record = read_one(table(ROW))
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
    assert (record.modality, record.question_type, record.gold, str(record.location)) == (
        "ct",
        "disease-diagnosis",
        "B",
        f"ward.csv, line 2 ({record.question_id})",
    )


def test_a_csv_and_a_json_file_of_its_records_are_equivalent() -> None:
    record = read_one(table(ROW))
    from_json = read_record_files(
        [("ward.json", json.dumps([record.fields]).encode())], TAXONOMY
    ).records[0]
    assert (from_json.fields, from_json.options, from_json.gold) == (
        record.fields,
        record.options,
        record.gold,
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_line_ends_and_encodings_are_detected(
    end: str, delimiter: str, encoding: str
) -> None:
    row = ROW | {"question": "Größe?; \t, 日本", "image": "ö/a;b,c.png"}
    record = read_one(table(row, delimiter=delimiter, end=end).encode(encoding))
    assert record.question == row["question"]


@pytest.mark.parametrize("role", COLUMNS)
def test_columns_are_known_by_any_of_their_names_in_any_case_and_order(role: str) -> None:
    full = ROW | {"id": "q1", "dataset": "Ward 7", "patient": "7", "age": "54", "sex": "f"}
    full |= {"history": "smoker", "indication": "cough", "context": "seen after a fall"}
    full |= {"slices": "2", "images": ""}
    if role == "images":
        full |= {"images": full["image"], "image": ""}
    assert full.keys() == COLUMNS.keys()
    expected = read_one(table(full)).fields
    for name in COLUMNS[role]:
        separated = [name.replace(" ", separator) for separator in (" ", "_", "-", "")]
        for spelling in (*separated, name.upper(), f" {name.title()} "):
            renamed = {
                spelling if key == role else key: value for key, value in reversed(full.items())
            }
            assert read_one(table(renamed)).fields == expected, spelling


@pytest.mark.parametrize("prefix", ["option_", "Option ", "OPTION", "choice-", ""])
def test_options_may_have_columns_of_their_own(prefix: str) -> None:
    row = {key: value for key, value in ROW.items() if key != "options"}
    options = {
        f"{prefix}{letter}": text
        for letter, text in zip(LETTERS[:4], ["Cyst, simple", "Nodule", "", " "], strict=True)
    }
    assert read_one(table(row | options)).options == ("Cyst, simple", "Nodule")


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
    assert read_one(table(ROW | {"options": cell, "answer": options[1]})).options == options


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
    assert read_one(table(ROW | {"options": options, "answer": answer})).gold == gold


@pytest.mark.parametrize("form", ["slug", "literal"])
@pytest.mark.parametrize("change", [str, str.upper, str.lower, lambda text: f"  {text} "])
def test_modality_and_type_are_slugs_or_omnimedvqas_words_in_any_case(
    form: str, change: Any
) -> None:
    for modality, kind in itertools.product(MODALITIES, QUESTION_TYPES):
        cells = {"modality": modality, "type": kind}
        if form == "literal":
            cells = {"modality": MODALITIES[modality], "type": QUESTION_TYPES[kind]}
        record = read_one(table(ROW | {name: change(cell) for name, cell in cells.items()}))
        assert (record.modality, record.question_type) == (modality, kind)


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
        (
            {"options": "|".join(["Nodule", *map(str, range(26))])},
            "|".join(["Nodule", *map(str, range(26))]),
            Reason.OPTION_EXTRA,
        ),
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
        ({"image": "https://x.org/a.png"}, "https://x.org/a.png", Reason.IMAGE_PATH),
        ({"image": "s3://bucket/a.png"}, "s3://bucket/a.png", Reason.IMAGE_PATH),
        ({"options": "Cyst; Nodule", "answer": "A"}, "Cyst; Nodule", Reason.OPTIONS_FORM),
        ({"options": "Cyst, Nodule", "answer": "A"}, "Cyst, Nodule", Reason.OPTIONS_FORM),
        ({"options": "Cyst / Nodule", "answer": "A"}, "Cyst / Nodule", Reason.OPTIONS_FORM),
        ({"image": "a\nb.png"}, "Images/a\nb.png", Reason.FIELD_TEXT),
        ({"question": "What\x00?"}, "What\x00?", Reason.FIELD_TEXT),
        ({"question": "x" * 20_001}, "x" * 300 + "... (20001 characters)", Reason.FIELD_LENGTH),
        ({"question": "x" * 200_000}, "200,064 characters", Reason.CELL_LENGTH),
        ({"image": "iVBORw0KGgo" * 20_000}, "220,081 characters", Reason.CELL_LENGTH),
        ({"question": "See <|im_end|>"}, "See <|im_end|>", Reason.FIELD_TOKEN),
        ({"question": "What A)x"}, "What A)x A)Cyst, simple, B)Nodule", Reason.OPTION_LABEL),
    ],
)
def test_an_unusable_or_ambiguous_row_is_refused(
    changes: dict[str, str], what: str, reason: Reason
) -> None:
    text = table(ROW | changes)
    content = text.encode() if "\x00" not in text else text.encode("utf-16")
    location, *rest = read_refusal(content)
    assert location.startswith("ward.csv, line 2 (")
    assert rest == [what, reason]


def test_an_answer_that_is_text_and_letter_of_one_option_is_accepted() -> None:
    assert read_one(table(ROW | {"options": "A|B", "answer": "a"})).gold == "A"


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
def test_a_file_without_usable_columns_is_one_row(text: str, reason: Reason) -> None:
    location, _, actual = read_refusal(text)
    assert location == "ward.csv"
    assert actual == reason


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("scan,words", "image, question, answer, modality, type, options"),
        ("image,question,options,answr,modality,type", "'answr'"),
    ],
)
def test_missing_columns_and_similar_names_are_named(header: str, names: str) -> None:
    (row,) = read(f"{header}\n").rows
    assert names in row.why


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
def test_another_encoding_is_refused_with_the_line(content: bytes, what: str) -> None:
    assert read_refusal(content) == ("ward.csv", what, Reason.FILE_ENCODING)


def test_line_numbers_count_newlines_inside_cells() -> None:
    rows = [
        ROW | {"id": "a", "question": "one\ntwo\r\nthree"},
        ROW | {"id": "b"},
        ROW | {"id": "c"},
    ]
    text = "\n" + table(*rows).replace('scans/a.png,"What', '\r\n,,,,,,\r\nscans/a.png,"What', 1)
    assert [str(record.location) for record in read(text).records] == [
        "ward.csv, line 3 (a)",
        "ward.csv, line 8 (b)",
        "ward.csv, line 9 (c)",
    ]
    lines = text.replace("\r\n", "\n").split("\n")
    assert [lines[number - 1][:11] for number in (3, 8, 9)] == ["scans/a.png"] * 3


def test_refused_rows_do_not_affect_the_others() -> None:
    lines = [
        ",".join(HEADER),
        "9.png,What?,x|y,y,ct",
        "0.png,What?,x|y,y,ct,lesion-grading",
        "9.png,What?,x|y,y,ct,lesion-grading,more",
        "1.png,What?,x|y,y,ct,lesion-grading",
        "",
        '9.png,"What"?,x|y,y,ct,lesion-grading',
        "2.png,What?,x|y,y,ct,lesion-grading",
        '9.png,"never closed',
    ]
    reading = read("\n".join(lines))
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


def test_a_refused_row_is_identified_by_its_id() -> None:
    assert read_refusal(table(ROW | {"id": "q 7", "modality": "?"}))[0] == "ward.csv, line 2 (q 7)"


def test_default_ids_depend_on_content_not_on_position_or_spelling() -> None:
    rows = [ROW | {"question": f"Is it {number}?"} for number in range(3)]
    ids = {record.question: record.question_id for record in read(table(*rows)).records}
    assert len(set(ids.values())) == 3
    reordered = table(ROW, rows[2], rows[0], rows[1], columns=HEADER[::-1])
    again = read(reordered, "other.csv").records
    assert {record.question: record.question_id for record in again[1:]} == ids
    equivalent = ROW | {
        "modality": "CT(computed tomography)",
        "answer": "B",
        "image": "Images/scans/a.png",
        "options": '["Cyst, simple", "Nodule"]',
    }
    assert read_one(table(equivalent)).question_id == read_one(table(ROW)).question_id
    changes = {
        "image": "b.png",
        "question": "?",
        "options": "Nodule|Cyst",
        "answer": "A",
        "modality": "mri",
    }
    for key, value in changes.items():
        assert read_one(table(ROW | {key: value})).question_id != read_one(table(ROW)).question_id


def test_the_second_of_two_equal_rows_is_refused() -> None:
    reading = read(table(ROW, ROW))
    (record,) = reading.records
    (row,) = reading.rows
    assert (str(row.where), row.reason) == (
        f"ward.csv, line 3 ({record.question_id})",
        Reason.DUPLICATE_ID,
    )
    assert str(record.location) in row.why


def test_other_columns_are_ignored() -> None:
    text = table(ROW | {"Name": "Doe", "Birth date": "1970"})
    assert "Doe" not in json.dumps(dict(read_one(text).fields))
    assert read_header(text).ignored_columns == ["Name", "Birth date"]


def test_a_column_without_a_name_must_be_empty() -> None:
    assert read_one(table(ROW | {"": ""})).gold == "B"
    assert read_refusal(table(ROW | {"": "7"}))[1:] == ("7", Reason.COLUMN_UNNAMED)


def test_csv_and_json_files_are_read_together() -> None:
    fields = dict(read_one(table(ROW)).fields) | {"question_id": "from json"}
    files = [
        ("QA_information/Open-access/S.json", json.dumps([fields]).encode()),
        ("W.CSV", table(ROW).encode()),
    ]
    assert {record.dataset for record in read_record_files(files, TAXONOMY).records} == {
        "ward",
        "W",
    }


texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(",;|\t\"'\n[]()ABCD "),
    min_size=1,
    max_size=25,
)


def is_usable(text: str) -> bool:
    return bool(text.strip()) and find_text_problem(text) is None and ")" not in text


@settings(deadline=None, max_examples=150)
@given(
    texts.filter(is_usable),
    st.lists(texts.filter(is_usable), min_size=2, max_size=4, unique_by=str.strip),
    st.integers(0, 3),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
    st.booleans(),
)
def test_any_usable_texts_survive_a_round_trip(
    question: str,
    options: list[str],
    gold: int,
    delimiter: str,
    end: str,
    encoding: str,
    in_one_cell: bool,
    by_letter: bool,
) -> None:
    gold %= len(options)
    letter = LETTERS[gold]
    answer = letter if by_letter else options[gold]
    stripped = [text.strip() for text in options]
    # ambiguous one-letter answers are refused (test_an_unusable_or_ambiguous_row_is_refused)
    assume(
        not (len(answer.strip()) == 1 and answer.strip().upper() in LETTERS)
        or (by_letter and letter not in stripped)
    )
    # those that begin with their letters are refused, too (test_labels.py)
    try:
        check_labels(options)
    except RefusedRecord:
        reject()
    row = {key: value for key, value in ROW.items() if key != "options"} | {
        "question": question,
        "answer": answer,
    }
    if in_one_cell:
        row["options"] = json.dumps(options)
    else:
        row |= {f"option_{key}": text for key, text in zip(LETTERS[:4], options, strict=False)}
    record = read_one(table(row, delimiter=delimiter, end=end).encode(encoding))
    assert (record.question, record.options, record.gold) == (
        question.strip(),
        tuple(stripped),
        letter,
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_texts_are_not_normalised(form: Any) -> None:
    question = unicodedata.normalize(form, "Größe?")
    assert read_one(table(ROW | {"question": question})).question == question


@pytest.mark.parametrize("count", [2, 5, 26])
@pytest.mark.parametrize("name", ["{}", "option_{}", "Choice {}"])
def test_every_option_column_is_read(count: int, name: str) -> None:
    letters = ascii_uppercase[:count]
    header = ",".join(name.format(letter) for letter in letters)
    texts = ",".join(f"text {letter}" for letter in letters)
    rest = "a.png,What?,ct,disease-diagnosis"
    content = f"image,question,modality,type,answer,{header}\n{rest},{letters[-1]},{texts}\n"
    record = read_one(content)
    assert record.options == tuple(f"text {letter}" for letter in letters)
    assert record.gold == letters[-1]


@pytest.mark.parametrize("names", ["A,B,D", "A,B,C,E", "option_A,option_B,option_Z", "A,B,x"])
def test_a_gap_between_option_columns_is_named(names: str) -> None:
    with pytest.raises(RefusedRecord, match="none is for option [CD]") as caught:
        read_header(f"image,question,modality,type,answer,{names}\n")
    assert caught.value.reason == Reason.OPTION_GAP


@pytest.mark.parametrize("path", ["./scans/a.png", "././scans/a.png", " ./scans/a.png"])
def test_a_path_from_the_folder_itself_is_one_from_the_folder(path: str) -> None:
    assert read_one(table(ROW | {"image": path})).image_path == "Images/scans/a.png"


@pytest.mark.parametrize("value", ["Endoscopy", "Digital Photography", "PET", "Colonoscopy"])
def test_no_modality_is_suggested_for_one_that_is_none_of_them(value: str) -> None:
    (row,) = read(table(ROW | {"modality": value})).rows
    assert row.reason == Reason.UNKNOWN_MODALITY
    assert "did you mean" not in row.why


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_json_lines_are_called_so(end: str) -> None:
    content = f'{{"a": 1}}{end}{{"a": 2}}{end}'
    (row,) = read(content, "QA_information/Open-access/S.json").rows
    assert (row.reason, row.what) == (Reason.FILE_FORM, "JSON Lines")
