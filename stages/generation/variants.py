"""Variants of questions: how much an answer owes to the images, their order and the context.

Each is drawn by a hash of paths, contexts or the question's id: the same on any machine, and of the
same questions whatever their order. A variant that a question cannot have is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, Final, TypeVar

from stages.corpus.dataset.split_files import images_of
from stages.generation.windows import BLANK, Question, Variant, images_rank
from stages.prompts.styles import Style, prompt_text

REAL: Final = "real"
"""Name of the question itself among its variants."""

Images = tuple[str, ...]
"""Paths of the images of a question, in order."""

Each = TypeVar("Each")


def build_questions(
    items: Sequence[Mapping[str, Any]], style: Style, *, ablations: bool
) -> list[Question]:
    """The items of split files as questions; with `ablations` in all variants they can have."""
    shuffled = shuffled_images(items) if ablations else {}
    others = other_contexts(items) if ablations else {}
    questions = []
    for item in items:
        own = images_of(item)
        context = item.get("context")
        images = {REAL: own}
        contexts: dict[str, str | None] = {}
        if ablations:
            images |= image_variants(own, item["question_id"], shuffled.get(own))
        if ablations and context:
            contexts["no_context"] = None
            if (item["modality"], context) in others:
                contexts["other_context"] = others[item["modality"], context]
        words = prompt_text(item["problem"], style, "evaluate", context)
        variants = {name: Variant(words, shown) for name, shown in images.items()}
        for name, replaced in contexts.items():
            other_words = prompt_text(item["problem"], style, "evaluate", replaced)
            variants[name] = Variant(other_words, own)
        questions.append(Question(variants, item["modality"]))
    return questions


def image_variants(images: Images, question_id: str, partner: Images | None) -> dict[str, Images]:
    """Variant -> what it shows in place of `images`; `partner`: the images to exchange them for."""
    variants = {"blank": (BLANK,) * len(images)}
    if partner is not None:
        variants["shuffled"] = partner
    if len(images) > 1:
        variants["removed"] = without_one(images, question_id)
        if len(set(images)) > 1:
            variants["reordered"] = reordered(images, question_id)
        variants["middle"] = (images[len(images) // 2],)
    return variants


def shuffled_images(items: Iterable[Mapping[str, Any]]) -> dict[Images, Images]:
    """Images of a question -> as many of another one of its modality.

    They are the next in a fixed random cycle of those that differ in more than their order. Without
    such a partner there is no entry.
    """
    groups: dict[tuple[str, int], set[Images]] = {}
    for item in items:
        images = images_of(item)
        groups.setdefault((item["modality"], len(images)), set()).add(images)
    partner: dict[Images, Images] = {}
    for _, distinct in sorted(groups.items()):
        partner |= _next_in_cycle(sorted(distinct, key=images_rank), key=sorted)
    return partner


def other_contexts(items: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Modality and context -> another context of the modality, the next in a fixed random cycle.

    The only context of a modality has no entry.
    """
    groups: dict[str, set[str]] = {}
    for item in items:
        if context := item.get("context"):
            groups.setdefault(item["modality"], set()).add(context)
    partner: dict[tuple[str, str], str] = {}
    for modality, distinct in groups.items():
        following = _next_in_cycle(sorted(distinct, key=_digest), key=str)
        partner |= {(modality, context): other for context, other in following.items()}
    return partner


def without_one(images: Images, question_id: str) -> Images:
    """All images but one, which a hash of the question's id picks."""
    removed = int.from_bytes(_digest(f"removed {question_id}")) % len(images)
    return (*images[:removed], *images[removed + 1 :])


def reordered(images: Images, question_id: str) -> Images:
    """Images, of which at least two differ, in another order: a hash of the id draws it."""
    orders = (_drawn_order(images, f"reordered {question_id} {attempt}") for attempt in count())
    return next(order for order in orders if order != images)


def _drawn_order(images: Images, seed: str) -> Images:
    places = sorted(range(len(images)), key=lambda place: _digest(f"{seed} {place}"))
    return tuple(images[place] for place in places)


def _next_in_cycle(ranked: Sequence[Each], key: Callable[[Each], object]) -> dict[Each, Each]:
    """Each -> the next one, around the end, whose `key` is another; those without have no entry."""
    following: dict[Each, Each] = {}
    for at, each in enumerate(ranked):
        own = key(each)
        candidates = (ranked[(at + step) % len(ranked)] for step in range(1, len(ranked)))
        other = next((other for other in candidates if key(other) != own), None)
        if other is not None:
            following[each] = other
    return following


def _digest(words: str) -> bytes:
    return hashlib.sha256(words.encode()).digest()
