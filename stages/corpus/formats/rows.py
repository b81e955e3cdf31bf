"""Rows of CSV, TSV, JSON Lines and XLSX sheets as text cells under their columns' names."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

from stages.core.errors import InputError
from stages.corpus.dataset.paths import is_left_behind
from stages.corpus.formats.questions import ConversionOptions, SourceLocation
from stages.corpus.formats.workbook import TextRow, TextSheet, open_book, unquoted
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.json_list import parse_list
from stages.corpus.records.table import Header, find_header, name_columns, table_rows
from stages.corpus.records.texts import RefusedRecord, decode

TEXT_SUFFIXES: Final = (".csv", ".tsv", ".txt")
LINES_SUFFIXES: Final = (".jsonl", ".ndjson")
BOOK_SUFFIXES: Final = (".xlsx", ".xlsm")
SUFFIXES: Final = (*TEXT_SUFFIXES, *LINES_SUFFIXES, *BOOK_SUFFIXES)
DELIMITERS: Final = ",;\t|^~:"
_HEAD: Final = 2**16
"""Bytes that are read of a file to find its header."""


def open_sheets(path: Path, options: ConversionOptions) -> list[TextSheet]:
    """The sheets of a file that are not empty: one, except of a workbook.

    Raises InputError, with the remedy, for a file that cannot be read.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in BOOK_SUFFIXES:
            sheets = open_book(path)
        elif suffix in LINES_SUFFIXES:
            sheets = [_open_lines(path, decode_text(path, options.encoding))]
        else:
            sheets = [_open_text(path, decode_text(path, options.encoding), options.labels)]
    except RefusedRecord as error:
        raise InputError(f"{path}: {error.what}: {error.why}") from error
    if options.sheet is None or suffix not in BOOK_SUFFIXES:
        return sheets
    if chosen := [sheet for sheet in sheets if sheet.name == options.sheet]:
        return chosen
    names = ", ".join(repr(sheet.name) for sheet in sheets)
    raise InputError(f"{path} has no sheet {options.sheet!r} with cells, but {names}")


def choose_sheet(
    path: Path, options: ConversionOptions, check: Callable[[Header], None]
) -> TextSheet:
    """The only sheet of a file whose header passes `check`, which raises RefusedRecord.

    Raises InputError that names the sheets if none or several do.
    """
    sheets = open_sheets(path, options)
    usable = []
    problems = []
    for sheet in sheets:
        try:
            check(sheet.header)
            if sheet.problem:
                raise sheet.problem
            usable.append(sheet)
        except RefusedRecord as error:
            error = sheet.problem or error
            problems.append(f"{sheet.label}: {error.why} (found: {error.what})")
    if len(usable) == 1:
        return usable[0]
    if not usable:
        raise InputError("; ".join(problems) or f"{path} has no cells")
    names = ", ".join(repr(sheet.name) for sheet in usable)
    raise InputError(f"{path}: the sheets {names} have the columns: name one with --sheet")


def peek_headers(path: Path, others: Collection[str] = ()) -> list[Header]:
    """The headers of a file's sheets, from its first lines; none if it cannot be read."""
    suffix = path.suffix.lower()
    try:
        if suffix in BOOK_SUFFIXES:
            return [sheet.header for sheet in open_book(path)]
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
        if suffix in LINES_SUFFIXES:
            names, _ = _parse_line(
                head.decode(errors="replace").lstrip("\ufeff\r\n ").partition("\n")[0]
            )
            return [name_columns(list(names))] if names else []
        is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = head.decode("utf-16" if is_utf16 else "utf-8-sig", errors="replace")
        return [find_header(text, DELIMITERS, others)]
    except RefusedRecord:
        return []


def sheet_files(path: Path) -> list[Path]:
    """The file itself, or the sheets directly in a folder, sorted."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    # a text beside others is hardly a sheet
    suffixes = {*SUFFIXES} - ({".txt"} if path.is_dir() else set())
    return [
        file
        for file in files
        if file.suffix.lower() in suffixes and file.is_file() and not is_left_behind(file.name)
    ]


def decode_text(path: Path, encoding: str | None) -> str:
    """Text of a file: UTF-8, UTF-16 with a byte order mark, or in the encoding that is named."""
    content = path.read_bytes()
    if encoding is None:
        try:
            return decode(content)
        except RefusedRecord as error:
            if error.reason != Reason.FILE_ENCODING:
                raise
            why = f"{error.why}, or name its encoding, e.g. encoding='cp1252'"
            raise RefusedRecord(error.what, why, error.reason) from None
    try:
        return content.decode(codecs.lookup(encoding).name).removeprefix("\ufeff")
    except LookupError:
        raise InputError(f"encoding={encoding!r} is unknown: name one that Python knows") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{content[error.start]:02x} in line {line}"
        why = f"not {encoding} text: name another encoding, or save the file as UTF-8"
        raise RefusedRecord(what, why, Reason.FILE_ENCODING) from None


def _open_text(path: Path, text: str, labels: Collection[str]) -> TextSheet:
    header = find_header(text, DELIMITERS, labels)

    def rows() -> Iterator[TextRow]:
        for line, cells, refusal in table_rows(text, header):
            yield TextRow(SourceLocation(path.name, line=line), cells, refusal=refusal)

    return TextSheet(path.name, header, rows())


def _open_lines(path: Path, text: str) -> TextSheet:
    """JSON Lines: one object per line; its columns are the keys of all of them."""
    objects: list[tuple[int, dict[str, Any], RefusedRecord | None]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            objects.append((number, *_parse_line(line)))
    names = list(dict.fromkeys(chain.from_iterable(raw for _, raw, _ in objects)))
    if not names:
        raise RefusedRecord("", "no JSON objects in its lines", Reason.FILE_FORM)
    header = name_columns(names)
    return TextSheet(path.name, header, _line_rows(path.name, header, objects))


def _line_rows(
    file: str, header: Header, objects: list[tuple[int, dict[str, Any], RefusedRecord | None]]
) -> Iterator[TextRow]:
    for number, raw, refusal in objects:
        cells = []
        problems = {}
        for column, name in enumerate(header.names):
            try:
                cells.append(json_cell(raw.get(name)))
            except RefusedRecord as error:
                problems[column] = error
                cells.append("")
        if refusal and header.is_private:
            refusal = RefusedRecord("", refusal.why, refusal.reason)
        yield TextRow(SourceLocation(file, line=number), cells, unquoted(problems, header), refusal)


def _parse_line(line: str) -> tuple[dict[str, Any], RefusedRecord | None]:
    try:
        entries = list(parse_list(f"[{line}]"))
    except RefusedRecord:
        entries = []
    if len(entries) == 1 and isinstance(entries[0].raw, dict):
        return entries[0].raw, entries[0].refusal
    return {}, RefusedRecord(line, "a line that is not one JSON object", Reason.RECORD_FORM)


def json_cell(value: Any) -> str:
    """A JSON value as a cell: a text, a number, or a list of texts. RefusedRecord for others."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | list):
        raise RefusedRecord(value, "not a text", Reason.FIELD_TYPE)
    return json.dumps(value, ensure_ascii=False)
