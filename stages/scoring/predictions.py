"""Scored predictions: answers and their correctness, computed from raw completions."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.answers.extraction import extract_answer, read_answer
from stages.core.errors import InputError
from stages.corpus.dataset.problems import LETTERS
from stages.predictions.schema import OPTIONAL, SCHEMA
from stages.scoring.variants import COLUMNS, variants_in

PATIENT_TEXTS: Final = ("context", "other_context_context")
"""Columns that hold what is known of patients."""


def scored_schema(columns: Collection[str]) -> pa.Schema:
    """Schema of scored predictions whose raw columns are `columns`.

    `answer`: a letter, null if the completion has none. `correct`: whether it is the gold letter,
    null if the question was not evaluated in that variant. `answer_form` and `answer_in_markup`:
    how the answer was written (`stages.answers.extraction.Answer`), null without an answer.
    """
    prefixes = _prefixes(columns)
    return pa.schema(
        [
            *SCHEMA,
            *(field for field in OPTIONAL if field.name in columns),
            pa.field("n_options", pa.int32(), nullable=False),
            *(pa.field(f"{prefix}answer", pa.string()) for prefix in prefixes),
            *(
                pa.field(f"{prefix}correct", pa.bool_(), nullable=bool(prefix))
                for prefix in prefixes
            ),
            pa.field("answer_form", pa.string()),
            pa.field("answer_in_markup", pa.bool_()),
        ]
    )


def _prefixes(columns: Collection[str]) -> tuple[str, ...]:
    """Prefix of the columns of the question as asked, and of each variant."""
    return ("", *(f"{variant}_" for variant in variants_in(columns)))


SCORED: Final = scored_schema(SCHEMA.names)
"""Schema of scored predictions of questions about one image each, without context."""


def check_columns(table: pa.Table, source: str, remedy: str) -> None:
    """Raise InputError, naming source, column and remedy, if a table violates the schema.

    The columns of `OPTIONAL` may be missing, but not some of those of one variant.
    """
    names = table.column_names
    optional = [field for field in OPTIONAL if field.name in names]
    for variant in variants_in(names):
        if missing := [name for name in COLUMNS[variant] if name not in names]:
            raise InputError(
                f"{source}: no column {missing[0]!r}, which {variant}_output needs; {remedy}"
            )
    for field in [*SCHEMA, *optional]:
        if field.name not in names:
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
    """Score raw completions: a table of `SCHEMA` and any of `OPTIONAL` gets its answers."""
    options = [dict(zip(LETTERS, texts, strict=False)) for texts in table["options"].to_pylist()]
    gold = table["gold"].to_pylist()
    schema = scored_schema(table.column_names)
    columns: dict[str, Any] = {
        name: table[name] for name in schema.names if name in table.column_names
    }
    columns["n_options"] = [len(texts) for texts in options]
    for prefix in _prefixes(table.column_names):
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
    return pa.table(columns, schema=schema.with_metadata(table.schema.metadata))


def write_scored(
    target: Path | BinaryIO,
    predictions: pd.DataFrame,
    provenance: Mapping[str, Any],
    *,
    with_context: bool = False,
) -> None:
    """Write scored predictions as Parquet, with their provenance in the metadata.

    What is known of patients is left out unless `with_context`: an empty text then says that there
    was some.
    """
    if not with_context:
        texts = {name: predictions[name] for name in PATIENT_TEXTS if name in predictions}
        predictions = predictions.assign(
            **{name: text.where(text.isna(), "") for name, text in texts.items()}
        )
    table = pa.Table.from_pandas(
        predictions, schema=scored_schema(predictions.columns), preserve_index=False
    )
    pq.write_table(table.replace_schema_metadata({"provenance": json.dumps(provenance)}), target)
