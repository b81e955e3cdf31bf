"""A patient's context in each form that is converted, and its refusals, which quote nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.corpus.dataset.problems import format_problem, format_solution
from stages.corpus.formats.fix import fix_sheet
from stages.corpus.records.context import context_of
from tests.corpus.formats.sources import (
    ROW,
    png,
    records,
    refusals,
    run,
    write_book,
    write_csv,
    write_images,
)

NAME = "Zephyrine"
WORDS = {"modality": "CT", "question_type": "Disease Diagnosis"}
TOLD = "Age: 54. Sex: female. History: smoker."

Write = Callable[[Path, list[dict[str, Any]]], Path]


def sheet_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a sheet; `row`: its context under the names of fields."""
    names = {"age": "Patient age", "sex": "gender", "history": "Clinical history"}
    return ROW | {names.get(name, name): value for name, value in row.items()}


def write_sheet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return write_csv(folder / "w.tsv", map(sheet_of, rows), "\t")


def write_workbook(folder: Path, rows: list[dict[str, Any]]) -> Path:
    return write_book(folder / "w.xlsx", {"Q": map(sheet_of, rows)})


def write_lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [json.dumps(sheet_of(row)) for row in rows]
    (folder / "w.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "w.jsonl"


def write_med_r1(folder: Path, rows: list[dict[str, Any]]) -> Path:
    item = {
        "image": ROW["image"],
        "problem": format_problem("What is seen?", ["Cyst", "Nodule"]),
        "solution": format_solution("B"),
    }
    (folder / "w.json").write_text(json.dumps([item | row for row in rows]), encoding="utf-8")
    return folder / "w.json"


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    question = {"question": "What?", "options": ["Cyst", "Nodule"], "answer": "Cyst"}
    image = {"image": {"bytes": png(0), "path": None}}
    path = folder / "w.parquet"
    pq.write_table(pa.Table.from_pylist([image | question | row for row in rows]), path)
    return path


def write_vlmevalkit(folder: Path, rows: list[dict[str, Any]]) -> Path:
    question = {"question": "What?", "A": "Cyst", "B": "Nodule", "answer": "A"}
    full = [
        {"index": number, "image": ROW["image"], **question, **row}
        for number, row in enumerate(rows)
    ]
    return write_csv(folder / "v.tsv", full, "\t")


FORMS: dict[str, Write] = {
    "sheet": write_sheet,
    "workbook": write_workbook,
    "lines": write_lines,
    "med-r1": write_med_r1,
    "parquet": write_parquet,
    "vlmevalkit": write_vlmevalkit,
}


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    write_images(tmp_path / "ward", *(f"scans/{name}.png" for name in "abcdefghijkl"))
    return tmp_path / "ward"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_keeps_a_context_and_tells_questions_apart_by_it(
    ward: Path, tmp_path: Path, form: str
) -> None:
    told = {"age": "54", "sex": "F", "history": "smoker"}
    rows = [told, told | {"age": "55"}, dict.fromkeys(told, "")]
    run(FORMS[form](ward, rows), tmp_path / "out", **WORDS)
    found = records(tmp_path / "out")
    assert sorted(str(context_of(each)) for each in found) == [
        TOLD,
        TOLD.replace("54", "55"),
        "None",
    ]
    assert len({each["question_id"] for each in found}) == 3


@pytest.mark.parametrize("form", FORMS)
def test_a_source_without_context_gives_the_records_of_one_with_empty_cells(
    ward: Path, tmp_path: Path, form: str
) -> None:
    run(FORMS[form](ward, [{}]), tmp_path / "without", **WORDS)
    run(FORMS[form](ward, [{"age": "", "context": ""}]), tmp_path / "empty", **WORDS)
    assert records(tmp_path / "without") == records(tmp_path / "empty")


@pytest.mark.parametrize("form", FORMS)
def test_an_identifier_is_refused_with_its_place_and_not_quoted(
    ward: Path, tmp_path: Path, form: str
) -> None:
    rows = [{"history": "smoker"}, {"history": f"cough, Mr. {NAME}"}]
    (refusal,) = refusals(run(FORMS[form](ward, rows), tmp_path / "out", **WORDS))
    assert "history contains what looks like a name, at character 8" in refusal
    assert NAME not in refusal


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("lines", [NAME]),
        ("lines", {NAME: 1}),
        ("med-r1", [NAME]),
        ("parquet", [NAME]),
        ("parquet", {"name": NAME}),
        ("workbook", date(1954, 3, 5)),
    ],
)
def test_a_value_that_is_no_text_is_refused_and_not_quoted(
    ward: Path, tmp_path: Path, form: str, value: Any
) -> None:
    rows: list[dict[str, Any]] = [{"history": value}]
    source = FORMS[form](ward, rows)
    if form == "parquet":
        source.rename(ward / "bad.parquet")
        FORMS[form](ward, [{"history": "smoker"}])
        source = ward
    else:
        source = FORMS[form](ward, [*rows, {"history": "smoker"}])
    (refusal,) = refusals(run(source, tmp_path / "out", **WORDS))
    assert "'history'" in refusal
    assert NAME not in refusal
    assert "1954" not in refusal


