"""Rows are written as pyarrow's own conversion writes them, but without importing pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.corpus.quarantine.parquet_rows import write_rows

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("line", pa.int64()),
        pa.field("note", pa.string()),
    ]
).with_metadata({"provenance": '{"git_commit": null}'})

ODD = ("", "plain", 'Grün\n\t"quoted"\\', "\0", "\U0001f9e0", "2020-01-01", "2020-01-01 10:00:00")
"""Texts that JSON escapes, or that a reader could take for another type."""


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "name": ODD[at % len(ODD)],
            "line": None if at % 3 == 0 else 2**53 + at,
            "note": None if at % 2 else f"{at} {ODD[at % len(ODD)]}",
            "unknown": at,
        }
        for at in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 14, 30_000])
def test_the_bytes_are_those_of_pyarrows_own_conversion(tmp_path: Path, count: int) -> None:
    own, other = tmp_path / "own.parquet", tmp_path / "other.parquet"
    write_rows(own, rows(count), SCHEMA)
    table = pa.Table.from_pylist(rows(count), schema=SCHEMA)
    pq.write_table(table, other, compression="zstd")
    assert pq.read_table(own).equals(table, check_metadata=True)
    assert own.read_bytes() == other.read_bytes()


def test_columns_without_any_value_keep_their_type(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_rows(path, [{"name": "a"}, {"name": "b", "note": None}], SCHEMA)
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert table.column("line").to_pylist() == [None, None]


@pytest.mark.parametrize("count", [0, 2])
def test_pandas_is_not_imported(tmp_path: Path, count: int) -> None:
    code = f"""\
import sys
from pathlib import Path
import pyarrow as pa
from stages.corpus.quarantine.parquet_rows import write_rows
write_rows(Path("rows.parquet"), [{{"name": "a"}}] * {count}, pa.schema([("name", pa.string())]))
print("pandas" in sys.modules)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == count
