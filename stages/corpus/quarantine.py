"""What was refused, kept beside what was taken: a row each, and counts that must add up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stages.errors import InputError
from stages.outputs import write_json

_LONGEST = 300
"""Characters of an offending value that are kept."""


class Row(NamedTuple):
    """One refused input: `where` it stands, `what` the offending value is, `why` it is refused, in plain words."""

    where: str
    what: str
    why: str


@dataclass(frozen=True)
class Quarantine:
    """The account of one stage: read = kept + the number of rows."""

    stage: str
    read: int
    kept: int
    rows: tuple[Row, ...]


def write_quarantine(path: Path, stage: str, read: int, kept: int, rows: Iterable[Row], provenance: Mapping[str, Any]) -> None:
    """Write the account of one stage as JSON, its rows sorted. AssertionError if read is not kept + quarantined."""
    ordered = sorted(rows)
    if read != kept + len(ordered):
        raise AssertionError(f"{stage}: read {read} records, but kept {kept} + quarantined {len(ordered)} = {kept + len(ordered)}")
    listed = [row._asdict() for row in ordered]
    counts = {"read": read, "kept": kept, "quarantined": len(ordered)}
    write_json(path, {"stage": stage, **counts, "rows": listed, "provenance": provenance})


def read_quarantine(path: Path) -> Quarantine:
    """Read what `write_quarantine` wrote. InputError if it is missing, not such a file, or does not add up."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        account = Quarantine(found["stage"], found["read"], found["kept"], tuple(Row(**row) for row in found["rows"]))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro`") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a quarantine file ({error!r}): delete it and run `dvc repro`") from error
    if account.read != account.kept + len(account.rows):
        raise InputError(f"{path} does not add up: read {account.read}, kept {account.kept}, rows {len(account.rows)}; run `dvc repro -f`")
    return account


def shown(value: object) -> str:
    """Any value as a text that can be written down: no lone surrogates, cut when long."""
    text = (value if isinstance(value, str) else repr(value)).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
