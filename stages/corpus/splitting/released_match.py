"""Whether a released question and a record of the corpus are the same, and if not, why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum, unique
from typing import NamedTuple

from stages.corpus.dataset.paths import IMAGES
from stages.corpus.dataset.split_files import images_of
from stages.corpus.records.context import context_of
from stages.corpus.records.records import Record
from stages.corpus.splitting.drawing import make_item
from stages.corpus.splitting.released import ReleasedQuestion


@unique
class JoinFault(StrEnum):
    """Why a released question does not join, for programs to compare."""

    UNREADABLE = "unreadable"
    """Not an item with image, problem and solution."""
    IMAGE_MISSING = "image-missing"
    """No record of the corpus has this image, or it was refused (data/quarantine)."""
    QUESTION_MISSING = "question-missing"
    """The image has other questions in the corpus, or this one was refused."""
    OPTIONS_DIFFER = "options-differ"
    """The question has other options in the corpus, or the same ones in another order."""
    ANSWER_DIFFERS = "answer-differs"
    """The question has another answer in the corpus."""
    IMAGES_DIFFER = "images-differ"
    """The question shows other images in the corpus, more, fewer, or in another order."""
    CONTEXT_DIFFERS = "context-differs"
    """The question has another context in the corpus, or none."""
    REPEATED = "repeated"
    """The file has this question already."""
    MODALITY_DIFFERS = "modality-differs"
    """The file is of another modality than the record."""
    TWO_TYPES = "two-types"
    """Files of two question types have this question; the first one keeps it."""


class Miss(NamedTuple):
    """Why a question has no record."""

    fault: JoinFault
    found: str
    """What the corpus has instead."""


def path_forms(path: str) -> Iterator[str]:
    """A path, and what it is without what stands before an `Images/`."""
    yield path
    slash = "/"
    while slash:
        _, slash, below = f"/{path}".partition(f"/{IMAGES}")
        if slash:
            # a path that begins with Images/ and is none: what follows may have it once more
            path = below if path.startswith(IMAGES) else f"{IMAGES}{below}"
            yield path


def match_contents(question: ReleasedQuestion, of_image: Sequence[Record]) -> list[Record] | Miss:
    """The records of a question's image with its words, answer, further images and context."""
    if question.fault:
        return Miss(JoinFault.UNREADABLE, question.fault)
    if not of_image:
        return Miss(JoinFault.IMAGE_MISSING, "")
    asked = [each for each in of_image if _same(each.question, question.question)]
    if not asked:
        return Miss(JoinFault.QUESTION_MISSING, f"the corpus asks {of_image[0].question!r:.80}")
    offered = [each for each in asked if _same_options(each.options, question.options)]
    if not offered:
        options = " | ".join(asked[0].options)
        return Miss(JoinFault.OPTIONS_DIFFER, f"in the corpus: {options:.120}")
    answered = [each for each in offered if each.gold == question.gold]
    if not answered:
        return Miss(JoinFault.ANSWER_DIFFERS, f"in the corpus: {offered[0].gold}")
    shown = [each for each in answered if _shows(each, question)]
    if not shown:
        return Miss(JoinFault.IMAGES_DIFFER, _describe_images(answered[0]))
    known = [each for each in shown if _has_context(each, question)]
    if not known:
        # nothing of it is quoted: it is about a patient
        own = "no context" if shown[0].context is None else "another context"
        return Miss(JoinFault.CONTEXT_DIFFERS, f"in the corpus: {own}")
    return known


def _shows(record: Record, question: ReleasedQuestion) -> bool:
    """Whether a record shows the images that a released question says, if it says any.

    They may be the files that the record names, or the stored images as in our split files.
    """
    if question.slices and question.slices != record.slices:
        return False
    if not question.images:
        return True
    shown = images_of(make_item(record))
    return any(
        len(own) == len(question.images)
        and all(path in path_forms(each) for path, each in zip(own, question.images, strict=True))
        for own in (record.image_paths, shown)
    )


def _describe_images(record: Record) -> str:
    shown = len(images_of(make_item(record)))
    slices = f", slices {', '.join(map(str, record.slices))}" if record.slices else ""
    paths = ", ".join(record.image_paths)
    return f"in the corpus: {shown} image{'s' * (shown > 1)}{slices} of {paths:.120}"


def _has_context(record: Record, question: ReleasedQuestion) -> bool:
    """Whether a record has the context that a released question says, if it says any.

    A question may say some fields of it, or all as one text, as in our split files.
    """
    context = context_of(question.context)
    if context is None or (record.context is not None and _same(context, record.context)):
        return True

    def agrees(name: str) -> bool:
        released, own = (
            context_of({name: fields.get(name)}) for fields in (question.context, record.fields)
        )
        return released is not None and own is not None and _same(released, own)

    return all(map(agrees, question.context))


def _same(one: str, other: str) -> bool:
    """Whether two texts are equal but for white space, which forms of questions change."""
    return one == other or one.split() == other.split()


def _same_options(some: Sequence[str], others: Sequence[str]) -> bool:
    return len(some) == len(others) and all(map(_same, some, others))
