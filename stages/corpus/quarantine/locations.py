"""Where each question stands in the corpus, to name a record that a later stage refuses.

Later stages read records from files of this pipeline, whose bytes must not change when lines move
in the user's own files. So the user's file and line are kept beside them, by question_id.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.errors import InputError
from stages.corpus.quarantine.ledger import Quarantine, RecordLocation
from stages.corpus.quarantine.parquet_rows import write_rows

if TYPE_CHECKING:
    import pyarrow as pa


def write_locations(path: Path, locations: Iterable[tuple[str, RecordLocation]]) -> None:
    """Write the (question_id, location) of each usable record, as parquet sorted by question_id."""
    rows = (
        {"question_id": question_id, "file": at.file, "record": at.record, "line": at.line}
        for question_id, at in sorted(locations)
    )
    write_rows(path, rows, _schema())


def locate_in_corpus(quarantine: Quarantine, path: Path) -> Quarantine:
    """The same refusals, located in the user's files; `path`: what `write_locations` wrote.

    A record that is not in it, or all if there is no such file, stays where it is. Raises
    InputError if the file cannot be read.
    """
    wanted = {row.where.question_id for row in quarantine.rows}
    if not wanted or not path.is_file():
        return quarantine
    import pyarrow as pa  # only where a table is read: it takes long to import
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, schema=_schema())
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"{path} is no table of locations ({error}): delete it and run `dvc repro`"
        ) from error
    located = {
        row["question_id"]: RecordLocation(**row)
        for row in table.to_pylist()
        if row["question_id"] in wanted
    }
    rows = [
        row._replace(where=located.get(row.where.question_id or "", row.where))
        for row in quarantine.rows
    ]
    return replace(quarantine, rows=tuple(rows))


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("question_id", pa.string(), nullable=False),
            pa.field("file", pa.string(), nullable=False),
            pa.field("record", pa.int64()),
            pa.field("line", pa.int64()),
        ]
    )
