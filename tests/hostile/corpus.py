"""A good corpus, beside whose records hostile ones stand."""

from __future__ import annotations

import json
from typing import Any

from tests.hostile.images import encode, scene
from tests.omnimedvqa import MODALITIES

QUESTIONS = "QA_information/Open-access"
NAMED = "Images/Good/named.png"


def record(name: str, **changes: Any) -> dict[str, Any]:
    """A valid record with changes; a field changed to None is left out."""
    fields = {
        "dataset": "Good",
        "question_id": name,
        "question_type": "Disease Diagnosis",
        "question": "What is seen?",
        "gt_answer": "Nodule",
        "image_path": "Images/Good/a.png",
        "option_A": "Cyst",
        "option_B": "Nodule",
        "modality_type": MODALITIES["ct"],
    } | changes
    return {field: value for field, value in fields.items() if value is not None}


GOOD = {f"good {number}": record(f"good {number}") for number in range(3)}
GOOD_IDS = {*GOOD, "more"}
IMAGE = encode(scene(), "PNG")
CORPUS = {
    f"{QUESTIONS}/Good.json": json.dumps(list(GOOD.values())).encode(),
    f"{QUESTIONS}/More.json": (
        json.dumps([record("more", image_path=NAMED, dataset="More")]).encode()
    ),
    "Images/Good/a.png": IMAGE,
    NAMED: IMAGE,
}