def test_rows_that_cannot_be_read_are_not_quoted(ward: Path, tmp_path: Path) -> None:
    source = write_lines(ward, [{"history": "smoker"}])
    text = source.read_text(encoding="utf-8")
    source.write_text(f'{text}\n{{"Clinical history": "Mr. {NAME}"\n', encoding="utf-8")
    (refusal,) = refusals(run(source, tmp_path / "lines", **WORDS))
    assert "not one JSON object" in refusal
    assert NAME not in refusal
    sheet = write_sheet(ward, [{"history": "smoker"}])
    text = sheet.read_text(encoding="utf-8")
    sheet.write_text(f"{text}{NAME}\t{NAME}\n", encoding="utf-8")
    (refusal,) = refusals(run(sheet, tmp_path / "sheet", **WORDS))
    assert "2 cells" in refusal
    assert NAME not in refusal
    book = write_book(ward / "x.xlsx", {"Q": [sheet_of({"history": "smoker"})] * 2})
    add_cell(book, NAME)
    (refusal,) = refusals(run(book, tmp_path / "book", **WORDS))
    assert "a column without a name" in refusal
    assert NAME not in refusal


def add_cell(book: Path, text: str) -> None:
    """Write a text to the right of the last column of row 2."""
    opened = openpyxl.load_workbook(book)
    worksheet = opened.worksheets[0]
    worksheet.cell(2, worksheet.max_column + 1, text)
    opened.save(book)


def test_a_corrected_copy_keeps_the_cells_of_a_context(ward: Path) -> None:
    source = write_csv(
        ward / "w.csv", [sheet_of({"history": f"Mr. {NAME}"}) | {"answer": "nodule."}]
    )
    (change,) = fix_sheet(source, ward / "fixed.csv")
    assert NAME not in str(change)
    assert f"Mr. {NAME}" in (ward / "fixed.csv").read_text(encoding="utf-8")


def test_labels_have_the_context_of_their_row_but_for_what_is_asked(
    ward: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "image": f"scans/{name}.png",
            "label": ("cyst", "mass")[number % 2],
            "Gender": ("F", "M")[number // 2 % 2],
            "age": 20 + number,
            "modality": "CT",
        }
        for number, name in enumerate("abcdefghijkl")
    ]
    sheet = write_csv(ward / "labels.csv", rows)
    run(sheet, tmp_path / "out", labels=("label", "Gender"), accept_blind=True)
    found = records(tmp_path / "out")
    assert len(found) == 24
    assert {context_of(each) for each in found} == {f"Age: {20 + number}." for number in range(12)}
    run(sheet, tmp_path / "one", labels=("label",), accept_blind=True)
    assert {"Sex: female" in str(context_of(each)) for each in records(tmp_path / "one")} == {
        True,
        False,
    }


def test_answers_that_differ_with_the_context_contradict_nothing(
    ward: Path, tmp_path: Path
) -> None:
    rows = [
        sheet_of({"history": "smoker"}) | {"answer": "A"},
        sheet_of({"history": "diabetic"}) | {"answer": "B"},
    ]
    conversion = run(write_csv(ward / "w.csv", rows), tmp_path / "out")
    assert conversion.questions == 2
    same = [rows[0], rows[0] | {"answer": "B"}, rows[1]]
    conversion = run(write_csv(ward / "w.csv", same), tmp_path / "same")
    assert conversion.questions == 1
