"""Read split files: Med-R1's `image`, `problem`, `solution`, plus options and fields."""

from __future__ import annotations

from collections.abc import Mapping
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
"""`options`: the option texts in letter order, so that no reader parses `problem`.

A question about several images also has `images`, all of them in order; `image` then stands for
them in lists. One with a patient's context has `context`.
"""
MAX_IMAGES: Final = 64
"""Images of a question."""

_REMEDY: Final = "run `dvc repro splits`"


def images_of(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the images that a question shows, in order."""
    return tuple(item.get("images") or (item["image"],))


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
        if not _is_image_list(item.get("images")):
            wrong = f"images is {item['images']!r:.60}, not a list of 2 to {MAX_IMAGES} paths"
            raise InputError(f"{path}, item {index}: {wrong}; {_REMEDY}")
        if not isinstance(item.get("context"), str | None):
            wrong = f"context is {item['context']!r:.60}, not a text"
            raise InputError(f"{path}, item {index}: {wrong}; {_REMEDY}")
    return items


def _is_image_list(value: object) -> bool:
    """Whether a field `images` is a list of paths, or missing."""
    if value is None:
        return True
    if not isinstance(value, list) or not 2 <= len(value) <= MAX_IMAGES:
        return False
    return all(isinstance(path, str) for path in value)
