"""VLMEvalKit's TSV: images in base64 inside its cells, or the index of the row that has the image.

A file is streamed row by row, as it may be larger than the memory. Images lie in a temporary folder
while it is read, because a row may use the image of any other.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import csv
import re
import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Final

from stages.core.errors import InputError
from stages.corpus.dataset.paths import is_left_behind
from stages.corpus.dataset.problems import LETTERS
from stages.corpus.formats.images import ImageFolder, embedded_name
from stages.corpus.formats.questions import (
    ConversionOptions,
    Question,
    Refusal,
    SourceLocation,
    keep_word,
    path_words,
)
from stages.corpus.formats.rows import peek_headers
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import CONTEXT
from stages.corpus.records.table import row_record
from stages.corpus.records.texts import RefusedRecord

_NAMES: Final = frozenset({"index", "question", "answer", "A", "B"})
_MODALITY_COLUMNS: Final = ("modality", "modality_type")
_TYPE_COLUMNS: Final = ("question_type", "type")
_CATEGORY_COLUMNS: Final = ("category", "l2-category")
"""What a question is about, in the words of a benchmark: a type only if nothing else names one."""
_MAX_INDEX: Final = 64
"""Characters of an index: VLMEvalKit takes a longer text for an image."""
_SUFFIX: Final = re.compile(r"\.[A-Za-z]{3,5}$")
_MAX_CELL: Final = 2**30
"""Characters of a cell, instead of csv's limit."""


class VlmEvalKitTable:
    """Reader of a VLMEvalKit TSV, or of all those directly in a folder."""

    name = "vlmevalkit"
    description = "a TSV of VLMEvalKit (columns index, image in base64, question, A, B, answer)"

    def detects(self, path: Path) -> bool:
        """Whether the first line of a .tsv file has VLMEvalKit's columns."""
        headers = chain.from_iterable(map(peek_headers, _tsv_files(path)))
        return any({*header.names} >= _NAMES for header in headers)

    def read(self, path: Path, options: ConversionOptions) -> Iterator[Question | Refusal]:
        """Rows in order; those that use the image of a later row come last in their file.

        Raises InputError for a file that lacks the columns, or is in another encoding.
        """
        folder = ImageFolder(options.images or (path if path.is_dir() else path.parent))
        for file in _tsv_files(path):
            with tempfile.TemporaryDirectory() as scratch:
                yield from _TableReading(file, folder, options, Path(scratch)).entries()


class _TableReading:
    """One pass over a file."""

    def __init__(
        self, file: Path, folder: ImageFolder, options: ConversionOptions, scratch: Path
    ) -> None:
        self._file = file
        self._folder = folder
        self._options = options
        self._scratch = scratch
        self._dataset = options.dataset or file.stem
        self._images: dict[str, tuple[str, Path]] = {}
        """Index of a row with an image -> its name and its file."""

    def entries(self) -> Iterator[Question | Refusal]:
        waiting: list[tuple[SourceLocation, dict[str, str]]] = []
        for location, row, refusal in _rows(self._file, self._options.encoding):
            try:
                if refusal:
                    raise refusal
                self._store_image(row)
                if row["image"].strip() in self._images or _is_path(row["image"]):
                    yield self._question(location, row)
                else:
                    waiting.append((location, row))
            except RefusedRecord as error:
                yield Refusal.of(location, error)
        for location, row in waiting:
            try:
                yield self._question(location, row)
            except RefusedRecord as error:
                yield Refusal.of(location, error)

    def _store_image(self, row: dict[str, str]) -> None:
        """Move an image from the row to the temporary folder; the row then has its own index."""
        cell = row.get("image", "")
        if not cell.strip():
            cell = row.get("image_path", "")
        row["image"] = cell
        if len(cell.strip()) <= _MAX_INDEX or _is_path(cell):
            return
        content = _decode_image(cell)
        name = embedded_name(self._dataset, content)
        path = self._scratch / PurePosixPath(name).name
        if not path.exists():
            path.write_bytes(content)
        index = row["index"].strip()
        if index in self._images:
            why = "a second image for this index: number the rows"
            raise RefusedRecord(index, why, Reason.DUPLICATE_ID)
        self._images[index] = (name, path)
        row["image"] = index

    def _question(self, location: SourceLocation, row: Mapping[str, str]) -> Question:
        written = row["image"].strip()
        if not written:
            raise RefusedRecord("", "the row has no image", Reason.FIELD_EMPTY)
        if written in self._images:
            name, image = self._images[written]
        elif not _is_path(written):
            why = "neither an image nor the index of a row that has one"
            raise RefusedRecord(written, why, Reason.IMAGE_MISSING)
        else:
            name, image = self._folder.find(written)
        modality, kind = path_words(PurePosixPath(self._file.name))
        kind = _first(row, _TYPE_COLUMNS) or self._options.question_type or kind
        hint = row.get("hint", "").strip()
        question = row["question"].strip()
        cells = {
            "image": name,
            "question": f"{hint}\n{question}" if hint else question,
            "answer": row["answer"],
            "modality": _first(row, _MODALITY_COLUMNS) or self._options.modality or modality or "",
            "type": kind or _first(row, _CATEGORY_COLUMNS),
            "id": f"{self._dataset}-{row['index'].strip()}",
            "patient": row.get("patient", ""),
            **{name: row[name] for name in (*CONTEXT, *LETTERS) if name in row},
        }
        record = row_record(cells, self._dataset, keep_word)
        return Question.from_record(location, record, image, name)


