"""Sheets are corrected where one reading fits, and every change is listed."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import openpyxl
import pytest

from stages.core.errors import InputError
from stages.corpus.formats.fix import CellChange, fix_sheet
from tests.corpus.formats.sources import ROW, run, write_book, write_csv, write_images


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    write_images(tmp_path / "ward", "scans/a.png", "scans/B.JPG", "two/c.png", "two/C.PNG")
    return tmp_path / "ward"


def fix(path: Path) -> tuple[list[dict[str, str]], list[CellChange]]:
    out = path.with_name("fixed.csv")
    changes = fix_sheet(path, out)
    with out.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle)), changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"answer": "nodule."}, {"answer": "Nodule"}),
        ({"answer": "(b)"}, {"answer": "Nodule"}),
        ({"answer": "Option B."}, {"answer": "Nodule"}),
        ({"answer": "B) nodule"}, {"answer": "Nodule"}),
        ({"answer": " cyst,  SIMPLE "}, {"answer": "Cyst, simple"}),
        ({"options": "Cyst; Nodule; Mass"}, {"options": "Cyst|Nodule|Mass"}),
        ({"options": "Cyst / Nodule"}, {"options": "Cyst|Nodule"}),
        ({"options": "Nodule, Cyst", "answer": "b"}, {"options": "Nodule|Cyst"}),
        ({"options": "Cyst, simple; Nodule"}, {"options": "Cyst, simple|Nodule"}),
        ({"options": "A. Cyst|B. Nodule"}, {"options": "Cyst|Nodule"}),
        (
            {"options": "(A) Cyst; (B) Nodule", "answer": "b)"},
            {"options": "Cyst|Nodule", "answer": "Nodule"},
        ),
        ({"options": "['Cyst', 'Nodule']"}, {"options": "Cyst|Nodule"}),
        ({"options": "['a|b', 'Nodule']"}, {"options": '["a|b", "Nodule"]'}),
        ({"image": "scans\\a.png"}, {"image": "scans/a.png"}),
        ({"image": "Scans/A.PNG"}, {"image": "scans/a.png"}),
        ({"image": "scans/b.jpeg"}, {"image": "scans/B.JPG"}),
        ({"image": ".\\scans\\b.png"}, {"image": "scans/B.JPG"}),
        ({}, {}),
        ({"answer": "B"}, {}),
    ],
)
def test_what_can_be_meant_in_one_way_is_corrected(
    ward: Path, tmp_path: Path, changes: dict[str, str], expected: dict[str, str]
) -> None:
    row = ROW | changes
    (fixed,), listed = fix(write_csv(ward / "ward.csv", [row], ";"))
    assert fixed == row | expected
    assert {each.column: (each.row, each.before, each.after) for each in listed} == {
        name: (2, row[name], text) for name, text in expected.items()
    }
    assert run(ward / "fixed.csv", tmp_path / "out").questions == 1


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"options": "Cyst, Nodule; Mass", "answer": "B"}, "options"),
        ({"options": "Cyst; Nodule / Nodule; x", "answer": "A"}, "options"),
        ({"options": "Cyst"}, "options"),
        ({"options": "A) Cyst|Nodule"}, "options"),
        ({"options": '["Cyst", 3]'}, "options"),
        ({"answer": "2"}, "answer"),
        ({"answer": "D"}, "answer"),
        ({"answer": "A) Nodule"}, "answer"),
        ({"options": "cyst|Cyst", "answer": "CYST"}, "answer"),
        ({"options": "B|A", "answer": "A"}, "answer"),
        ({"image": "two/c.jpg"}, "image"),
        ({"image": "C:\\scans\\a.png"}, "image"),
        ({"image": "https://x.org/a.png"}, "image"),
        ({"image": "../ward/scans/a.png"}, "image"),
    ],
)
def test_what_is_ambiguous_stays_and_is_listed(
    ward: Path, changes: dict[str, str], column: str
) -> None:
    row = ROW | changes
    (fixed,), listed = fix(write_csv(ward / "ward.csv", [row]))
    assert fixed == row
    assert [(each.row, each.column, each.before, each.is_fixed) for each in listed] == [
        (2, column, row[column], False)
    ]


def test_options_in_columns_lose_their_letters(ward: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "options"}
    row |= {"option_A": "A: Cyst", "option_B": "B: Nodule", "option_C": "", "answer": "B: Nodule"}
    (fixed,), listed = fix(write_csv(ward / "ward.csv", [row]))
    assert (fixed["option_A"], fixed["option_B"], fixed["answer"]) == ("Cyst", "Nodule", "Nodule")
    assert [each.column for each in listed] == ["option_A", "option_B", "answer"]


def test_a_workbook_becomes_a_csv_with_all_its_columns(ward: Path) -> None:
    rows = [ROW | {"Note": "keep, this"}, ROW | {"Note": "", "answer": "=B9"}]
    path = write_book(ward / "ward.xlsx", {"Q": rows, "Other": [{"a": 1}]})
    book = openpyxl.load_workbook(path)
    book["Q"]["D2"] = "NODULE"
    book.save(path)
    fixed, listed = fix(path)
    assert fixed == [rows[0], rows[1] | {"answer": ""}]
    assert [(each.row, each.column, each.after) for each in listed] == [
        (2, "answer", "Nodule"),
        (3, "answer", None),
    ]
    assert "without a stored value" in listed[1].why


def test_rows_of_another_length_are_copied_and_listed(ward: Path) -> None:
    path = write_csv(ward / "ward.csv", [ROW])
    path.write_text(path.read_text() + "scans/a.png,What?\n")
    _, listed = fix(path)
    assert [(each.row, each.is_fixed) for each in listed] == [(3, False)]
    assert (ward / "fixed.csv").read_text().endswith("\nscans/a.png,What?\n")


def test_a_sheet_that_cannot_be_copied_is_refused(ward: Path) -> None:
    path = write_csv(ward / "ward.csv", [ROW])
    with pytest.raises(InputError, match="the sheet itself"):
        fix_sheet(path, path)
    path.write_text(path.read_text() + '"never closed')
    with pytest.raises(InputError, match=r"line 3 cannot be copied"):
        fix(path)
    assert not (ward / "fixed.csv").exists()
    write_csv(path, [{"a": "b"}])
    with pytest.raises(InputError, match="lacks the columns"):
        fix(path)


PIECES = (
    *("a", "b", "B.", "A)", "(b)", "Cyst", "cyst", "Nodule", "|", ";", ",", "/", " ", "[", "]"),
    *("'", '"', "\n", "\\", "..", ".", "é", "a.png", "scans", "1", "<answer>"),
)


@pytest.mark.parametrize("seed", range(60))
def test_a_corrected_sheet_needs_no_correction(ward: Path, seed: int) -> None:
    draw = random.Random(seed)
    rows = []
    for _ in range(6):
        changed = draw.sample(sorted(ROW), draw.randint(1, 3))
        rows.append(
            ROW | {key: "".join(draw.choices(PIECES, k=draw.randint(0, 4))) for key in changed}
        )
    out, again = ward / "fixed.csv", ward / "again.csv"
    fix_sheet(write_csv(ward / "ward.csv", rows), out)
    assert not any(each.is_fixed for each in fix_sheet(out, again))
    assert again.read_bytes() == out.read_bytes()
