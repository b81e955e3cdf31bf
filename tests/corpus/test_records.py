"""Records: what is kept as it stands, and the reason for each kind of refusal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from stages.corpus.modalities import MODALITIES, QUESTION_TYPES
from stages.corpus.quarantine import Place, Row
from stages.corpus.reasons import Reason
from stages.corpus.records import RefusedRecord, check_record, read_kept, read_record_files
from stages.errors import InputError
from tests.conftest import MakeRecord

HERE = Place("here.json", 0, "x")


@pytest.mark.parametrize("slug", MODALITIES)
@pytest.mark.parametrize("kind", QUESTION_TYPES)
def test_every_modality_and_type_is_known_by_its_literal(make_record: MakeRecord, slug: str, kind: str) -> None:
    record = check_record(make_record(modality_type=MODALITIES[slug], question_type=QUESTION_TYPES[kind]), HERE)
    assert (record.modality, record.question_type) == (slug, kind)


def test_a_record_keeps_all_it_held_and_gets_the_letter_of_its_gold(make_record: MakeRecord) -> None:
    raw = make_record(option_C="Normal", gt_answer=" Normal ", question=" What? ", source="kept")
    record = check_record(raw, HERE)
    assert record.fields == raw
    assert (record.question, record.options, record.gold) == ("What?", ("Cyst", "Nodule", "Normal"), "C")


@pytest.mark.parametrize(
    ("changes", "what", "why"),
    [
        ({"gt_answer": None}, "gt_answer", "gt_answer is missing"),
        ({"modality_type": None, "modality": "CT"}, "modality_type", "modality_type is missing"),
        ({"question": ""}, "", "question is empty"),
        ({"question": " \n"}, " \n", "question is empty"),
        ({"question_id": 7}, "7", "question_id is not a string"),
        ({"option_B": ["x"]}, "['x']", "option_B is not a string"),
        ({"option_B": ""}, "", "option_B is empty"),
        ({"question": "\ud800"}, "\\ud800", "question is not Unicode text"),
        ({"gt_answer": "nodule"}, "nodule", "gt_answer is none of the options ['Cyst', 'Nodule']"),
        ({"gt_answer": "B"}, "B", "gt_answer is none of the options ['Cyst', 'Nodule']"),
        ({"option_A": "Nodule "}, "['Nodule', 'Nodule']", "two options are the same"),
        ({"option_A": None, "option_B": None}, "[]", "fewer than two options"),
        ({"option_A": None}, "['option_B']", "fewer than two options"),
        ({"option_B": None, "option_C": "Nodule"}, "['option_A', 'option_C']", "a gap in the options: option_B is missing"),
        ({"option_C": "x", "option_D": "y", "option_E": "z"}, "['option_E']", "options beyond option_D"),
        ({"modality_type": "ct"}, "ct", "unknown modality_type"),
        ({"modality_type": "OCT (Optical Coherence Tomography)"}, "OCT (Optical Coherence Tomography)", "unknown modality_type"),
        ({"question_type": "disease diagnosis"}, "disease diagnosis", "unknown question_type"),
        ({"image_path": "/Images/a.png"}, "/Images/a.png", "image_path is an absolute path"),
        ({"image_path": "Images/../a.png"}, "Images/../a.png", "image_path is a path that leads out of its folder"),
        ({"image_path": "Images\\a.png"}, "Images\\a.png", "image_path is a backslash in its path"),
        ({"image_path": "Pictures/a.png"}, "Pictures/a.png", "image_path is not a file under Images/"),
        ({"image_path": "Images/"}, "Images/", "image_path is not a file under Images/"),
        ({"image_path": "Images//a.png"}, "Images//a.png", "image_path is not a file under Images/"),
        ({"image_path": f"Images/{'ö' * 130}.png"}, f"Images/{'ö' * 130}.png", "image_path has a name longer than 240 bytes"),
    ],
)
def test_a_bad_record_is_refused_with_value_and_reason(make_record: MakeRecord, changes: dict[str, Any], what: str, why: str) -> None:
    with pytest.raises(RefusedRecord) as caught:
        check_record(make_record(**changes), HERE)
    assert (caught.value.what, caught.value.why) == (what, why)


@pytest.mark.parametrize("changes", [{"question": "Is A) right?"}, {"option_A": "Cyst, B) or more"}])
def test_a_text_the_published_form_cannot_carry_is_refused(make_record: MakeRecord, changes: dict[str, str]) -> None:
    with pytest.raises(RefusedRecord, match="cannot be told from the options"):
        check_record(make_record(**changes), HERE)


@pytest.mark.parametrize("raw", [None, "text", 3, []])
def test_what_is_no_object_is_refused(raw: Any) -> None:
    with pytest.raises(RefusedRecord, match="not an object"):
        check_record(raw, HERE)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'[{"dataset": "x"', "not a JSON file"),
        (b"", "not a JSON file"),
        (b"\xff\xfe\xfa", "not a JSON file"),
        (b'[{"x": NaN}]', "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b"{}", "not a JSON list"),
        (b"null", "not a JSON list"),
    ],
)
def test_a_bad_file_is_one_row(make_record: MakeRecord, content: bytes, why: str) -> None:
    reading = read_record_files([("Bad.json", content), ("Good.json", json.dumps([make_record()]).encode())])
    assert (reading.read, len(reading.records)) == (2, 1)
    (row,) = reading.rows
    assert row.where == Place("Bad.json")
    assert why in row.why


def test_of_two_records_with_one_id_the_first_in_the_order_of_names_is_kept(make_record: MakeRecord) -> None:
    first, second = make_record(question="First?"), make_record(question="Second?")
    reading = read_record_files([("b.json", json.dumps([second]).encode()), ("a.json", json.dumps([first]).encode())])
    assert [record.question for record in reading.records] == ["First?"]
    assert reading.rows == [
        Row(
            Place("b.json", 0, "Chest CT Scan_00000"),
            "Chest CT Scan_00000",
            "question_id stands twice; kept: a.json#0 (Chest CT Scan_00000)",
            Reason.DUPLICATE_ID,
            "Chest CT Scan",
            MODALITIES["ct"],
        )
    ]


def test_read_is_kept_plus_quarantined_over_many_kinds(make_record: MakeRecord) -> None:
    found: list[Any] = [make_record(question_id=str(number)) for number in range(5)]
    found += [make_record(question_id="5", gt_answer=None), None, make_record(question_id="0"), {}]
    reading = read_record_files([("a.json", json.dumps(found).encode())])
    assert (reading.read, len(reading.records), len(reading.rows)) == (9, 5, 4)
    assert [str(row.where) for row in reading.rows] == [
        "a.json#5 (5)",
        "a.json#6 (no question_id)",
        "a.json#7 (0)",
        "a.json#8 (no question_id)",
    ]


def test_a_long_value_is_cut_in_its_row(make_record: MakeRecord) -> None:
    with pytest.raises(RefusedRecord) as caught:
        check_record(make_record(gt_answer="x" * 1_000_000), HERE)
    assert caught.value.what.endswith("x... (1000000 characters)")
    assert len(caught.value.what) < 400


def test_ten_thousand_records_take_about_a_second_at_most(make_record: MakeRecord) -> None:
    content = json.dumps([make_record(question_id=str(number)) for number in range(10_000)]).encode()
    start = time.process_time()
    assert len(read_record_files([("a.json", content)]).records) == 10_000
    assert time.process_time() - start < 2


def test_kept_records_are_read_back_and_a_bad_edit_is_named(tmp_path: Path, make_record: MakeRecord) -> None:
    path = tmp_path / "records.json"
    path.write_text(json.dumps([make_record()]), encoding="utf-8")
    assert read_kept(path, "remedy")[0].fields == make_record()
    path.write_text(json.dumps([make_record(gt_answer="x")]), encoding="utf-8")
    with pytest.raises(InputError, match=r"records\.json was changed by hand: 'x': gt_answer is none.*remedy"):
        read_kept(path, "remedy")
    with pytest.raises(InputError, match=r"none\.json is missing: remedy"):
        read_kept(tmp_path / "none.json", "remedy")
