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

CONTEXT = "Age: 61 years. Sex: female. Indication: cough for {} weeks, patient {}."


def with_parts(
    rows: pd.DataFrame, *, knows: float = 0.5, lengths: Iterable[int] = (2, 5, 20)
) -> pd.DataFrame:
    """Scored predictions, of which two in three questions get several images and two in four context.

    Which ones follows from the numbers in their ids, so that all checkpoints agree. In a variant,
    the right answer is given with the probability `knows`, else a random one.
    """
    counts = list(lengths)
    raw: list[dict[str, Any]] = []
    for row in (
        rows[SCHEMA.names].astype(object).where(rows[SCHEMA.names].notna(), None).to_dict("records")
    ):
        number = int(row["question_id"].rpartition("_")[2])
        rng = np.random.default_rng([number, *row["checkpoint"].encode()])
        row["options"] = list(row["options"])
        parts: dict[str, Any] = {}
        if number % 3:
            folder = row["image"].removesuffix(".png")
            parts |= _images(folder, counts[number % len(counts)], row["shuffled_image"])
        if number % 4 > 1:
            parts["context"] = CONTEXT.format(number % 9 + 2, number)
            parts["other_context_context"] = CONTEXT.format(3, "other")
        asked = (*IMAGE_PARTS,) if "images" in parts else ()
        for variant in (*asked, *(CONTEXT_PARTS if "context" in parts else ())):
            right = rng.random() < knows
            letter = row["gold"] if right else LETTERS[int(rng.integers(len(row["options"])))]
            parts |= {f"{variant}_output": format_solution(letter)}
            parts |= {f"{variant}_completion_tokens": 8}
        raw.append({str(name): value for name, value in row.items()} | parts)
    return scored(raw)


def scored(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Scored predictions of raw ones, with the optional columns that any has."""
    present = set().union(*rows)
    schema = pa.schema([*SCHEMA, *(field for field in OPTIONAL if field.name in present)])
    return add_answers(pa.Table.from_pylist(rows, schema=schema)).to_pandas()


def _images(folder: str, count: int, exchanged: str | None) -> dict[str, Any]:
    images = [f"{folder}/{number:04d}.png" for number in range(1, count + 1)]
    parts: dict[str, Any] = {
        "images": images,
        "removed_images": images[1:],
        "reordered_images": images[::-1],
        "middle_images": [images[count // 2]],
    }
    if exchanged:
        other = exchanged.removesuffix(".png")
        parts["shuffled_images"] = [f"{other}/{number:04d}.png" for number in range(1, count + 1)]
    return parts


def give_parts(root: Path, names: Iterable[str]) -> None:
    """Rewrite the predictions of some checkpoints of a project, as `with_parts` does."""
    for name in names:
        path = root / layout.predictions(name)
        table = pq.read_table(path)
        rows = with_parts(add_answers(table).to_pandas(), knows=0.4)
        raw = [field.name for field in (*SCHEMA, *OPTIONAL) if field.name in rows]
        new = pa.Table.from_pandas(
            rows[raw],
            schema=pa.schema([*SCHEMA, *(field for field in OPTIONAL if field.name in raw)]),
            preserve_index=False,
        )
        pq.write_table(new.replace_schema_metadata(table.schema.metadata), path)
