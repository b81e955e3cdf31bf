"""What a record says of its patient: the one text it becomes, and what is refused unquoted."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.core.outputs import write_json_lines
from stages.corpus.quarantine.ledger import RecordLocation, Row, read_quarantine, write_quarantine
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import CONTEXT, MAX_CONTEXT, context_of, with_header
from stages.corpus.records.records import (
    RefusedRecord,
    check_record,
    check_texts,
    iterate_records,
    read_record_files,
)
from tests.conftest import MakeRecord
from tests.omnimedvqa import TAXONOMY

HERE = RecordLocation("here.json", 0, "x")
NAME = "Zephyrine"
"""What no message may quote."""


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, None),
        (dict.fromkeys(CONTEXT), None),
        ({"age": 54}, "Age: 54."),
        ({"context": "seen after a fall"}, "seen after a fall."),
        ({"context": "Why?"}, "Why?"),
        ({"history": "Smoker.", "indication": "cough!"}, "History: Smoker. Indication: cough!"),
        ({"history": " Smoker\n\n since\t2010 \u00a0"}, "History: Smoker since 2010."),
        (
            {
                "context": "Seen after a fall",
                "indication": "cough",
                "history": "smoker",
                "sex": "F",
                "age": "54",
                "note": "Mr. Smith",
            },
            "Age: 54. Sex: female. History: smoker. Indication: cough. Seen after a fall.",
        ),
    ],
)
def test_the_fields_become_one_line_in_a_fixed_order(
    fields: dict[str, Any], text: str | None
) -> None:
    assert context_of(fields) == text


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (54, "54"),
        (54.0, "54"),
        (2.5, "2.5"),
        (0, "0"),
        ("54", "54"),
        ("80.0", "80"),
        (" 54 years ", "54"),
        ("54-year-old", "54"),
        ("54 Years Old", "54"),
        ("54y", "54"),
        ("54 y/o", "54"),
        ("054Y", "54"),
        ("006M", "6 months"),
        ("1 month", "1 month"),
        ("18 mos", "18 months"),
        ("3 weeks", "3 weeks"),
        ("10 d", "10 days"),
        ("50-59", "50 to 59"),
        ("50\u201359 years", "50 to 59"),
        ("50 to 59", "50 to 59"),
        ("below 1", "below 1"),
        ("<1", "below 1"),
        ("89", "89"),
        ("90+", "90+"),
        ("90 + years", "90+"),
    ],
)
def test_an_age_is_told_in_one_spelling_that_is_read_again(written: Any, told: str) -> None:
    assert context_of({"age": written}) == f"Age: {told}."
    assert context_of({"age": told}) == f"Age: {told}."


@pytest.mark.parametrize("written", [90, "90", "92 years", "1090 months", "85-95", "129", 93.5])
def test_an_age_over_89_is_refused_unless_it_is_90_and_more(written: Any) -> None:
    with pytest.raises(RefusedRecord, match=r"age .*over 89.* write 90\+") as caught:
        context_of({"age": written})
    assert (caught.value.what, caught.value.reason) == ("age", Reason.FIELD_IDENTIFIER)


@pytest.mark.parametrize(
    "written",
    [
        *("old", "unknown", "n/a", "-3", "59-50", "50-50", "1954", "54 light years", "0x36", "1e1"),
        *("54;55", "5.55", "90-", "9+", "140", "2024-03-05", "f", -1, 131, 1e9, NAME),
    ],
)
def test_what_is_no_age_is_refused_with_what_would_be_one(written: Any) -> None:
    with pytest.raises(RefusedRecord, match=r"age is no age.*50-59.*6 months.*leave it out") as one:
        context_of({"age": written})
    assert (one.value.what, one.value.reason) == ("age", Reason.FIELD_AGE)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        *(
            ("F", "female"),
            (" f ", "female"),
            ("Female", "female"),
            ("M", "male"),
            ("MALE", "male"),
        ),
        *(("O", "other"), ("other", "other"), ("u", "unknown"), ("Unknown", "unknown")),
    ],
)
def test_a_sex_is_told_as_a_word(written: str, told: str) -> None:
    assert context_of({"sex": written}) == f"Sex: {told}."
    assert context_of({"sex": told}) == f"Sex: {told}."


@pytest.mark.parametrize("written", ["1", "w", "females", "F/M", NAME])
def test_another_word_for_a_sex_is_refused(written: str) -> None:
    with pytest.raises(RefusedRecord, match="sex is none of female, male") as caught:
        context_of({"sex": written})
    assert (caught.value.what, caught.value.reason) == ("sex", Reason.FIELD_SEX)


@pytest.mark.parametrize(
    ("fields", "why", "reason"),
    [
        ({"history": ""}, "history is empty", Reason.FIELD_EMPTY),
        ({"context": " \n"}, "context is empty", Reason.FIELD_EMPTY),
        ({"age": ""}, "age is empty", Reason.FIELD_EMPTY),
        ({"history": 7}, "history is not a text", Reason.FIELD_TYPE),
        ({"sex": False}, "sex is not a text", Reason.FIELD_TYPE),
        ({"age": True}, "age is not a text", Reason.FIELD_TYPE),
        ({"context": [NAME]}, "context is not a text", Reason.FIELD_TYPE),
        ({"history": f"{NAME} <|image_pad|>"}, "history contains a token", Reason.FIELD_TOKEN),
        ({"context": f"<|{NAME}|>"}, "context contains a token", Reason.FIELD_TOKEN),
        ({"indication": "a\u202eb"}, r"indication contains U\+202E", Reason.FIELD_TEXT),
        ({"context": f"{NAME}\x00"}, r"context contains .* U\+0000", Reason.FIELD_TEXT),
        ({"context": f"{NAME}\ud800"}, "context is not Unicode text", Reason.FIELD_ENCODING),
        ({"age": NAME * 5}, "age has 45 characters, the limit is 40", Reason.FIELD_LENGTH),
        ({"age": 10**200}, "age has 201 characters", Reason.FIELD_LENGTH),
        (
            {"history": f"Mr. {NAME}"},
            "history contains what looks like a name, at character 1: remove it",
            Reason.FIELD_IDENTIFIER,
        ),
        (
            {"history": "smoker", "indication": f"cough,\n seen by Dr. {NAME}"},
            "indication contains what looks like a name, at character 17",
            Reason.FIELD_IDENTIFIER,
        ),
        (
            {"context": "A 92-year-old woman"},
            r"context contains what looks like an age over 89, at character 3: .* 90\+",
            Reason.FIELD_IDENTIFIER,
        ),
    ],
)
def test_an_unusable_field_is_refused_by_name_and_never_quoted(
    make_record: MakeRecord, fields: dict[str, Any], why: str, reason: Reason
) -> None:
    for check in (context_of, lambda raw: check_record(raw, HERE, TAXONOMY), check_texts):
        with pytest.raises(RefusedRecord, match=why) as caught:
            check(make_record(**fields))
        assert caught.value.reason == reason
        assert NAME not in f"{caught.value.what} {caught.value.why} {caught.value!r}"


def test_the_limit_is_that_of_all_free_texts_together() -> None:
    half = "x" * (MAX_CONTEXT // 2)
    whole = context_of({"history": half, "context": half, "age": "54", "sex": "f"})
    assert whole is not None
    assert len(whole) > MAX_CONTEXT, "with the words that are added"
    why = "history and context have 2001 characters, the limit is 2000"
    with pytest.raises(RefusedRecord, match=why) as caught:
        context_of({"history": half, "context": f"{half}x"})
    assert caught.value.reason == Reason.FIELD_LENGTH


def test_a_text_that_is_too_long_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(text: str) -> None:
        raise AssertionError(f"{len(text)} characters were searched")

    monkeypatch.setattr("stages.corpus.records.identifiers.find.find_identifier", search)
    with pytest.raises(AssertionError, match="2000 characters"):
        context_of({"history": "x" * MAX_CONTEXT})
    with pytest.raises(RefusedRecord, match="100000 characters"):
        context_of({"history": "Mr. Smith " * 10_000})


def test_a_record_has_its_context_and_keeps_its_fields_as_written(make_record: MakeRecord) -> None:
    raw = make_record(age=54, sex="F", history=" smoker ", indication=None)
    raw["indication"] = None
    record = check_record(raw, HERE, TAXONOMY)
    assert record.context == "Age: 54. Sex: female. History: smoker."
    assert record.fields == raw
    assert check_record(make_record(), HERE, TAXONOMY).context is None


def test_a_record_without_context_is_written_as_before(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    raw = make_record(patient="7", note="Mr. Smith, born 5.3.1950")
    (record,) = read_record_files([("a.json", json.dumps([raw]).encode())], TAXONOMY).records
    write_json_lines(tmp_path / "a.jsonl", [record.fields])
    assert (tmp_path / "a.jsonl").read_bytes() == f"{json.dumps(raw)}\n".encode()


@given(
    st.dictionaries(
        st.sampled_from(CONTEXT),
        st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=60),
    )
)
@settings(deadline=None, derandomize=True)
def test_any_fields_become_one_line_or_are_refused(fields: dict[str, Any]) -> None:
    try:
        text = context_of(fields)
    except RefusedRecord:
        return
    if all(value is None for value in fields.values()):
        assert text is None
    else:
        assert text == " ".join((text or "").split())
        # the fields of the record of an earlier stage give the same text
        assert context_of(json.loads(json.dumps(fields))) == text


# --- files ----------------------------------------------------------------------------------------

ROW = {
    "image": "a.png",
    "question": "What?",
    "options": "Cyst|Nodule",
    "answer": "B",
    "modality": "ct",
    "type": "lesion-grading",
}


def table(*rows: dict[str, str]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def test_a_csv_has_its_columns_under_other_names_and_empty_cells_say_nothing() -> None:
    content = table(
        ROW | {"Patient Age": "54", "Gender": "f", "clinical_history": "smoker", "Indication": ""},
        ROW | {"Patient Age": "", "Gender": "", "clinical_history": " ", "Indication": ""},
    )
    told, silent = read_record_files([("a.csv", content)], TAXONOMY).records
    assert told.context == "Age: 54. Sex: female. History: smoker."
    assert silent.context is None
    (without,) = read_record_files([("a.csv", table(ROW))], TAXONOMY).records
    assert silent.fields == without.fields
    assert silent.question_id == without.question_id


def test_rows_that_differ_in_their_context_alone_are_different_questions() -> None:
    content = table(*(ROW | {"age": age} for age in ("54", "55", "")))
    records = read_record_files([("a.csv", content)], TAXONOMY).records
    assert len({record.question_id for record in records}) == 3


def test_refusals_of_files_with_a_context_quote_no_cells() -> None:
    rows = table(ROW | {"history": f"seen with {NAME}"}).decode()
    contents = {
        "long.csv": rows.replace(f"seen with {NAME}", f"seen, with {NAME}"),
        "unnamed.csv": rows.replace("history", "history,").rstrip() + f",{NAME}",
        "quotes.csv": rows.replace(f"seen with {NAME}", f'"seen" with {NAME}'),
        "age.csv": table(ROW | {"age": NAME}).decode(),
        "surrogate.json": json.dumps([{"history": f"{NAME}\ud800"}]),
        "deep.json": f'[{{"context": {"[" * 20}"{NAME}"{"]" * 20}}}]',
    }
    reading = read_record_files(
        [(name, content.encode()) for name, content in contents.items()], TAXONOMY
    )
    assert reading.records == []
    assert {row.where.file for row in reading.rows} == {*contents}
    assert [row for row in reading.rows if NAME in repr(row)] == []


def test_quarantine_errors_and_logs_have_the_place_and_not_the_text(
    make_record: MakeRecord, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = make_record(history=f"MRN {NAME}1234567")
    with caplog.at_level(logging.DEBUG):
        reading = read_record_files([("a.json", json.dumps([raw]).encode())], TAXONOMY)
    (row,) = reading.rows
    assert row == Row(
        where=RecordLocation("a.json", 0, "Chest CT Scan_00000"),
        what="history",
        why="history contains what looks like a number of a record or a person, at character 1:"
        " remove it",
        reason=Reason.FIELD_IDENTIFIER,
        dataset="Chest CT Scan",
        modality=raw["modality_type"],
    )
    write_quarantine(tmp_path / "q.parquet", "download", 1, [], reading.rows, {})
    assert read_quarantine(tmp_path / "q.parquet").rows == (row,)
    write_json_lines(tmp_path / "records.jsonl", [raw])
    with pytest.raises(InputError) as caught:
        list(iterate_records(tmp_path / "records.jsonl", "remedy", TAXONOMY))
    chain = f"{caught.value} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert NAME not in chain + caplog.text + (tmp_path / "q.parquet").read_bytes().decode("latin-1")


# --- the header of a DICOM file -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "header", "text"),
    [
        ({}, {"PatientAge": "50 to 59", "PatientSex": "female"}, "Age: 50 to 59. Sex: female."),
        ({"age": 54}, {"PatientAge": "10 to 19", "PatientSex": "male"}, "Age: 54. Sex: male."),
        ({"sex": "unknown"}, {"PatientSex": "male"}, "Sex: unknown."),
        ({"age": None}, {"PatientAge": "below 1"}, "Age: below 1."),
        ({"history": "smoker"}, {"PatientAge": "90+"}, "Age: 90+. History: smoker."),
        ({"history": "smoker"}, {"Modality": "CT"}, "History: smoker."),
        ({}, {}, None),
    ],
)
def test_a_header_says_what_the_record_does_not(
    fields: dict[str, Any], header: dict[str, str], text: str | None
) -> None:
    joined = with_header(fields, header)
    assert context_of(joined) == text
    assert with_header(joined, header) == joined


def test_a_header_adds_to_a_context_of_the_greatest_length() -> None:
    joined = with_header(
        {"context": "x" * MAX_CONTEXT}, {"PatientAge": "90+", "PatientSex": "other"}
    )
    assert context_of(joined) == f"Age: 90+. Sex: other. {'x' * MAX_CONTEXT}."
