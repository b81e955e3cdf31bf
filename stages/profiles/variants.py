"""Answers of an evaluation by variant of its questions, each with the images that it shows.

Counted from test questions where these are known, else expected from the size of a corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from stages.core.params import Params
from stages.generation.variants import REAL, build_questions
from stages.predictions.schema import VARIANTS
from stages.profiles.schema import Scale
from stages.profiles.shown import shapes_of
from stages.reporting.labels import VARIANT_LABELS
from stages.scoring.contributions import AS_ASKED

NAMES: Final = (AS_ASKED, *VARIANTS)
"""Variants in the order in which they are printed, the question itself first."""


class Answers(NamedTuple):
    """Answers to questions in one variant, and the images that all their prompts show."""

    answers: float
    images: float

    @property
    def mean(self) -> float:
        """Images of a prompt."""
        return self.images / self.answers


AnswersByVariant = Mapping[str, Answers]
"""Variant of `NAMES` -> its answers; those that no question has are left out."""


def count_answers(items: Sequence[Mapping[str, Any]], params: Params) -> dict[str, Answers]:
    """The answers that stage evaluate asks one policy for, on these items of split files."""
    answers: Counter[str] = Counter()
    images: Counter[str] = Counter()
    for question in build_questions(
        items, params.prompt.style, ablations=params.evaluate.ablations
    ):
        for name, variant in question.variants.items():
            answers[name] += 1
            images[name] += len(variant.images)
    return {
        name: Answers(answers[key], images[key])
        for name in NAMES
        if answers[key := REAL if name == AS_ASKED else name]
    }


def expected_answers(params: Params, scale: Scale) -> dict[str, Answers]:
    """The same per question of a corpus of which only the size is known.

    Assumed: all have images, or a context, to exchange; as many of those about several images have
    a context as of the others.
    """
    total: dict[str, Answers] = {}
    for share, images in shapes_of(scale, params.volume):
        shown = {AS_ASKED: images}
        if params.evaluate.ablations:
            shown |= {"blank": images, "shuffled": images}
            if images > 1:
                shown |= {"removed": images - 1, "reordered": images, "middle": 1.0}
        counts = {name: Answers(share, share * number) for name, number in shown.items()}
        if params.evaluate.ablations and (context := share * scale.context_share):
            exchanged = Answers(context, context * images)
            counts |= {"no_context": exchanged, "other_context": exchanged}
        total = added([total, counts])
    return total


def added(counts: Iterable[AnswersByVariant]) -> dict[str, Answers]:
    """The sums of several counts."""
    total: dict[str, Answers] = {}
    for each in counts:
        for name, (answers, images) in each.items():
            before = total.get(name, Answers(0, 0))
            total[name] = Answers(before.answers + answers, before.images + images)
    return {name: total[name] for name in NAMES if name in total}


def describe_answers(counts: AnswersByVariant, digits: int = 0) -> str:
    """In words: as asked 120 (2.5 images each), black images 120 (2.5), without context 40 (1)."""
    parts: list[str] = []
    for name, count in counts.items():
        images = f"{count.mean:.3g}"
        unit = "" if parts else f" image{'s' * (images != '1')} each"
        parts.append(f"{VARIANT_LABELS[name]} {count.answers:,.{digits}f} ({images}{unit})")
    return ", ".join(parts)
