"""Quarantine table: one row per refused input, and counts that must add up.

A parquet file, ready for pandas or SQL. The metadata of its schema hold, under `quarantine`, the
stage with the numbers of records that it read and kept per source set, and under `provenance` where
all that comes from. No times are written: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stages.core.errors import InputError
from stages.corpus.quarantine.parquet_rows import write_rows
from stages.corpus.quarantine.reasons import Reason

if TYPE_CHECKING:
    import pyarrow as pa

NO_SET: Final = "(no source set)"
"""Source set of a record that names none, and of a question file that cannot be read."""

_MAX_VALUE: Final = 300
"""Characters of an offending value that are recorded."""


class RecordLocation(NamedTuple):
    """Location of a record: file, index `record` in its list (from 0) and first `line` (from 1).

    A row of a table or of a JSON Lines file has only a line, a record of a JSON file of one line
    only an index, and a file as a whole neither.
    """

    file: str
    record: int | None = None
    question_id: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        """As in messages: "<file>#<record>, line <line> (<question_id>)"."""
        if self.record is None and self.line is None:
            return self.file
        index = "" if self.record is None else f"#{self.record}"
        line = "" if self.line is None else f", line {self.line}"
        return f"{self.file}{index}{line} ({self.question_id or 'no question_id'})"


class Row(NamedTuple):
    """One refused input: location `where`, offending value `what`, reason `why` and its code.

    `dataset`, the source set, and `modality` are as written in the record; None if missing or not
    text.
    """

    where: RecordLocation
    what: str
    why: str
    reason: Reason
    dataset: str | None = None
    modality: str | None = None

    @property
    def set(self) -> str:
        """The source set, by the name it is counted under."""
        return self.dataset or NO_SET


class Counts(NamedTuple):
    """Numbers of records that a stage read and kept."""

    read: int
    kept: int

    @property
    def refused(self) -> int:
        """Number of refused records."""
        return self.read - self.kept

    @property
    def share(self) -> float:
        """Refused records as a share of those read."""
        return self.refused / self.read if self.read else 0.0


@dataclass(frozen=True)
class Quarantine:
    """Quarantine table of one stage: read = kept + rows, in total and in each of `sets`."""

    stage: str
    sets: Mapping[str, Counts]
    rows: tuple[Row, ...]

    @property
    def read(self) -> int:
        """Records read."""
        return sum(counts.read for counts in self.sets.values())

    @property
    def kept(self) -> int:
        """Records kept."""
        return sum(counts.kept for counts in self.sets.values())


def tally(stage: str, read: int, kept_sets: Iterable[str], rows: Iterable[Row]) -> Quarantine:
    """Tally one stage's refusals, rows sorted by location.

    `kept_sets`: the source set of each kept record. Raises AssertionError if records are missing or
    counted twice.
    """
    ordered = tuple(sorted(rows, key=_order))
    kept = Counter(map(safe_text, kept_sets))
    refused = Counter(row.set for row in ordered)
    total = kept.total() + len(ordered)
    if read != total:
        raise AssertionError(
            f"{stage}: read {read} records, but kept {kept.total()} + quarantined {len(ordered)}"
            f" = {total}"
        )
    names = sorted(kept.keys() | refused.keys())
    sets = {name: Counts(kept[name] + refused[name], kept[name]) for name in names}
    return Quarantine(stage, sets, ordered)


def write_quarantine(
    path: Path,
    stage: str,
    read: int,
    kept_sets: Iterable[str],
    rows: Iterable[Row],
    provenance: Mapping[str, Any],
) -> Quarantine:
    """Write the quarantine table of one stage as parquet, and return it. See `tally`."""
    quarantine = tally(stage, read, kept_sets, rows)
    summary = {
        "stage": stage,
        "read": quarantine.read,
        "kept": quarantine.kept,
        "quarantined": len(quarantine.rows),
        "sets": {name: counts._asdict() for name, counts in quarantine.sets.items()},
    }
    metadata = {
        "quarantine": json.dumps(summary, ensure_ascii=False),
        "provenance": json.dumps(provenance),
    }
    records = [{"stage": stage, **row.where._asdict(), **row._asdict()} for row in quarantine.rows]
    # the schema's columns alone are written, so without `where`
    write_rows(path, records, _schema().with_metadata(metadata))
    return quarantine


def read_quarantine(path: Path) -> Quarantine:
    """Read what `write_quarantine` wrote.

    Raises InputError if it is missing, not such a file, or does not add up.
    """
    import pyarrow as pa  # only where a table is read or written: it takes long to import
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        summary = json.loads(table.schema.metadata[b"quarantine"])
        quarantine = Quarantine(
            summary["stage"],
            {name: Counts(**counts) for name, counts in summary["sets"].items()},
            tuple(map(_row, table.to_pylist())),
        )
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro`") from None
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not a quarantine file ({error!r}): delete it and run `dvc repro`"
        ) from error
    refused = Counter(row.set for row in quarantine.rows)
    for name in {*quarantine.sets, *refused}:
        counts = quarantine.sets.get(name, Counts(0, 0))
        if counts.refused != refused[name]:
            raise InputError(
                f"{path} does not add up: {name}: read {counts.read}, kept {counts.kept}, rows"
                f" {refused[name]}; run `dvc repro -f`"
            )
    return quarantine


def safe_text(value: object) -> str:
    """Any value as text for a file or terminal: no lone surrogates, truncated if long."""
    text = value if isinstance(value, str) else repr(value)
    # ASCII stays the same object: all locations of a file share one name
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}... ({len(text)} characters)"


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("stage", pa.string(), nullable=False),
            pa.field("file", pa.string(), nullable=False),
            pa.field("record", pa.int64()),
            pa.field("line", pa.int64()),
            pa.field("question_id", pa.string()),
            pa.field("dataset", pa.string()),
            pa.field("modality", pa.string()),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("what", pa.string(), nullable=False),
            pa.field("why", pa.string(), nullable=False),
        ]
    )


def _row(fields: dict[str, Any]) -> Row:
    return Row(
        where=RecordLocation(**{name: fields[name] for name in RecordLocation._fields}),
        what=fields["what"],
        why=fields["why"],
        reason=Reason(fields["reason"]),
        dataset=fields["dataset"],
        modality=fields["modality"],
    )


def _order(row: Row) -> tuple[str, int, int, str, str, str]:
    where = row.where
    record = -1 if where.record is None else where.record
    line = -1 if where.line is None else where.line
    return where.file, record, line, where.question_id or "", row.what, row.why
