"""Sheets of questions and of labels: CSV and TSV with any delimiter, XLSX and JSON Lines.

A sheet of questions has one per row. Columns and cells are those of docs/own-data.md, and rows pass
the checks of a CSV corpus. A sheet of labels has an image and one or several labels per row, from
which questions are built. A modality and a type may come from the options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.corpus.formats.images import ImageFolder
from stages.corpus.formats.labels import Labelled, balanced_questions
from stages.corpus.formats.questions import (
    DIAGNOSIS,
    ConversionOptions,
    LabelledImage,
    Question,
    Refusal,
    SourceLocation,
    keep_word,
)
from stages.corpus.formats.rows import choose_sheet, peek_headers, sheet_files
from stages.corpus.formats.workbook import TextRow, TextSheet
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import CONTEXT, written_context
from stages.corpus.records.table import Header, check_header, row_record
from stages.corpus.records.texts import RefusedRecord

LABEL_COLUMNS: Final = ("label", "class")
MAX_NUMBERS: Final = 10
"""Distinct numbers in a column that may be grades: more are measurements."""
REQUIRED: Final = ("image", "question", "answer")
"""Columns without which a sheet is none of questions; check_header adds the options."""


class QuestionSheets:
    """Reader of a sheet of questions, or of all those directly in a folder."""

    name = "sheet"
    description = (
        "a sheet of questions (CSV, TSV, XLSX or JSON Lines with columns image, question, options,"
        " answer)"
    )

    def detects(self, path: Path) -> bool:
        """Whether a file, or one directly in the folder, has the columns of questions."""
        return any(map(_is_usable, _headers(path)))

    def read(self, path: Path, options: ConversionOptions) -> Iterator[Question | Refusal]:
        """Rows as questions, sheet by sheet in the order of file names.

        Raises InputError if no sheet has the columns, or for the only sheet if it cannot be read.
        """
        sheets, refusals = open_usable(path, options, _check)
        folder = ImageFolder(options.images or (path if path.is_dir() else path.parent))
        for sheet in sheets:
            for row in sheet.rows:
                try:
                    yield _question(sheet, row, folder, options)
                except RefusedRecord as error:
                    yield Refusal.of(row.location, error)
        yield from refusals


def open_usable(
    path: Path, options: ConversionOptions, check: Callable[[Header], None]
) -> tuple[list[TextSheet], list[Refusal]]:
    """The sheets of a file or folder that pass `check`; one refusal for each file without any."""
    sheets = []
    refusals = []
    errors = []
    for file in sheet_files(path):
        try:
            sheets.append(choose_sheet(file, options, check))
        except InputError as error:
            errors.append(error)
            location = SourceLocation(file.name)
            refusals.append(Refusal(location, file.name, str(error), Reason.FILE_FORM))
    if not sheets:
        raise errors[0] if errors else InputError(f"{path} holds no sheets")
    return sheets, refusals


def _headers(path: Path) -> Iterator[Header]:
    for file in sheet_files(path):
        yield from peek_headers(file)


def _is_usable(header: Header) -> bool:
    try:
        _check(header)
    except RefusedRecord:
        return False
    return True


def _check(header: Header) -> None:
    check_header(header, REQUIRED)


def _question(
    sheet: TextSheet, row: TextRow, folder: ImageFolder, options: ConversionOptions
) -> Question:
    cells = row.by_role(sheet.header)
    cells["modality"] = cells.get("modality", "").strip() or options.modality or ""
    cells["type"] = cells.get("type", "").strip() or options.question_type or ""
    record = row_record(cells, options.dataset or Path(sheet.file).stem, keep_word)
    name, image = folder.find(cells["image"])
    return Question.from_record(row.location, record, image, name)


class LabelSheets:
    """Reader of sheets with an image and one or several labels per row."""

    name = "label-sheet"
    description = "a sheet of labels (columns image and label, or those named by --label)"

    def detects(self, path: Path) -> bool:
        """Whether a sheet has a column of images, and one of labels or no known question."""
        headers = chain.from_iterable(map(peek_headers, sheet_files(path)))
        return any(
            "image" in header.columns and not {"question", "answer"} & header.columns.keys()
            for header in headers
        )

    def read(self, path: Path, options: ConversionOptions) -> Iterator[Question | Refusal]:
        """One entry per row and label column.

        Raises InputError, with the remedy, for missing columns and for columns of measurements.
        """
        folder = ImageFolder(options.images or (path if path.is_dir() else path.parent))
        entries: list[Labelled] = []
        sheets, refusals = open_usable(path, options, lambda header: _check_labels(header, options))
        for sheet in sheets:
            columns = _label_columns(sheet.header, options)
            rows = list(sheet.rows)
            for column, number in columns.items():
                _check_numbers(
                    sheet, column, ["".join(row.cells[number:][:1]) for row in rows], options
                )
            for row in rows:
                entries += [
                    _of_row(sheet, row, column, number, folder, options)
                    for column, number in columns.items()
                ]
        yield from balanced_questions([*entries, *refusals], options)


def _check_labels(header: Header, options: ConversionOptions) -> None:
    if "image" not in header.columns:
        why = "the first line lacks the column image"
        raise RefusedRecord(", ".join(header.names), why, Reason.COLUMN_MISSING)
    columns = _label_columns(header, options)
    if unknown := sorted(options.bins.keys() - columns.keys()):
        why = f"--bins names {', '.join(unknown)}, which is no column of labels"
        raise RefusedRecord(", ".join(header.names), why, Reason.COLUMN_MISSING)


def _label_columns(header: Header, options: ConversionOptions) -> dict[str, int]:
    """Label column -> its index. Raises RefusedRecord if one of them is missing."""
    names = [name.strip() for name in header.names]
    wanted = options.labels or [name for name in names if name.casefold() in LABEL_COLUMNS]
    missing = [name for name in wanted if name not in names]
    if missing or not wanted:
        lacks = ", ".join(missing) or "label"
        why = f"the first line lacks the column {lacks}: name those of labels with --label"
        raise RefusedRecord(", ".join(names), why, Reason.COLUMN_MISSING)
    return {name: names.index(name) for name in wanted}


def _check_numbers(
    sheet: TextSheet, column: str, cells: Iterable[str], options: ConversionOptions
) -> None:
    """Raise InputError for a column of measurements that no bins are given for."""
    numbers = {number for cell in cells if (number := _number(cell)) is not None}
    if len(numbers) > MAX_NUMBERS and not options.bins.get(column):
        raise InputError(
            f"{sheet.label}: column {column!r} holds {len(numbers)} different numbers: name the"
            f" bounds of ranges, --bins {column}=0,40,60"
        )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _of_row(
    sheet: TextSheet,
    row: TextRow,
    column: str,
    number: int,
    folder: ImageFolder,
    options: ConversionOptions,
) -> Labelled:
    roles = ("image", "modality", "type", "dataset", "patient", *CONTEXT)
    # what is asked for must not be told as well
    asked = {*_label_columns(sheet.header, options).values()}
    known = {
        role: at
        for role, at in sheet.header.columns.items()
        if role in roles and not (role in CONTEXT and at in asked)
    }
    try:
        row.check([number, *known.values()])
        cells = {role: row.cells[at].strip() for role, at in known.items()}
        label = _label(row.cells[number].strip(), column, options)
        modality = cells.get("modality") or options.modality
        if not modality:
            why = "modality is missing: write it, or give it with --modality"
            raise RefusedRecord("", why, Reason.FIELD_MISSING)
        name, image = folder.find(cells["image"])
    except RefusedRecord as error:
        return Refusal.of(row.location, error)
    return LabelledImage(
        location=row.location,
        dataset=cells.get("dataset") or options.dataset or Path(sheet.file).stem,
        modality=modality,
        question_type=cells.get("type") or options.question_type or DIAGNOSIS,
        column=column,
        label=label,
        image=image,
        image_name=name,
        patient=cells.get("patient") or None,
        context=written_context(cells),
    )


def _label(cell: str, column: str, options: ConversionOptions) -> str:
    """The label of a cell; of a number, its range if bins are given."""
    if not cell:
        raise RefusedRecord(cell, f"{column} is empty", Reason.FIELD_EMPTY)
    bounds = options.bins.get(column)
    if not bounds:
        return cell
    number = _number(cell)
    reached = [bound for bound in sorted(bounds) if number is not None and bound <= number]
    if not reached:
        why = f"{column} is no number from {min(bounds):g} on, where the first range begins"
        raise RefusedRecord(cell, why, Reason.RECORD_VALUE)
    above = [bound for bound in sorted(bounds) if bound > reached[-1]]
    return f"{reached[-1]:g} to below {above[0]:g}" if above else f"{reached[-1]:g} or more"
