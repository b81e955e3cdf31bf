"""Variants of the questions in a table of predictions: which occur, and whether they are complete.

Some variants exist only of questions about several images, others only of questions with context.
A variant that is impossible for a question, such as another order of equal images, is null there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from stages.predictions.schema import CONTEXT_PARTS, IMAGE_PARTS, OPTIONAL, VARIANTS

if TYPE_CHECKING:
    import pandas as pd

NEEDS: Final = dict.fromkeys(IMAGE_PARTS, "images") | dict.fromkeys(CONTEXT_PARTS, "context")
"""Variant -> the column that a question must have for it."""


def _columns(variant: str) -> tuple[str, ...]:
    own = [field.name for field in OPTIONAL if field.name.startswith(f"{variant}_")]
    return (*own, NEEDS[variant]) if variant in NEEDS else ()


COLUMNS: Final = {variant: _columns(variant) for variant in VARIANTS}
"""Variant -> the columns of `OPTIONAL` that come with it."""


def variants_in(columns: Collection[str]) -> tuple[str, ...]:
    """The variants of which there are answers, in the order of `VARIANTS`."""
    return tuple(variant for variant in VARIANTS if f"{variant}_output" in columns)


def has(predictions: pd.DataFrame, column: str) -> pd.Series[bool]:
    """Which rows have a value in an optional column; none if there is no such column."""
    if column in predictions:
        return predictions[column].notna()
    return predictions["question_id"].isna()


def incomplete_variants(predictions: pd.DataFrame) -> dict[str, tuple[pd.Series[bool], str]]:
    """Column -> the rows in which it contradicts the others of its variant, and why."""
    faults: dict[str, tuple[pd.Series[bool], str]] = {}
    for variant in variants_in(predictions.columns):
        if variant not in NEEDS:
            continue
        asked = has(predictions, f"{variant}_output")
        faults[f"{variant}_output"] = (
            asked & ~has(predictions, NEEDS[variant]),
            f"of a question without {NEEDS[variant]}",
        )
        for name in COLUMNS[variant]:
            if name.startswith(f"{variant}_") and name != f"{variant}_output":
                faults[name] = (
                    has(predictions, name) != asked,
                    f"inconsistent with {variant}_output: both or neither must be set",
                )
    shuffled = has(predictions, "images") & has(predictions, "shuffled_image")
    faults["shuffled_image"] = (
        has(predictions, "shuffled_images") != shuffled,
        "inconsistent with shuffled_images, which must be set where it and images are",
    )
    return faults
