"""Write rows as parquet without importing pandas.

`pa.Table.from_pylist`, and any other conversion of Python objects, makes pyarrow import pandas to
see whether they are its objects. That takes longer than all else that a stage needs to start, so
rows go to Arrow as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.outputs import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write a zstd-compressed parquet file of the rows' fields that are in `schema`.

    A field that a row lacks is null. The bytes are those of `pa.Table.from_pylist`.
    """
    import pyarrow.parquet as pq

    table = rows_table(rows, schema)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def rows_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Arrow table of rows of text, integers and None."""
    import pyarrow as pa

    lines = BytesIO()
    for row in rows:
        fields = {name: row[name] for name in schema.names if row.get(name) is not None}
        lines.write(json.dumps(fields).encode() + b"\n")
    if not lines.tell():
        return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
    import pyarrow.json as pj

    lines.seek(0)
    # in one thread and one block, so that the rows come in order and as one chunk
    table = pj.read_json(
        lines,
        read_options=pj.ReadOptions(use_threads=False, block_size=max(lines.getbuffer().nbytes, 1)),
        parse_options=pj.ParseOptions(
            explicit_schema=pa.schema(list(schema)), unexpected_field_behavior="error"
        ),
    )
    # the reader knows neither which columns allow no null, nor metadata
    return pa.Table.from_arrays(table.columns, schema=schema)
