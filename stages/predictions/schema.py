"""Schema of the predictions of one checkpoint: written by evaluate, read by everything after it.

Raw completions only. Answers and their correctness are computed from `output`, `options` and `gold`
when a table is read (`stages.scoring.predictions`), so an edit of the answer rule makes no
evaluation stale.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

ABLATIONS: Final = ("blank", "shuffled")
"""Variants of a question: with a black image, and with another image of its modality."""

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
