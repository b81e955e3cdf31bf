"""The test questions that a policy is asked, from the split files."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from stages.core import layout
from stages.corpus.dataset.split_files import read_split
from stages.taxonomy import AXIS_NAMES, fold_number


def read_items(
    axis: str, kind: str, fold: int | None = None, root: Path = Path()
) -> list[dict[str, Any]]:
    """Distinct test questions of an axis ("modality", "task", "all") in one kind of split.

    Of a cross-validation, those of one fold, or of all for the base. Sorted by question_id; each
    has the added flags `<axis>_test`. `root`: of the project. InputError if a file is malformed.
    """
    test_ids: dict[str, set[str]] = {}
    by_id: dict[str, dict[str, Any]] = {}
    for name in AXIS_NAMES:
        slugs = [slug for slug in layout.split_slugs(name, kind, root) if fold_number(slug) == fold]
        splits = [read_split(root / layout.split(name, slug, "test", kind)) for slug in slugs]
        items = list(chain.from_iterable(splits))
        test_ids[name] = {item["question_id"] for item in items}
        if axis in (name, "all"):
            by_id |= {item["question_id"]: item for item in items}
    for question_id, item in by_id.items():
        item |= {f"{name}_test": question_id in ids for name, ids in test_ids.items()}
    return [by_id[question_id] for question_id in sorted(by_id)]
