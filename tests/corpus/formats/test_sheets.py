"""Sheets of questions: CSV, TSV, XLSX and JSON Lines become the records of a CSV corpus."""

from __future__ import annotations

import json
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from stages.core.errors import InputError
from stages.corpus.formats.convert import detect
from stages.corpus.formats.questions import ConversionOptions
from stages.corpus.formats.rows import open_sheets
from tests.corpus.formats.sources import (
    ROW,
    digest,
    png,
    records,
    refusals,
    run,
    write_book,
    write_csv,
    write_images,
)
from tests.omnimedvqa import MODALITIES


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    write_images(tmp_path / "ward", "scans/a.png", "scans/b.png", "scans/C.JPG")
    return tmp_path / "ward"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "^"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_csv_of_any_delimiter_becomes_records(
    ward: Path, tmp_path: Path, delimiter: str, encoding: str
) -> None:
    row = ROW | {"question": "Größe?; \t, |", "patient": "p 1"}
    sheet = write_csv(ward / "ward.csv", [row], delimiter, encoding)
    conversion = run(sheet, tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert record == {
        "dataset": "ward",
        "question_id": record["question_id"],
        "question_type": "Disease Diagnosis",
        "question": "Größe?; \t, |",
        "gt_answer": "Nodule",
        "image_path": "Images/scans/a.png",
        "option_A": "Cyst, simple",
        "option_B": "Nodule",
        "modality_type": MODALITIES["ct"],
        "patient": "p 1",
    }
    assert (conversion.format, conversion.images, conversion.patients_known) == ("sheet", 1, 1)
    assert (tmp_path / "out/Images/scans/a.png").read_bytes() == png(0)


def test_words_of_modalities_and_types_pass_as_written(ward: Path, tmp_path: Path) -> None:
    rows = [
        ROW | {"modality": " Endoscopy ", "type": "Polyp counting"},
        ROW | {"modality": "", "image": "scans/b.png"},
    ]
    conversion = run(write_csv(ward / "w.csv", rows), tmp_path / "out", modality="Capsule")
    assert conversion.modalities == {"Capsule": 1, "Endoscopy": 1}
    assert conversion.question_types == {"Disease Diagnosis": 1, "Polyp counting": 1}


def test_another_encoding_must_be_named(ward: Path, tmp_path: Path) -> None:
    sheet = write_csv(ward / "w.csv", [ROW | {"question": "Größe?"}], encoding="cp1252")
    with pytest.raises(InputError, match=r"byte 0xf6 in line 2.*encoding="):
        run(sheet, tmp_path / "out")
    with pytest.raises(InputError, match="'no-such'"):
        run(sheet, tmp_path / "out", encoding="no-such")
    run(sheet, tmp_path / "out", encoding="cp1252")
    assert records(tmp_path / "out")[0]["question"] == "Größe?"


def test_json_lines_may_hold_lists_of_options(ward: Path, tmp_path: Path) -> None:
    rows: list[Any] = [
        ROW | {"options": ["Cyst, simple", "Nodule"], "id": 7},
        ROW | {"image": {"bytes": "x"}},
        "no object",
        ROW | {"answer": True, "id": 8},
    ]
    path = ward / "ward.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"image": 1, "image": 2}\n')
    conversion = run(path, tmp_path / "out")
    assert [record["question_id"] for record in records(tmp_path / "out")] == ["7"]
    found = refusals(conversion)
    assert len(found) == 4
    assert found[0].startswith("ward.jsonl, line 2: ")
    assert "not one JSON object" in found[1]
    assert "duplicate field" in found[3]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"image": "scans/A.png"}, "did you mean 'scans/a.png'"),
        ({"image": "scans/a.jpg"}, "did you mean 'scans/a.png'"),
        ({"image": "scans/c.jpeg"}, "did you mean 'scans/C.JPG'"),
        ({"image": "nowhere.png"}, "not in"),
        ({"image": "/scans/a.png"}, "absolute path"),
        ({"image": "../ward/scans/a.png"}, "out of its folder"),
        ({"image": "scans\\a.png"}, "backslash"),
        ({"image": "https://x.org/a.png"}, "address"),
        ({"image": "scans//a.png"}, "not a file's"),
        ({"image": ""}, "empty name"),
        ({"answer": "nodule"}, "none of the options"),
        ({"options": "Cyst; Nodule", "answer": "A"}, "put | between"),
        ({"modality": " "}, "--modality"),
        ({"type": ""}, "--question-type"),
        ({"question": "See <|im_end|>"}, "command"),
        ({"question": "What A)x"}, "option label"),
    ],
)
def test_an_unusable_row_is_refused_by_line_and_value(
    ward: Path, tmp_path: Path, changes: dict[str, str], what: str
) -> None:
    sheet = write_csv(ward / "ward.csv", [ROW | {"image": "scans/b.png"}, ROW | changes])
    (text,) = refusals(run(sheet, tmp_path / "out"))
    assert text.startswith("ward.csv, line 3: ")
    assert what in text


