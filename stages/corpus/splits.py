"""Reading split files: Med-R1's published `image`, `problem`, `solution`, with what later numbers are sliced by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from stages.errors import InputError

KINDS: Final = ("grouped", "published")
"""Splits free of leaks, and splits drawn at random over questions as Med-R1's are."""
FIELDS: Final = ("image", "problem", "solution", "question_id", "dataset", "modality", "question_type")


def read_split(path: Path) -> list[dict[str, Any]]:
    """The items of one split file. Raises InputError if it is missing, not such a list, or empty."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `dvc repro splits`") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): delete it and run `dvc repro splits`") from error
    if not isinstance(items, list) or not items:
        raise InputError(f"{path} holds no questions: check the corpus and data/quarantine/, then run `dvc repro splits`")
    for index, item in enumerate(items):
        missing = [field for field in FIELDS if not isinstance(item, dict) or field not in item]
        if missing:
            raise InputError(f"{path}, item {index}: {', '.join(missing)} missing; run `dvc repro splits`")
    return items
