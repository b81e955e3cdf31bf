"""Taxonomy and matrix that fit a corpus: which of its words are known, and what it has data for.

Nothing is guessed silently: each word that params.yaml does not know is listed with the modality or
question type that it would be another name of, or that would be added for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from stages.corpus.archives.source import Corpus
from stages.corpus.inspection.inspect import Inspection
from stages.corpus.quarantine.reasons import UNKNOWN_NAME
from stages.corpus.records.reading import read_questions
from stages.taxonomy import Category, Taxonomy, Vocabulary

_MAX_SLUG: Final = 40
_MAX_PASSES: Final = 4
"""A record is refused for its first fault, so an unknown type shows when the modality is known."""


@dataclass(frozen=True)
class Word:
    """A word of the corpus that the taxonomy lacks, and what it becomes."""

    field: str
    word: str
    questions: int
    slug: str
    is_new: bool
    """Whether the slug is added; otherwise the word is another name of it."""

    def __str__(self) -> str:
        """As in messages."""
        use = "a new entry" if self.is_new else "another name of"
        return f"{self.word!r} ({self.questions} questions): {use} {self.slug}"


def learn_words(corpus: Corpus, taxonomy: Taxonomy) -> tuple[Taxonomy, list[Word]]:
    """The taxonomy with every word of the corpus, and the words that were added."""
    words: list[Word] = []
    for _ in range(_MAX_PASSES):
        reading = read_questions(corpus, taxonomy)
        unknown = {field: Counter[str]() for field in UNKNOWN_NAME}
        for field, reason in UNKNOWN_NAME.items():
            rows = (row.what.strip() for row in reading.rows if row.reason == reason)
            unknown[field].update(filter(None, rows))
        if not any(unknown.values()):
            break
        found = [
            *_place(unknown["modality_type"], taxonomy.modalities),
            *_place(unknown["question_type"], taxonomy.question_types),
        ]
        words += found
        taxonomy = Taxonomy(
            _with_words(taxonomy.modalities, found), _with_words(taxonomy.question_types, found)
        )
    return taxonomy, words


def groups_for(taxonomy: Taxonomy, inspection: Inspection) -> dict[str, dict[str, Any]]:
    """The groups of params.yaml for the modalities and question types that the corpus has.

    A checkpoint and an evaluation for each split with questions to train and to test.
    """
    questions = inspection.questions
    modalities = [slug for slug in taxonomy.modalities if any(slug == one for one, _ in questions)]
    kinds = [slug for slug in taxonomy.question_types if any(slug == one for _, one in questions)]
    checkpoints: dict[str, Any] = {}
    for axis, slugs in (("modality", modalities), ("task", kinds)):
        for slug in slugs:
            train, test = inspection.splits.get(axis, {}).get(slug, (0, 0))
            if train and test:
                images = f"data/images/{slug}" if axis == "modality" else "data/images"
                checkpoints[slug] = {
                    "axis": axis,
                    "split": slug,
                    "method": "grpo",
                    "images": images,
                    "start": "models/base",
                }
    return {
        "modalities": {slug: _settings(taxonomy.modalities, slug) for slug in modalities},
        "question_types": {slug: _settings(taxonomy.question_types, slug) for slug in kinds},
        "checkpoints": checkpoints,
        "evaluations": {
            "base": {"axis": "all"},
            **{name: {"axis": each["axis"]} for name, each in checkpoints.items()},
        },
    }


def _settings(vocabulary: Vocabulary, slug: str) -> dict[str, Any]:
    category = vocabulary.categories[slug]
    settings: dict[str, Any] = {"names": list(category.names)}
    return settings | ({"dicom": list(category.dicom)} if category.dicom else {})


def _place(counts: Mapping[str, int], vocabulary: Vocabulary) -> list[Word]:
    """What each unknown word becomes: a name of the slug that shares a word with it, or new."""
    words = []
    taken = set(vocabulary)
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        nearest = vocabulary.nearest_by_word(word)
        if nearest:
            words.append(Word(vocabulary.field, word, count, nearest, is_new=False))
            continue
        slug = _new_slug(word, taken)
        taken.add(slug)
        words.append(Word(vocabulary.field, word, count, slug, is_new=True))
    return words


def _new_slug(word: str, taken: set[str]) -> str:
    slug = "-".join(re.findall(r"[a-z0-9]+", word.casefold()))[:_MAX_SLUG].strip("-") or "other"
    number = 2
    unique = slug
    while unique in taken:
        unique = f"{slug[: _MAX_SLUG - 3]}-{number}"
        number += 1
    return unique


def _with_words(vocabulary: Vocabulary, words: list[Word]) -> Vocabulary:
    categories = dict(vocabulary.categories)
    for each in words:
        if each.field != vocabulary.field:
            continue
        known = categories.get(each.slug)
        if known is None:
            categories[each.slug] = Category((each.word,))
        elif each.word not in known.names:
            categories[each.slug] = replace(known, names=(*known.names, each.word))
    return Vocabulary(vocabulary.field, categories)
