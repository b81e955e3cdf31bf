"""Sheets of questions: CSV and TSV with any delimiter, XLSX and JSON Lines, one row per question.

Columns and cells are those of docs/own-data.md, and rows pass the checks of a CSV corpus. A
modality and a type may come from the options where the sheet has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.corpus.formats.images import ImageFolder
from stages.corpus.formats.questions import (
    ConversionOptions,
    Question,
    Refusal,
    SourceLocation,
    keep_word,
)
from stages.corpus.formats.rows import choose_sheet, peek_headers, sheet_files
from stages.corpus.formats.workbook import TextRow, TextSheet
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.table import Header, check_header, row_record
from stages.corpus.records.texts import RefusedRecord

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
        sheets, refusals = open_usable(path, options)
        folder = ImageFolder(options.images or (path if path.is_dir() else path.parent))
        for sheet in sheets:
            for row in sheet.rows:
                try:
                    yield _question(sheet, row, folder, options)
                except RefusedRecord as error:
                    yield Refusal.of(row.location, error)
        yield from refusals


def open_usable(path: Path, options: ConversionOptions) -> tuple[list[TextSheet], list[Refusal]]:
    """The sheets of questions of a file or folder; one refusal for each file that holds none."""
    sheets = []
    refusals = []
    errors = []
    for file in sheet_files(path):
        try:
            sheets.append(choose_sheet(file, options, _check))
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
