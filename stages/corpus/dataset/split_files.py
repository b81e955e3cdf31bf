"""Read split files: Med-R1's `image`, `problem`, `solution`, plus options and fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from stages.core.errors import InputError
from stages.core.outputs import read_json
from stages.corpus.dataset.problems import is_option_list

DRAWN: Final = ("grouped", "random")
"""Splits without leaks, and splits drawn at random over questions."""
KINDS: Final = (*DRAWN, "released")
"""The same, and split files of others."""
FIELDS: Final = (
    "image",
    "problem",
    "solution",
    "options",
    "question_id",
    "dataset",
    "modality",
    "question_type",
)
"""`options`: the option texts in letter order, so that no reader parses `problem`."""

_REMEDY: Final = "run `dvc repro splits`"


def read_split(path: Path) -> list[dict[str, Any]]:
    """The items of one split file, none if the split is left out for lack of data.

    Raises InputError if it is missing or malformed.
    """
    items = read_json(path, _REMEDY)
    if not isinstance(items, list):
        raise InputError(f"{path} is not a list of questions: {_REMEDY}")
    for index, item in enumerate(items):
        missing = [field for field in FIELDS if not isinstance(item, dict) or field not in item]
        if missing:
            raise InputError(f"{path}, item {index}: {', '.join(missing)} missing; {_REMEDY}")
        if not is_option_list(item["options"]):
            wrong = f"options is {item['options']!r:.60}, not a list of 2 to 26 texts"
            raise InputError(f"{path}, item {index}: {wrong}; {_REMEDY}")
    return items
