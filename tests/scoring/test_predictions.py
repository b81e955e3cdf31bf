"""Answers and correctness computed from raw completions, and invalid tables."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import InputError
from stages.predictions.schema import OPTIONAL, SCHEMA
from stages.scoring.predictions import (
    SCORED,
    add_answers,
    check_columns,
    scored_schema,
    write_scored,
)
from tests.several_images import raw_table

ROW: dict[str, Any] = {
    "checkpoint": "ct",
    "question_id": "q0",
    "dataset": "Phantom",
    "modality": "ct",
    "question_type": "lesion-grading",
    "modality_test": True,
    "task_test": False,
    "image": "data/images/ct/0.png",
    "options": ["Cyst", "Nodule"],
    "gold": "B",
    "output": "<answer> B </answer>",
    "completion_tokens": 8,
}
BLANK = {"blank_image": "", "blank_output": "<answer>A</answer>", "blank_completion_tokens": 8}
SEVERAL: dict[str, Any] = {
    "images": ["a.png", "b.png"],
    "reordered_images": ["b.png", "a.png"],
    "reordered_output": "Nodule",
    "reordered_completion_tokens": 3,
}
CONTEXT: dict[str, Any] = {
    "context": "Age: 61 years.",
    "other_context_context": "Age: 3 years.",
    "other_context_output": "<answer>A</answer>",
    "other_context_completion_tokens": 8,
}
SOURCE = "predictions/ct.parquet"
REMEDY = "the remedy"


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(
        [ROW | row for row in rows], schema=SCHEMA.with_metadata({"provenance": "{}"})
    )


def refusal(predictions: pa.Table) -> str:
    with pytest.raises(InputError) as error:
        check_columns(predictions, SOURCE, REMEDY)
    return str(error.value)


def test_the_schema_has_no_answer_column() -> None:
    assert not [name for name in SCHEMA.names if "answer" in name or "correct" in name]
    assert set(SCHEMA.names) < set(SCORED.names)


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("<answer>B</answer>", "B"),
        ("Nodule", "B"),
        ("<answer>A</answer>", "A"),
        ("C", None),
        ("", None),
    ],
)
def test_an_answer_is_extracted_with_the_options_of_its_question(
    output: str, answer: str | None
) -> None:
    scored = add_answers(table({"output": output}))
    assert scored.schema.equals(SCORED)
    (row,) = scored.to_pylist()
    assert (row["answer"], row["correct"], row["n_options"]) == (answer, answer == "B", 2)


def test_each_variant_is_scored_and_missing_variants_stay_null() -> None:
    ablated, other = add_answers(table(BLANK, {})).to_pylist()
    assert (ablated["blank_answer"], ablated["blank_correct"]) == ("A", False)
    assert (ablated["shuffled_answer"], ablated["shuffled_correct"]) == (None, None)
    assert (other["blank_answer"], other["blank_correct"]) == (None, None)


def test_an_empty_output_is_wrong_and_not_missing() -> None:
    (row,) = add_answers(table(BLANK | {"blank_output": ""})).to_pylist()
    assert (row["blank_answer"], row["blank_correct"]) == (None, False)


def test_scored_predictions_are_written_with_their_provenance() -> None:
    scored = add_answers(table(BLANK, {"question_id": "q1", "output": "?"}))
    buffer = io.BytesIO()
    write_scored(buffer, scored.to_pandas(), {"git_commit": "abc"})
    again = pq.read_table(buffer)
    assert again.equals(scored)
    assert json.loads(again.schema.metadata[b"provenance"]) == {"git_commit": "abc"}


@pytest.mark.parametrize("column", SCHEMA.names)
def test_a_missing_column_is_named(column: str) -> None:
    assert refusal(table({}).drop_columns([column])) == f"{SOURCE}: no column {column!r}; {REMEDY}"


@pytest.mark.parametrize("column", [field.name for field in SCHEMA if not field.nullable])
def test_a_missing_value_is_named_with_its_row(column: str) -> None:
    message = refusal(table({}, {column: None}))
    assert message.startswith(f"{SOURCE}: row 1 ")
    assert f"has no {column}" in message


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("modality_test", ["True"]),
        ("output", [7]),
        ("completion_tokens", [3.5]),
        ("options", [["Cyst", None]]),
        ("blank_output", [1]),
    ],
)
def test_a_column_of_another_type_is_named(column: str, values: list[Any]) -> None:
    predictions = table({})
    number = predictions.column_names.index(column)
    message = refusal(predictions.set_column(number, column, pa.array(values)))
    assert f"column {column!r} holds" in message
    assert REMEDY in message


def test_a_table_of_the_schema_passes() -> None:
    check_columns(table(BLANK, {}), SOURCE, REMEDY)


def test_variants_of_several_images_and_context_are_scored_where_they_are() -> None:
    rows: list[dict[str, Any]] = [
        SEVERAL,
        CONTEXT | {"question_id": "q1"},
        {"question_id": "q2"},
    ]
    predictions = raw_table([ROW | row for row in rows])
    check_columns(predictions, SOURCE, REMEDY)
    scored = add_answers(predictions)
    assert scored.schema.equals(scored_schema(predictions.column_names))
    several, context, plain = scored.to_pylist()
    assert (several["reordered_answer"], several["reordered_correct"]) == ("B", True)
    assert several["images"] == SEVERAL["images"]
    assert several["other_context_correct"] is None
    assert (context["other_context_answer"], context["other_context_correct"]) == ("A", False)
    assert (context["context"], context["images"]) == (CONTEXT["context"], None)
    assert {plain[name] for name in (*SEVERAL, *CONTEXT, "reordered_correct")} == {None}
    assert not [name for name in scored.column_names if name.startswith("middle")]


def test_columns_that_are_null_throughout_are_kept_and_have_no_answers() -> None:
    predictions = raw_table([ROW], OPTIONAL.names)
    check_columns(predictions, SOURCE, REMEDY)
    (row,) = add_answers(predictions).to_pylist()
    assert row["middle_correct"] is None
    assert row["correct"] is True
    assert add_answers(table({})).schema.equals(SCORED)


@pytest.mark.parametrize(
    ("column", "variant"),
    [
        ("reordered_images", "reordered"),
        ("reordered_completion_tokens", "reordered"),
        ("images", "reordered"),
        ("other_context_context", "other_context"),
        ("context", "other_context"),
    ],
)
def test_a_missing_column_of_a_variant_is_named(column: str, variant: str) -> None:
    predictions = raw_table([ROW | SEVERAL | CONTEXT]).drop_columns([column])
    message = refusal(predictions)
    assert message == f"{SOURCE}: no column {column!r}, which {variant}_output needs; {REMEDY}"


def test_an_optional_column_of_another_type_is_named() -> None:
    predictions = raw_table([ROW | SEVERAL])
    number = predictions.column_names.index("images")
    message = refusal(predictions.set_column(number, "images", pa.array(["a.png"])))
    assert "column 'images' holds string" in message


@pytest.mark.parametrize("with_context", [False, True])
def test_context_is_written_only_if_asked_for(with_context: bool) -> None:
    scored = add_answers(raw_table([ROW | CONTEXT, ROW | {"question_id": "q1"}]))
    buffer = io.BytesIO()
    write_scored(buffer, scored.to_pandas(), {}, with_context=with_context)
    again = pq.read_table(buffer)
    texts = [CONTEXT["context"], CONTEXT["other_context_context"]] if with_context else ["", ""]
    assert [again[name][0].as_py() for name in ("context", "other_context_context")] == texts
    assert again["context"][1].as_py() is None, "no context is not the same as one left out"
    others = [name for name in scored.column_names if not name.endswith("context")]
    assert again.select(others).equals(scored.select(others))
    check_columns(again, SOURCE, REMEDY)
