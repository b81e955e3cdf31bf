"""Cases shown in the report: questions with a checkpoint's output, one of each verdict."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stages.predictions.schema import ABLATIONS, CONTEXT_PARTS
from stages.reporting.labels import VARIANT_LABELS
from stages.scoring.tables import Target, in_domain
from stages.scoring.variants import has

if TYPE_CHECKING:
    import pandas as pd

ONLY_WITHOUT: Final = "right only without its image"
"""Verdict on a question answered correctly with a black or another image but not with its own."""
ONLY_WITH_IMAGES: Final = "right only with all its images in order"
"""Verdict on a question about several images that is answered wrongly in an image variant."""
ONLY_WITH_CONTEXT: Final = "right only with its context"
"""Verdict on a question with context that is answered wrongly without it, or with another."""

_IMAGES: Final = ("reordered", "removed", "middle", "shuffled", "blank")
"""Variants of questions about several images, the one that changes least first."""
_CONTEXT: Final = tuple(reversed(CONTEXT_PARTS))


@dataclass(frozen=True)
class Shown:
    """A question in a variant: the output, and what the variant showed instead.

    `images` are given only where there are several, `context` only if it was exchanged.
    """

    variant: str
    output: str
    images: tuple[str, ...] = ()
    context: str | None = None


@dataclass(frozen=True)
class Case:
    """A question and a checkpoint's output; `problem` is its text, None if unavailable."""

    checkpoint: str
    verdict: str
    question_id: str
    modality: str
    question_type: str
    problem: str | None
    gold: str
    answer: str | None
    output: str
    without: Shown | None
    """The variant that the verdict is about: the only correct one, or one that is wrong."""
    image: str
    """Path of the image, as in the split; of several, the one that stands for them."""
    images: tuple[str, ...] = ()
    """Paths of all images in the order shown, if there are several."""
    context: str | None = None
    """What is known of the patient; empty if it was left out of the predictions."""

    @property
    def variant(self) -> str:
        """What `without` shows, in words; of one image removed also which."""
        if self.without is None:
            return ""
        words = VARIANT_LABELS[self.without.variant]
        if self.without.variant != "removed":
            return words
        left = [n for n, path in enumerate(self.images, 1) if path not in self.without.images]
        return f"{words} (number {left[0]})" if left else words


def pick_cases(
    predictions: Mapping[str, pd.DataFrame],
    targets: Mapping[str, Target],
    problems: Mapping[str, str],
) -> list[Case]:
    """First in-domain case of each verdict per checkpoint, by question id.

    Verdicts: right, wrong, right only without its image, unreadable; of questions about several
    images or with context also right only with all its images in order, or with its context.
    """
    cases = []
    for name, target in targets.items():
        rows = in_domain(predictions[name], target.axis, target.cells).sort_values("question_id")
        correct = rows["correct"]
        readable = rows["answer"].notna()
        only_without = ~correct & _any(rows, ABLATIONS, right=True)
        needs_images = correct & has(rows, "images") & _any(rows, _IMAGES, right=False)
        needs_context = correct & ~needs_images & _any(rows, _CONTEXT, right=False)
        by_verdict = {
            "right": rows[correct & ~needs_images & ~needs_context],
            ONLY_WITH_IMAGES: rows[needs_images],
            ONLY_WITH_CONTEXT: rows[needs_context],
            "wrong": rows[readable & ~correct & ~only_without],
            ONLY_WITHOUT: rows[only_without],
            "unreadable": rows[~readable & ~only_without],
        }
        for verdict, candidates in by_verdict.items():
            for row in candidates.head(1).to_dict("records"):
                text = problems.get(row["question_id"])
                cases.append(_case(name, verdict, row, text))
    return cases


def _any(rows: pd.DataFrame, variants: tuple[str, ...], *, right: bool) -> pd.Series[bool]:
    """Which questions are answered rightly, or wrongly, in any of some variants."""
    found = rows["correct"].isna()  # of none: every question is scored
    for variant in variants:
        if f"{variant}_correct" in rows:
            found |= rows[f"{variant}_correct"].eq(other=right)
    return found


def _case(checkpoint: str, verdict: str, row: Mapping[Hashable, Any], text: str | None) -> Case:
    variants = {
        ONLY_WITHOUT: (tuple(reversed(ABLATIONS)), True),
        ONLY_WITH_IMAGES: (_IMAGES, False),
        ONLY_WITH_CONTEXT: (_CONTEXT, False),
    }
    without = None
    if verdict in variants:
        names, right = variants[verdict]
        variant = next(name for name in names if row.get(f"{name}_correct") is right)
        without = _shown(variant, row)
    context = row.get("context")
    return Case(
        checkpoint=checkpoint,
        verdict=verdict,
        question_id=row["question_id"],
        modality=row["modality"],
        question_type=row["question_type"],
        problem=text,
        gold=row["gold"],
        answer=row["answer"] if isinstance(row["answer"], str) else None,
        output=row["output"],
        without=without,
        image=row["image"],
        images=_paths(row.get("images")),
        context=context if isinstance(context, str) else None,
    )


def _shown(variant: str, row: Mapping[Hashable, Any]) -> Shown:
    return Shown(
        variant,
        row[f"{variant}_output"],
        _paths(row.get(f"{variant}_images")),
        row["other_context_context"] if variant == "other_context" else None,
    )


def _paths(value: Any) -> tuple[str, ...]:
    """Paths of a column of lists, none for a null, which pandas may hold as NaN."""
    return () if value is None or isinstance(value, float) else tuple(value)
