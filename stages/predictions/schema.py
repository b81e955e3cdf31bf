"""Schema of the predictions of one checkpoint: written by evaluate, read by everything after it.

Raw completions only. Answers and their correctness are computed from `output`, `options` and `gold`
when a table is read (`stages.scoring.predictions`), so an edit of the answer rule makes no
evaluation stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import pyarrow as pa

ABLATIONS: Final = ("blank", "shuffled")
"""Variants of a question: with black images, and with those of another question."""
IMAGE_PARTS: Final = ("removed", "reordered", "middle")
"""Variants of a question about several images: without one, in another order, the middle alone."""
CONTEXT_PARTS: Final = ("no_context", "other_context")
"""Variants of a question with context: without it, and with that of another question."""
VARIANTS: Final = (*ABLATIONS, *IMAGE_PARTS, *CONTEXT_PARTS)

LEFT_OUT: Final = "left_out"
"""Key in the provenance of predictions, none, of a checkpoint without enough data (`matrix`)."""


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _ablation(variant: str) -> list[pa.Field]:
    return [
        pa.field(f"{variant}_image", pa.string()),
        pa.field(f"{variant}_output", pa.string()),
        pa.field(f"{variant}_completion_tokens", pa.int32()),
    ]


SCHEMA: Final = pa.schema(
    [
        _required("checkpoint", pa.string()),
        _required("question_id", pa.string()),
        _required("dataset", pa.string()),
        _required("modality", pa.string()),
        _required("question_type", pa.string()),
        _required("modality_test", pa.bool_()),
        _required("task_test", pa.bool_()),
        _required("image", pa.string()),
        _required("options", pa.list_(_required("item", pa.string()))),
        _required("gold", pa.string()),
        _required("output", pa.string()),
        _required("completion_tokens", pa.int32()),
        *_ablation("blank"),
        *_ablation("shuffled"),
    ]
)
"""One row per question.

`modality_test`, `task_test`: whether the question is in the test split of that axis. `options`:
their texts, "A" first; `gold`: a letter; `output`: the completion without special tokens. The
columns of an ablation are all null if the question has no such variant; the image of `blank` is "".
"""

_PATHS: Final = pa.list_(_required("item", pa.string()))
OPTIONAL: Final = pa.schema(
    [
        pa.field("images", _PATHS),
        pa.field("context", pa.string()),
        pa.field("shuffled_images", _PATHS),
        *(pa.field(f"{variant}_images", _PATHS) for variant in IMAGE_PARTS),
        pa.field("other_context_context", pa.string()),
        *(pa.field(f"{variant}_output", pa.string()) for variant in (*IMAGE_PARTS, *CONTEXT_PARTS)),
        *(
            pa.field(f"{variant}_completion_tokens", pa.int32())
            for variant in (*IMAGE_PARTS, *CONTEXT_PARTS)
        ),
    ]
)
"""Columns that predictions have only if a question needs them, null in the rows of the others.

`images`, `shuffled_images`: all images, in order, where there are several. `removed_images` and so
on: what the variant showed.
"""


def schema_of(rows: Iterable[Mapping[str, Any]]) -> pa.Schema:
    """The columns of some predictions: `SCHEMA`, and the optional ones that occur."""
    names: set[str] = set()
    for row in rows:
        names |= {name for name, value in row.items() if value is not None}
    optional = [field for field in OPTIONAL if field.name in names]
    return pa.schema([*SCHEMA, *optional])
