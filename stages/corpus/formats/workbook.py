"""Sheets of text cells, and the workbooks (XLSX) that hold them.

A workbook is read as data: formulas are never evaluated (their stored values are used), macros are
neither loaded nor executed, and its size is checked before anything is unpacked.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final

import openpyxl
from openpyxl.cell.cell import Cell
from openpyxl.cell.read_only import EmptyCell, ReadOnlyCell
from openpyxl.utils.cell import column_index_from_string, get_column_letter

from stages.core.errors import InputError
from stages.corpus.formats.questions import SourceLocation
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import CONTEXT
from stages.corpus.records.table import Header, name_columns
from stages.corpus.records.texts import RefusedRecord

_OLE: Final = b"\xd0\xcf\x11\xe0"
"""First bytes of .xls and of encrypted workbooks."""
_MAX_UNPACKED: Final = 4 * 2**30
"""Bytes of a workbook's parts: more is no table of questions, but perhaps a bomb."""
_MERGED: Final = re.compile(rb"<(?:\w+:)?mergeCell\s[^>]*?ref=\"([A-Z0-9:$]{1,40})\"")
_RANGE: Final = re.compile(r"([A-Z]+)(\d+):([A-Z]+)(\d+)")
_CHUNK: Final = 2**20
_DAMAGED: Final = "a workbook that is damaged, or none: save it again as .xlsx"

AnyCell = Cell | ReadOnlyCell | EmptyCell


@dataclass(frozen=True, slots=True)
class TextRow:
    """The cells of one row as text; `problems`: index of a column -> why its cell has no text."""

    location: SourceLocation
    cells: list[str]
    problems: dict[int, RefusedRecord] = field(default_factory=dict)
    refusal: RefusedRecord | None = None
    """Why the row as a whole cannot be read."""

    def by_role(self, header: Header) -> dict[str, str]:
        """Cells under the keys of COLUMNS and letters; RefusedRecord if one of them has no text."""
        self.check(header.columns.values())
        return header.row(self.cells)

    def check(self, columns: Collection[int]) -> None:
        """Raise RefusedRecord if the row, or its cell in one of the columns, cannot be read."""
        if self.refusal:
            raise self.refusal
        for number in columns:
            if problem := self.problems.get(number):
                raise problem


@dataclass(frozen=True)
class TextSheet:
    """A sheet whose rows are read once, in order."""

    file: str
    header: Header
    rows: Iterator[TextRow]
    name: str | None = None
    """Of a workbook's sheet."""
    problem: RefusedRecord | None = None
    """Why the header cannot be read."""

    @property
    def label(self) -> str:
        """As in messages."""
        return self.file if self.name is None else f"{self.file}, sheet {self.name!r}"


def open_book(path: Path) -> list[TextSheet]:
    """The sheets of a workbook that have cells. Raises RefusedRecord if it cannot be read.

    Rows are read later, and raise InputError where the workbook is damaged.
    """
    _check_book(path)
    try:
        sheets = list(_sheets(path))
    except Exception as error:  # openpyxl raises errors of any type for a damaged part
        what = f"{type(error).__name__}: {error}"
        raise RefusedRecord(what, _DAMAGED, Reason.FILE_UNREADABLE) from error
    if not sheets:
        raise RefusedRecord("", "the workbook has no cells", Reason.FILE_EMPTY)
    return sheets


def _sheets(path: Path) -> Iterator[TextSheet]:
    values = openpyxl.load_workbook(path, read_only=True, data_only=True)
    formulas = openpyxl.load_workbook(path, read_only=True, data_only=False)
    for worksheet in values.worksheets:
        # the stored dimensions may be wrong, and rows beyond them would be left out
        worksheet.reset_dimensions()
        formulas[worksheet.title].reset_dimensions()
        merged = _merged_ranges(path, worksheet._worksheet_path)  # type: ignore[attr-defined]
        rows = _book_rows(path.name, worksheet, formulas[worksheet.title], merged)
        first = next(rows, None)
        if first is not None:
            header = name_columns(first.cells, line=first.location.row or 1)
            problem = next(iter(first.problems.values()), None)
            rows = _undamaged(path, _below(header, rows))
            yield TextSheet(path.name, header, rows, worksheet.title, problem)


def _undamaged(path: Path, rows: Iterator[TextRow]) -> Iterator[TextRow]:
    """The rows. Raises InputError in place of openpyxl's errors, which are of any type."""
    try:
        yield from rows
    except Exception as error:
        raise InputError(f"{path}: {_DAMAGED} ({type(error).__name__}: {error})") from error


def unquoted(problems: Mapping[int, RefusedRecord], header: Header) -> dict[int, RefusedRecord]:
    """Problems of a row's cells; those of a patient's context do not quote them."""
    private = {at: role for role, at in header.columns.items() if role in CONTEXT}
    return {
        at: RefusedRecord(private.get(at, error.what), error.why, error.reason)
        for at, error in problems.items()
    }


