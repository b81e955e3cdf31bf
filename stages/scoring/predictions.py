"""Scored predictions: answers and their correctness, computed from raw completions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.answers.extraction import extract_answer, read_answer
from stages.core.errors import InputError
from stages.corpus.dataset.problems import LETTERS
from stages.predictions.schema import ABLATIONS, SCHEMA

_PREFIXES: Final = ("", *(f"{variant}_" for variant in ABLATIONS))

SCORED: Final = pa.schema(
    [
        *SCHEMA,
        pa.field("n_options", pa.int32(), nullable=False),
        *(pa.field(f"{prefix}answer", pa.string()) for prefix in _PREFIXES),
        *(pa.field(f"{prefix}correct", pa.bool_(), nullable=bool(prefix)) for prefix in _PREFIXES),
        pa.field("answer_form", pa.string()),
        pa.field("answer_in_markup", pa.bool_()),
    ]
)
"""Schema of predictions with the columns that `add_answers` computes.

`answer`: a letter, null if the completion has none. `correct`: whether it is the gold letter, null
if the question was not evaluated in that variant. `answer_form` and `answer_in_markup`: how the
answer was written (`stages.answers.extraction.Answer`), null without an answer.
"""


def check_columns(table: pa.Table, source: str, remedy: str) -> None:
    """Raise InputError, naming source, column and remedy, if a table violates `SCHEMA`."""
    for field in SCHEMA:
        if field.name not in table.column_names:
            raise InputError(f"{source}: no column {field.name!r}; {remedy}")
        column = table[field.name]
        if column.type != field.type:
            raise InputError(
                f"{source}: column {field.name!r} holds {column.type}, not {field.type}; {remedy}"
            )
        if not field.nullable and column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise InputError(
                f"{source}: row {row} (question {table['question_id'][row]}) has no {field.name};"
                f" {remedy}"
            )


def add_answers(table: pa.Table) -> pa.Table:
    """Score raw completions: a table of `SCHEMA` becomes one of `SCORED`."""
    options = [dict(zip(LETTERS, texts, strict=False)) for texts in table["options"].to_pylist()]
    gold = table["gold"].to_pylist()
    columns: dict[str, Any] = {name: table[name] for name in SCHEMA.names}
    columns["n_options"] = [len(texts) for texts in options]
    for prefix in _PREFIXES:
        outputs = table[f"{prefix}output"].to_pylist()
        answers = [
            extract_answer(output or "", texts)
            for output, texts in zip(outputs, options, strict=True)
        ]
        columns[f"{prefix}answer"] = answers
        columns[f"{prefix}correct"] = [
            None if output is None else answer == letter
            for output, answer, letter in zip(outputs, answers, gold, strict=True)
        ]
    written = [
        read_answer(*pair) for pair in zip(table["output"].to_pylist(), options, strict=True)
    ]
    columns["answer_form"] = [each and each.form for each in written]
    columns["answer_in_markup"] = [each and each.in_markup for each in written]
    return pa.table(columns, schema=SCORED.with_metadata(table.schema.metadata))


def write_scored(
    target: Path | BinaryIO, predictions: pd.DataFrame, provenance: Mapping[str, Any]
) -> None:
    """Write scored predictions as Parquet, with their provenance in the metadata."""
    table = pa.Table.from_pandas(predictions, schema=SCORED, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"provenance": json.dumps(provenance)}), target)