def _tsv_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.tsv")) if path.is_dir() else [path]
    return [
        file for file in files if file.suffix.lower() == ".tsv" and not is_left_behind(file.name)
    ]


def _rows(
    file: Path, encoding: str | None
) -> Iterator[tuple[SourceLocation, dict[str, str], RefusedRecord | None]]:
    """Location and cells of each row below the header, one in memory at a time."""
    with file.open("rb") as handle:
        is_utf16 = handle.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    detected = "utf-16" if is_utf16 else "utf-8-sig"
    with file.open(encoding=encoding or detected, newline="") as lines:
        reader = csv.reader(lines, delimiter="\t")
        names = _next_row(reader, file) or []
        if missing := sorted(_NAMES - {*names}):
            raise InputError(f"{file}: the first line lacks the columns {', '.join(missing)}")
        if len({*names}) < len(names):
            raise InputError(f"{file}: two columns have one name: {', '.join(names)}")
        while True:
            location = SourceLocation(file.name, line=reader.line_num + 1)
            cells = _next_row(reader, file)
            if cells is None:
                return
            if len(cells) == len(names):
                yield location, dict(zip(names, cells, strict=True)), None
            elif any(cells):
                why = f"{len(cells)} cells, but the first line has {len(names)}"
                error = RefusedRecord(cells[0], why, Reason.ROW_LENGTH)
                yield location, {}, error


def _next_row(reader: Iterator[list[str]], file: Path) -> list[str] | None:
    """The next row without csv's limit, which is one for the whole process; None at the end."""
    limit = csv.field_size_limit(_MAX_CELL)
    try:
        return next(reader, None)
    except UnicodeDecodeError as error:
        why = f"not UTF-8 text ({error.reason}): name its encoding, e.g. encoding='cp1252'"
        raise InputError(f"{file}: {why}") from None
    except csv.Error as error:
        raise InputError(f"{file}: {error}: quotation marks that do not match") from None
    finally:
        csv.field_size_limit(limit)


def _decode_image(cell: str) -> bytes:
    encoded = "".join(cell.split())
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    if encoded.startswith("["):
        why = "several images: a question has one"
        raise RefusedRecord(f"{encoded[:30]}...", why, Reason.IMAGE_FORMAT)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedRecord(f"{encoded[:30]}...", str(error), Reason.IMAGE_DAMAGED) from None


def _is_path(cell: str) -> bool:
    """Whether a cell ends like a file name: neither base64 nor an index does."""
    return _SUFFIX.search(cell[-_MAX_INDEX:].rstrip()) is not None


def _first(row: Mapping[str, str], columns: tuple[str, ...]) -> str:
    """The first of these cells that is not empty."""
    return next((cell for name in columns if (cell := row.get(name, "").strip())), "")