def _below(header: Header, rows: Iterator[TextRow]) -> Iterator[TextRow]:
    """The rows below a header, as wide as it."""
    width = len(header.names)
    for row in rows:
        extra = next((cell for cell in row.cells[width:] if cell.strip()), None)
        refusal = row.refusal
        if extra is not None:
            why = "a cell in a column without a name: name the column, or remove it"
            what = "" if header.is_private else extra
            refusal = RefusedRecord(what, why, Reason.COLUMN_UNNAMED)
        cells = (row.cells + [""] * width)[:width]
        yield TextRow(row.location, cells, unquoted(row.problems, header), refusal)


def _check_book(path: Path) -> None:
    """Raise RefusedRecord for what is no zip of a reasonable size."""
    with path.open("rb") as handle:
        if handle.read(4) == _OLE:
            why = "an old .xls or an encrypted workbook: save it as .xlsx, without a password"
            raise RefusedRecord(path.name, why, Reason.FILE_FORM)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(each.file_size for each in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise RefusedRecord(str(error), _DAMAGED, Reason.FILE_UNREADABLE) from None
    if size > _MAX_UNPACKED:
        why = f"unpacks to more than {_MAX_UNPACKED:,} bytes (possible decompression bomb)"
        raise RefusedRecord(f"{size:,} bytes", why, Reason.FILE_UNREADABLE)


def _merged_ranges(path: Path, part: str) -> list[str]:
    """Merged ranges of a worksheet, which openpyxl's read-only mode leaves out."""
    ranges: dict[str, None] = {}
    tail = b""
    with zipfile.ZipFile(path) as archive, archive.open(part.removeprefix("/")) as handle:
        while chunk := handle.read(_CHUNK):
            window = tail + chunk
            ranges |= {match[1].decode(): None for match in _MERGED.finditer(window)}
            tail = window[-300:]
    return list(ranges)


def _book_rows(file: str, values: Any, formulas: Any, merged: list[str]) -> Iterator[TextRow]:
    """Rows that are not empty; `values` and `formulas` are one worksheet, read in two ways."""
    pairs = zip(
        values.iter_rows(min_row=1, min_col=1),
        formulas.iter_rows(min_row=1, min_col=1),
        strict=False,
    )
    for number, (value_cells, formula_cells) in enumerate(pairs, start=1):
        cells: list[str] = []
        problems = {}
        for column, (value, formula) in enumerate(zip(value_cells, formula_cells, strict=False)):
            try:
                cells.append(_cell_text(value, formula, f"{get_column_letter(column + 1)}{number}"))
            except RefusedRecord as error:
                problems[column] = error
                cells.append("")
        problems |= _merged_problems(number, merged)
        if problems or any(cell.strip() for cell in cells):
            location = SourceLocation(file, sheet=values.title, row=number)
            yield TextRow(location, cells, problems)


def _merged_problems(row: int, merged: list[str]) -> dict[int, RefusedRecord]:
    """Columns of a row that merged ranges cover."""
    problems: dict[int, RefusedRecord] = {}
    for name in merged:
        match = _RANGE.fullmatch(name.replace("$", ""))
        if match and int(match[2]) <= row <= int(match[4]):
            why = "merged cells: unmerge them, and write the value into each of their rows"
            first, last = column_index_from_string(match[1]), column_index_from_string(match[3])
            error = RefusedRecord(name, why, Reason.ROW_LENGTH)
            problems |= dict.fromkeys(range(first - 1, last), error)
    return problems


def _cell_text(value: AnyCell, formula: AnyCell, name: str) -> str:
    """The text of a cell. RefusedRecord, which names it, for what is no text or number."""
    content: Any = value.value
    if content is None:
        if formula.data_type == "f":
            why = "a formula without a stored value: replace it by its value"
            raise RefusedRecord(f"{name}: {formula.value}", why, Reason.FIELD_TYPE)
        return ""
    if value.data_type == "e":
        why = "an error instead of a value: correct the cell"
        raise RefusedRecord(f"{name}: {content}", why, Reason.FIELD_TYPE)
    if isinstance(content, datetime | date | time):
        why = "a date, perhaps made from a text such as 1-2: give the column the format Text"
        raise RefusedRecord(f"{name}: {content}", why, Reason.FIELD_TYPE)
    if isinstance(content, int | float) and "%" in str(value.number_format):
        why = "a percentage, stored as a fraction: give the column the format Text"
        raise RefusedRecord(f"{name}: {content}", why, Reason.FIELD_TYPE)
    if isinstance(content, bool):
        return str(content).upper()
    if isinstance(content, float) and content.is_integer():
        return str(int(content))
    return str(content)
