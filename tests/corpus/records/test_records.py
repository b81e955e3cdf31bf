"""Records of question files: validation, reasons for refusal, and reading back."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.core.outputs import write_json_lines
from stages.corpus.quarantine.ledger import RecordLocation, Row
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.records import (
    RefusedRecord,
    check_record,
    iterate_records,
    read_record_files,
    read_record_lines,
)
from tests.conftest import MakeRecord
from tests.omnimedvqa import MODALITIES, QUESTION_TYPES, TAXONOMY

HERE = RecordLocation("here.json", 0, "x")


@pytest.mark.parametrize("slug", MODALITIES)
@pytest.mark.parametrize("kind", QUESTION_TYPES)
def test_every_modality_and_type_literal_maps_to_its_slug(
    make_record: MakeRecord, slug: str, kind: str
) -> None:
    record = check_record(
        make_record(modality_type=MODALITIES[slug], question_type=QUESTION_TYPES[kind]),
        HERE,
        TAXONOMY,
    )
    assert (record.modality, record.question_type) == (slug, kind)


def test_a_record_keeps_all_its_fields_and_gets_the_letter_of_its_gold(
    make_record: MakeRecord,
) -> None:
    raw = make_record(option_C="Normal", gt_answer=" Normal ", question=" What? ", source="kept")
    record = check_record(raw, HERE, TAXONOMY)
    assert record.fields == raw
    assert (record.question, record.options, record.gold) == (
        "What?",
        ("Cyst", "Nodule", "Normal"),
        "C",
    )


@pytest.mark.parametrize(
    ("changes", "what", "reason"),
    [
        ({"gt_answer": None}, "gt_answer", Reason.FIELD_MISSING),
        ({"modality_type": None, "modality": "CT"}, "modality_type", Reason.FIELD_MISSING),
        ({"question": ""}, "", Reason.FIELD_EMPTY),
        ({"question": " \n"}, " \n", Reason.FIELD_EMPTY),
        ({"question_id": 7}, "7", Reason.FIELD_TYPE),
        ({"option_B": ["x"]}, "['x']", Reason.FIELD_TYPE),
        ({"option_B": ""}, "", Reason.FIELD_EMPTY),
        ({"question": "\ud800"}, "\\ud800", Reason.FIELD_ENCODING),
        ({"gt_answer": "nodule"}, "nodule", Reason.ANSWER_NOT_OFFERED),
        ({"gt_answer": "B"}, "B", Reason.ANSWER_NOT_OFFERED),
        ({"option_A": "Nodule "}, "['Nodule', 'Nodule']", Reason.OPTIONS_EQUAL),
        ({"option_A": None, "option_B": None}, "[]", Reason.OPTION_COUNT),
        ({"option_A": None}, "['option_B']", Reason.OPTION_COUNT),
        ({"option_B": None, "option_C": "Nodule"}, "['option_A', 'option_C']", Reason.OPTION_GAP),
        ({"option_D": "z"}, "['option_A', 'option_B', 'option_D']", Reason.OPTION_GAP),
        ({"option_AA": "z"}, "['option_AA']", Reason.OPTION_EXTRA),
        ({"option_c": "z"}, "['option_c']", Reason.OPTION_EXTRA),
        ({"option_3": "z"}, "['option_3']", Reason.OPTION_EXTRA),
        ({"modality_type": "ct"}, "ct", Reason.UNKNOWN_MODALITY),
        (
            {"modality_type": "OCT (Optical Coherence Tomography)"},
            "OCT (Optical Coherence Tomography)",
            Reason.UNKNOWN_MODALITY,
        ),
        ({"question_type": "disease diagnosis"}, "disease diagnosis", Reason.UNKNOWN_QUESTION_TYPE),
        ({"image_path": "/Images/a.png"}, "/Images/a.png", Reason.IMAGE_PATH),
        ({"image_path": "Images/../a.png"}, "Images/../a.png", Reason.IMAGE_PATH),
        ({"image_path": "Images\\a.png"}, "Images\\a.png", Reason.IMAGE_PATH),
        ({"image_path": "Scans/a.png"}, "Scans/a.png", Reason.IMAGE_PATH),
        ({"image_path": "Images/"}, "Images/", Reason.IMAGE_PATH),
        ({"image_path": "Images//a.png"}, "Images//a.png", Reason.IMAGE_PATH),
        ({"image_path": f"Images/{'ö' * 130}.png"}, f"Images/{'ö' * 130}.png", Reason.IMAGE_PATH),
    ],
)
def test_a_bad_record_is_refused_with_value_and_reason(
    make_record: MakeRecord, changes: dict[str, Any], what: str, reason: Reason
) -> None:
    with pytest.raises(RefusedRecord) as caught:
        check_record(make_record(**changes), HERE, TAXONOMY)
    assert (caught.value.what, caught.value.reason) == (what, reason)


@pytest.mark.parametrize(
    "changes", [{"question": "Is A) right?"}, {"option_A": "Cyst, B) or more"}]
)
def test_a_text_that_the_published_form_cannot_represent_is_refused(
    make_record: MakeRecord, changes: dict[str, str]
) -> None:
    with pytest.raises(RefusedRecord) as caught:
        check_record(make_record(**changes), HERE, TAXONOMY)
    assert caught.value.reason == Reason.OPTION_LABEL


@pytest.mark.parametrize(
    ("changes", "field", "character"),
    [
        ({"question": "Is it <|image_pad|>?"}, "question", "<|image_pad|>"),
        ({"option_A": "</think>"}, "option_A", "</think>"),
        ({"question": "\u202eWhat?"}, "question", "U+202E"),
        ({"option_B": "a\x1bb", "gt_answer": "a\x1bb"}, "gt_answer", "U+001B"),
        ({"question": "What?\x1f"}, "question", "U+001F"),
        ({"question_id": "a\nb"}, "question_id", "U+000A"),
        ({"dataset": "a\tb"}, "dataset", "U+0009"),
        ({"image_path": "Images/\u200b.png"}, "image_path", "U+200B"),
        ({"question": "x" * 20_001}, "question", "20001 characters"),
    ],
)
def test_the_field_and_the_unsafe_characters_in_it_are_named(
    make_record: MakeRecord, changes: dict[str, Any], field: str, character: str
) -> None:
    with pytest.raises(RefusedRecord) as caught:
        check_record(make_record(**changes), HERE, TAXONOMY)
    assert caught.value.why.startswith(f"{field} ")
    assert character in caught.value.why


def test_newlines_and_tabs_in_questions_and_options_are_accepted(make_record: MakeRecord) -> None:
    record = check_record(
        make_record(question="First\r\nsecond:\n\tthird?", option_A="a\nb"), HERE, TAXONOMY
    )
    assert (record.question, record.options[0]) == ("First\r\nsecond:\n\tthird?", "a\nb")


@pytest.mark.parametrize("raw", [None, "text", 3, []])
def test_a_record_that_is_not_an_object_is_refused(raw: Any) -> None:
    with pytest.raises(RefusedRecord) as caught:
        check_record(raw, HERE, TAXONOMY)
    assert caught.value.reason == Reason.RECORD_FORM


@pytest.mark.parametrize(
    ("content", "what", "reason"),
    [
        (b'[{"dataset": "x"', "line 1 column 17", Reason.FILE_UNREADABLE),
        (b'[\n{"dataset": "x"},\n{"dat', "line 3 column 2", Reason.FILE_UNREADABLE),
        (b"[{}, ]", "line 1 column 6", Reason.FILE_UNREADABLE),
        (b"[{}] {}", "Extra data: line 1 column 6", Reason.FILE_UNREADABLE),
        (b"{} x", "Extra data: line 1 column 4", Reason.FILE_UNREADABLE),
        (b"[{}", "line 1 column 4", Reason.FILE_UNREADABLE),
        (b"", "", Reason.FILE_EMPTY),
        (b" \n", "line 2 column 1", Reason.FILE_UNREADABLE),
        (b"\xff\xfe\xfa", "byte 0xfa", Reason.FILE_ENCODING),
        (b'[{"x": "\xe4"}]', "byte 0xe4 in line 1", Reason.FILE_ENCODING),
        ("[]".encode("utf-32"), "UTF-32", Reason.FILE_ENCODING),
        (
            b'[{"x": "raw \n newline"}]',
            "Invalid control character at: line 1 column 13",
            Reason.FILE_UNREADABLE,
        ),
        (b"[" * 100_000, "nested too deeply", Reason.FILE_UNREADABLE),
        (b'[{"a":' * 100_000, "nested too deeply", Reason.FILE_UNREADABLE),
        (b"{}", "dict", Reason.FILE_FORM),
        (b"null", "NoneType", Reason.FILE_FORM),
        (b"1" * 10_000, "int", Reason.FILE_FORM),
    ],
)
def test_an_unreadable_file_is_one_row(
    make_record: MakeRecord, content: bytes, what: str, reason: Reason
) -> None:
    reading = read_record_files(
        [("Bad.json", content), ("Good.json", json.dumps([make_record()]).encode())], TAXONOMY
    )
    assert (reading.read, len(reading.records)) == (2, 1)
    (row,) = reading.rows
    assert row.where == RecordLocation("Bad.json")
    assert what in row.what
    assert row.reason == reason


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_accepted(make_record: MakeRecord, encoding: str) -> None:
    content = json.dumps([make_record(question="Größe?")], ensure_ascii=False).encode(encoding)
    (record,) = read_record_files([("a.json", content)], TAXONOMY).records
    assert record.question == "Größe?"


@pytest.mark.parametrize(
    ("field", "what", "reason"),
    [
        ('"question": "Another?"', "question", Reason.FIELD_DUPLICATE),
        ('"source": {"a": 1, "a": 1}', "a", Reason.FIELD_DUPLICATE),
        ('"x": NaN', "NaN", Reason.RECORD_VALUE),
        ('"x": [-Infinity]', "-Infinity", Reason.RECORD_VALUE),
        ('"x": 1e999', "1e999", Reason.RECORD_VALUE),
        (f'"x": {"9" * 5000}', "9" * 300, Reason.RECORD_VALUE),
        (f'"x": {"[" * 50}{"]" * 50}', "17 levels", Reason.RECORD_VALUE),
        (f'"x": {{"y": {"[" * 50}{"]" * 50}}}', "17 levels", Reason.RECORD_VALUE),
        (f'"x": "{"y" * 1_000_001}"', "characters", Reason.RECORD_VALUE),
        ('"x": "\\ud800"', "\\ud800", Reason.FIELD_ENCODING),
        ('"x": ["\\udfff"]', "\\udfff", Reason.FIELD_ENCODING),
        ('"\\ud800": 1', "\\ud800", Reason.FIELD_ENCODING),
    ],
)
def test_json_that_a_parser_would_silently_accept_is_refused(
    make_record: MakeRecord, field: str, what: str, reason: Reason
) -> None:
    good = json.dumps(make_record(question_id="good"))
    bad = f"{json.dumps(make_record(question_id='bad'))[:-1]}, {field}}}"
    reading = read_record_files([("a.json", f"[{bad},\n {good}]".encode())], TAXONOMY)
    assert [record.question_id for record in reading.records] == ["good"]
    (row,) = reading.rows
    assert (row.where, str(row.where)) == (
        RecordLocation("a.json", 0, "bad", 1),
        "a.json#0, line 1 (bad)",
    )
    assert what in row.what
    assert row.reason == reason


def test_further_fields_of_a_record_survive_writing_and_reading(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    raw = make_record(
        source={"list": [1, None, 0.5, {"deep": "\U0001f600"}]}, pages=10**300, note="\u2028"
    )
    (record,) = read_record_files([("a.json", json.dumps([raw]).encode())], TAXONOMY).records
    write_json_lines(tmp_path / "records.jsonl", [record.fields])
    assert next(iterate_records(tmp_path / "records.jsonl", "remedy", TAXONOMY)).fields == raw


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_location_names_the_line_in_a_file_of_several_lines(
    make_record: MakeRecord, end: str
) -> None:
    raws: list[Any] = [
        make_record(question_id="a"),
        make_record(question_id="b", gt_answer="?"),
        None,
        [],
    ]
    text = json.dumps(raws, indent=1)
    reading = read_record_files(
        [("a.json", text.replace("\n", end).encode()), ("b.json", json.dumps([None]).encode())],
        TAXONOMY,
    )
    lines = text.split("\n")
    begins = [
        number for number, line in enumerate(lines, start=1) if line in (" {", " null,", " []")
    ]
    assert str(reading.records[0].location) == f"a.json#0, line {begins[0]} (a)"
    assert [str(row.where) for row in reading.rows] == [
        f"a.json#1, line {begins[1]} (b)",
        f"a.json#2, line {begins[2]} (no question_id)",
        f"a.json#3, line {begins[3]} (no question_id)",
        "b.json#0 (no question_id)",
    ]


def test_the_row_of_a_refused_record_has_its_modality_as_written(make_record: MakeRecord) -> None:
    raw = make_record(gt_answer="x")
    del raw["modality_type"]
    reading = read_record_files(
        [("a.json", json.dumps([raw]).encode())], TAXONOMY, lambda image_path: "ct"
    )
    (row,) = reading.rows
    assert (row.reason, row.modality) == (Reason.ANSWER_NOT_OFFERED, None)


def test_of_two_records_with_one_id_the_first_by_file_name_is_kept(
    make_record: MakeRecord,
) -> None:
    first = json.dumps([make_record(question="First?")]).encode()
    second = json.dumps([make_record(question="Second?")]).encode()
    reading = read_record_files([("b.json", second), ("a.json", first)], TAXONOMY)
    assert [record.question for record in reading.records] == ["First?"]
    (row,) = reading.rows
    assert row == Row(
        where=RecordLocation("b.json", 0, "Chest CT Scan_00000"),
        what="Chest CT Scan_00000",
        why=row.why,
        reason=Reason.DUPLICATE_ID,
        dataset="Chest CT Scan",
        modality=MODALITIES["ct"],
    )
    assert "a.json#0 (Chest CT Scan_00000)" in row.why


def test_read_is_kept_plus_quarantined_over_many_kinds(make_record: MakeRecord) -> None:
    raws: list[Any] = [make_record(question_id=str(number)) for number in range(5)]
    raws += [make_record(question_id="5", gt_answer=None), None, make_record(question_id="0"), {}]
    reading = read_record_files([("a.json", json.dumps(raws).encode())], TAXONOMY)
    assert (reading.read, len(reading.records), len(reading.rows)) == (9, 5, 4)
    assert [str(row.where) for row in reading.rows] == [
        "a.json#5 (5)",
        "a.json#6 (no question_id)",
        "a.json#7 (0)",
        "a.json#8 (no question_id)",
    ]


def test_a_long_value_is_truncated_in_its_row(make_record: MakeRecord) -> None:
    with pytest.raises(RefusedRecord) as caught:
        check_record(make_record(gt_answer="x" * 1_000_000), HERE, TAXONOMY)
    assert caught.value.what.endswith("x... (1000000 characters)")
    assert len(caught.value.what) < 400


def test_ten_thousand_records_are_read_in_two_seconds(make_record: MakeRecord) -> None:
    content = json.dumps(
        [make_record(question_id=str(number)) for number in range(10_000)]
    ).encode()
    start = time.process_time()
    assert len(read_record_files([("a.json", content)], TAXONOMY).records) == 10_000
    assert time.process_time() - start < 2


def test_records_of_an_earlier_stage_are_read_back_with_their_lines(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    path = tmp_path / "records.jsonl"
    records = [
        make_record(question_id=f"q{each}", more={"list": [each, {}], "text": "\u2028\n}"})
        for each in range(3)
    ]
    write_json_lines(path, records)
    locations = [RecordLocation(path.as_posix(), None, f"q{each}", each + 1) for each in range(3)]
    iterated = list(iterate_records(path, "remedy", TAXONOMY))
    for read in (iterated, read_record_lines([path], "remedy", TAXONOMY).records):
        assert [record.fields for record in read] == records
        assert [record.location for record in read] == locations


def test_iterating_holds_one_record_in_memory(tmp_path: Path, make_record: MakeRecord) -> None:
    path = tmp_path / "records.jsonl"
    write_json_lines(path, (make_record(question_id=f"q{each}") for each in range(3000)))
    tracemalloc.start()
    assert sum(1 for _ in iterate_records(path, "remedy", TAXONOMY)) == 3000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 5


def test_an_unusable_record_of_an_earlier_stage_is_a_row_or_an_error_with_its_line(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    write_json_lines(
        paths[0], [make_record(question_id="q1"), make_record(question_id="q2", gt_answer="x")]
    )
    write_json_lines(paths[1], [make_record(question_id="q1")])
    reading = read_record_lines(reversed(paths), "remedy", TAXONOMY)
    assert (reading.read, [record.question_id for record in reading.records]) == (3, ["q1"])
    assert [(row.where.file, row.where.line, row.reason) for row in reading.rows] == [
        (paths[0].as_posix(), 2, Reason.ANSWER_NOT_OFFERED),
        (paths[1].as_posix(), 1, Reason.DUPLICATE_ID),
    ]
    with pytest.raises(InputError, match=r"a\.jsonl, line 2 .*'x'.*remedy"):
        list(iterate_records(paths[0], "remedy", TAXONOMY))