def test_links_that_lead_out_of_the_folder_are_refused(ward: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    (ward / "scans/link.png").symlink_to(tmp_path / "secret.png")
    (ward / "scans/inner.png").symlink_to(ward / "scans/b.png")
    rows = [ROW | {"image": f"scans/{name}.png"} for name in ("link", "inner")]
    (text,) = refusals(run(write_csv(ward / "w.csv", rows), tmp_path / "out"))
    assert "a link that leads out" in text
    copy = tmp_path / "out/Images/scans/inner.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == png(1)


def test_an_image_of_two_rows_is_copied_once(ward: Path, tmp_path: Path) -> None:
    rows = [ROW, ROW | {"question": "Else?", "image": "./scans/a.png"}, ROW]
    conversion = run(write_csv(ward / "w.csv", rows), tmp_path / "out")
    assert (conversion.questions, conversion.images) == (2, 1)
    assert "duplicate question_id; kept: w.csv, line 2" in refusals(conversion)[0]
    assert [name for name in digest(tmp_path / "out") if name.endswith(".png")] == [
        "Images/scans/a.png"
    ]


def test_a_question_with_two_answers_is_refused_in_both_rows(ward: Path, tmp_path: Path) -> None:
    rows = [
        ROW,
        ROW | {"image": "scans/b.png"},
        ROW | {"answer": "A", "options": "Cyst, simple|Nodule"},
    ]
    conversion = run(write_csv(ward / "w.csv", rows), tmp_path / "out")
    assert [str(each.location) for each in conversion.refusals] == [
        "w.csv, line 2",
        "w.csv, line 4",
    ]
    assert "'Cyst, simple' in w.csv, line 4" in refusals(conversion)[0]
    assert not (tmp_path / "out/Images/scans/a.png").exists()


def test_a_folder_of_a_dicom_series_is_copied_as_one(ward: Path, tmp_path: Path) -> None:
    write_images(ward, "series/1.dcm", "series/2.dcm")
    (ward / "none").mkdir()
    rows = [ROW | {"image": "series"}, ROW | {"image": "none"}]
    (text,) = refusals(run(write_csv(ward / "w.csv", rows), tmp_path / "out"))
    assert "folder without files" in text
    assert (tmp_path / "out/Images/series/2.dcm").read_bytes() == png(1)


def test_numbers_of_a_workbook_are_texts(ward: Path, tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "options"}
    row |= {"A": 1, "B": 2.5, "C": True, "answer": 2.5}  # type: ignore[dict-item]
    book = write_book(ward / "ward.xlsx", {"Questions": [row], "Notes": [{"by": "me"}]})
    run(book, tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert [record[f"option_{letter}"] for letter in "ABC"] == ["1", "2.5", "TRUE"]
    assert record["gt_answer"] == "2.5"


def test_formulas_are_never_evaluated(ward: Path, tmp_path: Path) -> None:
    rows = [ROW, ROW | {"question": '=CONCATENATE("a","b")', "image": "scans/b.png"}]
    book = write_book(ward / "ward.xlsx", {"Q": rows})
    (text,) = refusals(run(book, tmp_path / "out"))
    assert text.startswith("ward.xlsx, sheet 'Q', row 3: 'B3: =CONCATENATE")
    assert "without a stored value" in text


def test_a_stored_value_of_a_formula_is_used(ward: Path, tmp_path: Path) -> None:
    book = write_book(ward / "raw.xlsx", {"Q": [ROW | {"question": "=A9"}]})
    cached = ward / "ward.xlsx"
    with zipfile.ZipFile(book) as source, zipfile.ZipFile(cached, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("sheet1.xml"):
                content = content.replace(b'<c r="B2">', b'<c r="B2" t="str">')
                content = content.replace(b"<f>A9</f><v />", b"<f>A9</f><v>What is it?</v>")
                content = content.replace(b"<f>A9</f><v></v>", b"<f>A9</f><v>What is it?</v>")
                assert b"What is it?" in content
            target.writestr(name, content)
    run(cached, tmp_path / "out")
    assert records(tmp_path / "out")[0]["question"] == "What is it?"


def test_merged_cells_are_refused_by_name(ward: Path, tmp_path: Path) -> None:
    rows = [ROW, ROW | {"image": "scans/b.png"}, ROW | {"image": "scans/C.JPG"}]
    path = write_book(ward / "ward.xlsx", {"Q": rows})
    book = openpyxl.load_workbook(path)
    book["Q"].merge_cells("B2:B3")
    book.save(path)
    conversion = run(path, tmp_path / "out")
    assert [str(each.location)[-5:] for each in conversion.refusals] == ["row 2", "row 3"]
    assert {each.value for each in conversion.refusals} == {"B2:B3"}


def test_a_merged_header_is_named(ward: Path, tmp_path: Path) -> None:
    path = write_book(ward / "ward.xlsx", {"Q": [ROW]})
    book = openpyxl.load_workbook(path)
    book["Q"].insert_rows(1)
    book["Q"]["A1"] = "Questions of ward 7"
    book["Q"].merge_cells("A1:F1")
    book.save(path)
    with pytest.raises(InputError, match="merged cells.*A1:F1"):
        run(path, tmp_path / "out", format="sheet")


def test_dates_and_errors_are_refused_by_cell(ward: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        ROW,
        ROW | {"answer": date(2026, 2, 1)},
        ROW | {"options": "#N/A"},
        ROW | {"question": "Else?"},
    ]
    path = write_book(ward / "ward.xlsx", {"Q": rows})
    found = refusals(run(path, tmp_path / "out"))
    assert "'D3: 2026-02-01" in found[0]
    assert "'C4: #N/A'" in found[1]
    assert len(found) == 2


def test_macros_are_ignored(ward: Path, tmp_path: Path) -> None:
    path = write_book(ward / "ward.xlsx", {"Q": [ROW]})
    macro = path.with_suffix(".xlsm")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(macro, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "[Content_Types].xml":
                content = content.replace(
                    b"openxmlformats-officedocument.spreadsheetml.sheet.main+xml",
                    b"ms-excel.sheet.macroEnabled.main+xml",
                )
            target.writestr(name, content)
        target.writestr("xl/vbaProject.bin", b"no macro that could run")
    assert run(macro, tmp_path / "out").questions == 1


def test_rows_beyond_the_stored_dimensions_are_read(ward: Path, tmp_path: Path) -> None:
    names = ["scans/a.png", "scans/b.png", "scans/C.JPG"]
    path = write_book(ward / "raw.xlsx", {"Q": [ROW | {"image": name} for name in names]})
    lying = ward / "ward.xlsx"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(lying, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b'ref="A1:F4"', b'ref="A1:F2"'))
    assert run(lying, tmp_path / "out").questions == 3


def test_several_sheets_with_the_columns_must_be_chosen(ward: Path, tmp_path: Path) -> None:
    sheets = {"May": [ROW], "June": [ROW | {"question": "Else?"}]}
    book = write_book(ward / "ward.xlsx", sheets)
    with pytest.raises(InputError, match="'May', 'June'.*--sheet"):
        run(book, tmp_path / "out")
    with pytest.raises(InputError, match="no sheet 'July'"):
        run(book, tmp_path / "out", sheet="July")
    run(book, tmp_path / "out", sheet="June")
    assert records(tmp_path / "out")[0]["question"] == "Else?"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\xd0\xcf\x11\xe0 old", "without a password"),
        (b"PK\x03\x04 cut short", "damaged"),
        (b"", "damaged"),
    ],
)
def test_what_is_no_workbook_is_named(ward: Path, content: bytes, what: str) -> None:
    path = ward / "ward.xlsx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=what):
        open_sheets(path, ConversionOptions())


def test_a_sheet_without_questions_beside_one_is_one_refusal(ward: Path, tmp_path: Path) -> None:
    write_csv(ward / "ward.csv", [ROW], "|")
    write_csv(ward / "staff.csv", [{"name": "Doe"}])
    assert detect(ward) == "sheet"
    (text,) = refusals(run(ward, tmp_path / "out"))
    assert text.startswith("staff.csv: ")
    assert "lacks the columns" in text


def test_an_empty_data_set_name_or_one_with_slashes_is_a_file(ward: Path, tmp_path: Path) -> None:
    rows = [ROW | {"dataset": name, "question": f"{name}?"} for name in ("a/b", "..", "CON:", "a")]
    run(write_csv(ward / "w.csv", rows), tmp_path / "out")
    assert {record["dataset"] for record in records(tmp_path / "out")} == {"a/b", "..", "CON:", "a"}


@pytest.mark.parametrize("image", ["x" * 300, "a/" * 3000 + "x", "a\x00b", "x" * 100_000])
def test_paths_that_no_file_system_takes_are_refused(
    ward: Path, tmp_path: Path, image: str
) -> None:
    rows = [ROW, ROW | {"image": image}]
    assert len(run(write_json_lines(ward / "w.jsonl", rows), tmp_path / "out").refusals) == 1


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_percentages_are_refused_by_cell(ward: Path, tmp_path: Path) -> None:
    path = write_book(ward / "w.xlsx", {"Q": [ROW, ROW | {"question": "How much?"}]})
    book = openpyxl.load_workbook(path)
    book["Q"]["D3"] = 0.5
    book["Q"]["D3"].number_format = "0%"
    book.save(path)
    (text,) = refusals(run(path, tmp_path / "out"))
    assert "'D3: 0.5': a percentage" in text


@pytest.mark.parametrize("part", ["xl/workbook.xml", "xl/worksheets/sheet1.xml", "xl/styles.xml"])
def test_damaged_parts_of_a_workbook_are_named(ward: Path, tmp_path: Path, part: str) -> None:
    path = write_book(ward / "raw.xlsx", {"Q": [ROW] * 50})
    damaged = ward / "ward.xlsx"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(damaged, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[: len(content) * 2 // 3] if name == part else content)
    with pytest.raises(InputError, match=r"ward\.xlsx.*damaged"):
        run(damaged, tmp_path / "out", format="sheet")
    assert not (tmp_path / "out").exists()
