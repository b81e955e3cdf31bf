"""Predictions about several images and with context, made up from those of `tests.fakes`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core import layout
from stages.corpus.dataset.problems import LETTERS, format_solution
from stages.predictions.schema import CONTEXT_PARTS, IMAGE_PARTS, OPTIONAL, SCHEMA
from stages.scoring.predictions import add_answers

LENGTHS = (2, 5, 20)
"""Numbers of images of the questions that have several."""


def context_of(question: str) -> str:
    """What is known of the patient of a question."""
    return f"Age: 61 years. Sex: female. Indication: cough, patient of {question}."


def raw_rows(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """The columns that stage evaluate writes, as dictionaries, None where there is no value."""
    raw = [field.name for field in (*SCHEMA, *OPTIONAL) if field.name in predictions]
    schema = pa.schema([field for field in (*SCHEMA, *OPTIONAL) if field.name in raw])
    rows = pa.Table.from_pandas(predictions[raw], schema=schema, preserve_index=False)
    return list(rows.to_pylist())


def raw_table(rows: Iterable[dict[str, Any]], optional: Iterable[str] = ()) -> pa.Table:
    """A table as stage evaluate writes it, with the optional columns that any row has, or named."""
    rows = list(rows)
    names = set(optional).union(*rows)
    return pa.Table.from_pylist(
        rows, schema=pa.schema([*SCHEMA, *(field for field in OPTIONAL if field.name in names)])
    )


def scored(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Raw rows with their answers, as they are read."""
    return add_answers(raw_table(rows)).to_pandas()


def with_parts(predictions: pd.DataFrame, *, knows: float = 0.5) -> list[dict[str, Any]]:
    """Raw rows, of which two in three are about several images and half have context.

    Which ones follows from the numbers in their ids, so that all checkpoints agree. In a variant,
    the right answer is given with the probability `knows`, else a random one.
    """
    rows = []
    for row in raw_rows(predictions):
        number = int(row["question_id"].rpartition("_")[2])
        rng = np.random.default_rng([number, *row["checkpoint"].encode()])
        variants: tuple[str, ...] = ()
        if number % 3:
            row |= _several_images(row, LENGTHS[number % len(LENGTHS)])
            variants += IMAGE_PARTS
        if number % 4 > 1:
            row["context"] = context_of(row["question_id"])
            row["other_context_context"] = context_of("another")
            variants += CONTEXT_PARTS
        for variant in variants:
            random = LETTERS[int(rng.integers(len(row["options"])))]
            answer = row["gold"] if rng.random() < knows else random
            row[f"{variant}_output"] = format_solution(answer)
            row[f"{variant}_completion_tokens"] = 8
        rows.append(row)
    return rows


def give_parts(root: Path, names: Iterable[str]) -> None:
    """Rewrite the predictions of some checkpoints of a project, as `with_parts` does."""
    for name in names:
        path = root / layout.predictions(name)
        table = pq.read_table(path)
        rows = raw_table(with_parts(add_answers(table).to_pandas()))
        pq.write_table(rows.replace_schema_metadata(table.schema.metadata), path)


def _several_images(row: dict[str, Any], count: int) -> dict[str, Any]:
    def frames(path: str) -> list[str]:
        return [f"{path.removesuffix('.png')}/{number:04d}.png" for number in range(1, count + 1)]

    images = frames(row["image"])
    return {
        "images": images,
        "shuffled_images": frames(row["shuffled_image"]) if row["shuffled_image"] else None,
        "removed_images": images[:1] + images[2:],
        "reordered_images": images[::-1],
        "middle_images": [images[count // 2]],
    }
