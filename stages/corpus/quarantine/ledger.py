"""What was refused, kept beside what was taken: a row each, and counts that must add up.

An account is a parquet file: a row for each refused input, ready for pandas or SQL, and in the
metadata of its schema, under `quarantine`, the stage with what it read and kept of each source set,
so that shares can be told, and under `provenance` where all that comes from. No times are written:
the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.core.outputs import atomic_file
from stages.corpus.quarantine.reasons import Reason

NO_SET: Final = "(no source set)"
"""How a record that names no source set, or a question file that cannot be read, is called among
the sets.
"""

_LONGEST = 300
"""Characters of an offending value that are kept."""

_SCHEMA: Final = pa.schema(
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


class RecordLocation(NamedTuple):
    """Location of a record: file, index `record` in its list (from 0) and first `line`.

    None for a file.

    A row of a table, or of a JSON Lines file, has a line only; a record of a JSON file of one line,
    only its place in the list.
    """

    file: str
    record: int | None = None
    question_id: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        """As in messages: "<file>#<record>, line <line> (<question_id>)"."""
        if self.record is None and self.line is None:
            return self.file
        listed = "" if self.record is None else f"#{self.record}"
        return (
            f"{self.file}{listed}{'' if self.line is None else f', line {self.line}'}"
            f" ({self.question_id or 'no question_id'})"
        )


class Row(NamedTuple):
    """One refused input: location `where`, offending value `what`, reason `why` and its code.

    `dataset`, the source set, and `modality` are as they were written, None where they were not or
    are no texts.
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
    """Of one source set what a stage read, and what it kept."""

    read: int
    kept: int

    @property
    def refused(self) -> int:
        """What it did not keep."""
        return self.read - self.kept

    @property
    def share(self) -> float:
        """Of what was read, the share that was refused."""
        return self.refused / self.read if self.read else 0.0


@dataclass(frozen=True)
class Quarantine:
    """The account of one stage; read = kept + the number of rows, in all and in each of `sets`."""

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


def tally(stage: str, read: int, kept: Iterable[str], rows: Iterable[Row]) -> Quarantine:
    """Tally one stage's refusals, rows sorted by location.

    `kept`: the source set of each kept record.

    AssertionError if read is not kept + quarantined.
    """
    ordered = tuple(sorted(rows, key=_order))
    kept_of, refused_of = Counter(map(shown, kept)), Counter(row.set for row in ordered)
    if read != kept_of.total() + len(ordered):
        raise AssertionError(
            f"{stage}: read {read} records, but kept {kept_of.total()} + quarantined {len(ordered)}"
            f" = {kept_of.total() + len(ordered)}"
        )
    names = sorted(kept_of.keys() | refused_of.keys())
    return Quarantine(
        stage,
        {name: Counts(kept_of[name] + refused_of[name], kept_of[name]) for name in names},
        ordered,
    )


def write_quarantine(
    path: Path,
    stage: str,
    read: int,
    kept: Iterable[str],
    rows: Iterable[Row],
    provenance: Mapping[str, Any],
) -> Quarantine:
    """Write the account of one stage as parquet, and return it.

    The arguments are those of `tally`.
    """
    account = tally(stage, read, kept, rows)
    facts = {
        "stage": account.stage,
        "read": account.read,
        "kept": account.kept,
        "quarantined": len(account.rows),
    }
    sets = {name: counts._asdict() for name, counts in account.sets.items()}
    metadata = {
        "quarantine": json.dumps(facts | {"sets": sets}, ensure_ascii=False),
        "provenance": json.dumps(provenance),
    }
    listed = [
        {
            "stage": account.stage,
            **row.where._asdict(),
            **{name: value for name, value in row._asdict().items() if name != "where"},
        }
        for row in account.rows
    ]
    with atomic_file(path) as temporary:
        pq.write_table(
            pa.Table.from_pylist(listed, schema=_SCHEMA.with_metadata(metadata)),
            temporary,
            compression="zstd",
        )
    return account


def read_quarantine(path: Path) -> Quarantine:
    """Read what `write_quarantine` wrote.

    InputError if it is missing, not such a file, or does not add up.
    """
    try:
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"quarantine"])
        account = Quarantine(
            facts["stage"],
            {name: Counts(**counts) for name, counts in facts["sets"].items()},
            tuple(map(_row, table.to_pylist())),
        )
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro`") from None
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not a quarantine file ({error!r}): delete it and run `dvc repro`"
        ) from error
    refused = Counter(row.set for row in account.rows)
    for name in {*account.sets, *refused}:
        counts = account.sets.get(name, Counts(0, 0))
        if counts.refused != refused[name]:
            raise InputError(
                f"{path} does not add up: {name}: read {counts.read}, kept {counts.kept}, rows"
                f" {refused[name]}; run `dvc repro -f`"
            )
    return account


def shown(value: object) -> str:
    """Any value as a text that can be written down: no lone surrogates, cut when long."""
    text = value if isinstance(value, str) else repr(value)
    if (
        not text.isascii()
    ):  # else it stays the same object: a file's name is not kept again for each of its records
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def _row(fields: dict[str, Any]) -> Row:
    place = RecordLocation(**{name: fields[name] for name in RecordLocation._fields})
    return Row(
        place,
        fields["what"],
        fields["why"],
        Reason(fields["reason"]),
        fields["dataset"],
        fields["modality"],
    )


def _order(row: Row) -> tuple[str, int, int, str, str, str]:
    where = row.where
    record, line = (-1 if number is None else number for number in (where.record, where.line))
    return where.file, record, line, where.question_id or "", row.what, row.why
