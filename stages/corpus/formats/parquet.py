"""Hugging Face dataset folders: Parquet files with embedded images, streamed in small batches.

Only the columns that are used are read, a few rows at a time, so that the memory is bounded by the
largest row group (a few times its size), whatever the size of the data set. ClassLabel numbers are
replaced by their names, which `datasets` stores in the schema's metadata. An answer that is a plain
number is used only if it is known what it counts from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

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
)
from stages.corpus.formats.rows import json_cell
from stages.corpus.formats.sheets import REQUIRED
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import CONTEXT, refuse_context
from stages.corpus.records.table import Header, check_header, name_columns, row_record
from stages.corpus.records.texts import RefusedRecord

BATCH_ROWS: Final = 16
"""Rows in memory: images of a few MB each."""
_NAMES: Final = {"images": "image", "label": "answer"}
"""Further names of columns in data sets, if the usual one is missing."""


@dataclass(frozen=True)
class _Shard:
    """One Parquet file with the meanings of its columns."""

    path: Path
    name: str
    header: Header
    class_names: Mapping[str, Sequence[str]]
    """Column of a ClassLabel -> its names."""

    @property
    def columns(self) -> dict[str, str]:
        """Meaning -> name of the column."""
        return {role: self.header.names[number] for role, number in self.header.columns.items()}

    def batches(self, columns: Sequence[str], rows: int = BATCH_ROWS) -> Iterator[Any]:
        """Record batches with these columns only, read as a stream."""
        try:
            with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**20) as file:
                yield from file.iter_batches(rows, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path} is damaged or truncated: {error}") from error


class HuggingFaceFolder:
    """Reader of the Parquet files below a folder, or of one."""

    name = "huggingface"
    description = (
        "a Hugging Face dataset folder (Parquet with columns image, question, options, answer)"
    )

    def detects(self, path: Path) -> bool:
        """Whether there are Parquet files; `read` names the columns that are missing."""
        return bool(_parquet_files(path))

    def read(self, path: Path, options: ConversionOptions) -> Iterator[Question | Refusal]:
        """Rows in the order of files. Raises InputError for a file that cannot be used."""
        root = path if path.is_dir() else path.parent
        shards = [_open_shard(file, root) for file in _parquet_files(path)]
        folder = ImageFolder(options.images or root)
        dataset = options.dataset or (path.resolve().name if path.is_dir() else path.stem)
        bases = _answer_bases(shards, options)
        for shard in shards:
            base = bases.get(shard.columns["answer"])
            for location, row in _rows(shard):
                try:
                    yield _question(location, row, base, dataset, folder, options)
                except RefusedRecord as error:
                    yield Refusal.of(location, error)


def _parquet_files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return [
        file
        for file in files
        if file.suffix.lower() == ".parquet" and not is_left_behind(file.name)
    ]


def _open_shard(path: Path, root: Path) -> _Shard:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {error}") from error
    known = name_columns(schema.names).columns
    renamed = [
        _NAMES[name] if _NAMES.get(name, name) not in {*known, name} else name
        for name in schema.names
    ]
    header = name_columns(renamed)
    try:
        check_header(header, REQUIRED)
    except RefusedRecord as error:
        raise InputError(f"{path}: {error.why} (found: {error.what})") from error
    header = Header(",", tuple(schema.names), header.columns, 1)
    return _Shard(path, path.relative_to(root).as_posix(), header, _class_names(schema))


def _class_names(schema: Any) -> dict[str, Sequence[str]]:
    """ClassLabel columns and their names, as `datasets` stores them."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = stored.get("info", {}).get("features", {})
        return {name: each["names"] for name, each in features.items() if "names" in each}
    except (ValueError, AttributeError, TypeError):
        return {}


def _answer_bases(shards: Sequence[_Shard], options: ConversionOptions) -> dict[str, int]:
    """Column of answers that are plain numbers -> what they count from, over all files.

    0 if a 0 occurs. Raises InputError if none does: then it is unknown.
    """
    lowest: dict[str, int] = {}
    for shard in shards:
        column = shard.columns["answer"]
        kind = pq.read_schema(shard.path).field(column).type
        if column in shard.class_names or not pa.types.is_integer(kind):
            continue
        for batch in shard.batches([column], 2**16):
            numbers = [number for number in batch.column(0).to_pylist() if number is not None]
            lowest[column] = min([*numbers, lowest.get(column, 2**31)])
    if options.answer_base is not None:
        return dict.fromkeys(lowest, options.answer_base)
    for column, number in lowest.items():
        if number != 0:
            raise InputError(
                f"column {column!r} holds numbers of options from {number}: name what they count"
                " from, answer_base=0 or answer_base=1"
            )
    return dict.fromkeys(lowest, 0)


def _rows(shard: _Shard) -> Iterator[tuple[SourceLocation, dict[str, Any]]]:
    """Location and values of each row under their columns' meanings."""
    columns = shard.columns
    number = 0
    for batch in shard.batches(list(dict.fromkeys(columns.values()))):
        for values in batch.to_pylist():
            number += 1
            row = {role: values[name] for role, name in columns.items()}
            for role, name in columns.items():
                row[role] = _named(row[role], shard.class_names.get(name))
            yield SourceLocation(shard.name, row=number), row


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """The name of a ClassLabel's number; other values as they are."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _question(
    location: SourceLocation,
    row: Mapping[str, Any],
    base: int | None,
    dataset: str,
    folder: ImageFolder,
    options: ConversionOptions,
) -> Question:
    cells = {role: _cell(role, value) for role, value in row.items() if role != "image"}
    if base is not None and cells["answer"]:
        cells["answer"] = _letter(int(row["answer"]), base)
    cells["modality"] = cells.get("modality", "").strip() or options.modality or ""
    cells["type"] = cells.get("type", "").strip() or options.question_type or ""
    name, image = _image(row["image"], cells.get("dataset") or dataset, folder)
    record = row_record({**cells, "image": name}, dataset, keep_word)
    return Question.from_record(location, record, image, name)


def _cell(role: str, value: Any) -> str:
    """A value as a cell; options may also be a structure of letters."""
    if role == "options" and isinstance(value, dict):
        if "".join(value) != LETTERS[: len(value)]:
            why = "options are named otherwise than A, B and so on"
            raise RefusedRecord(list(value), why, Reason.OPTIONS_FORM)
        value = list(value.values())
        while value and value[-1] is None:  # of a question with fewer options than others
            value.pop()
    if role in CONTEXT and not isinstance(value, str | int | float | None):
        raise refuse_context(role, "is not a text", Reason.FIELD_TYPE)
    return json_cell(value)


def _letter(number: int, base: int) -> str:
    if not 0 <= number - base < len(LETTERS):
        why = f"the number of no option, counted from {base}"
        raise RefusedRecord(number, why, Reason.ANSWER_NOT_OFFERED)
    return LETTERS[number - base]


def _image(value: Any, dataset: str, folder: ImageFolder) -> tuple[str, Path | bytes]:
    """Name and content of an image: embedded bytes, or the path of a file."""
    if isinstance(value, list):
        if len(value) != 1:
            why = f"{len(value)} images: a question has one"
            raise RefusedRecord(f"{len(value)} images", why, Reason.IMAGE_FORMAT)
        (value,) = value
    content = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return embedded_name(dataset, content), content
    if isinstance(path, str) and path:
        return folder.find(path)
    raise RefusedRecord("", "the row has no image", Reason.FIELD_EMPTY)
