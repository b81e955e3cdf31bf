"""Settings that fit a corpus: which of its words are known, and what it has data for.

Nothing is guessed silently: each word that params.yaml does not know is listed with the modality or
question type that it would be another name of, or that would be added for it.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.errors import InputError
from stages.core.params import MAX_CATEGORIES, check_params, parse_settings
from stages.core.settings.categories import MAX_SLUG, RESERVED, SFT
from stages.core.yaml_files import read_text
from stages.corpus.archives.source import Corpus, open_corpus
from stages.corpus.inspection.inspect import Inspection, inspect
from stages.corpus.quarantine.ledger import tally
from stages.corpus.quarantine.limits import find_excess
from stages.corpus.quarantine.reasons import UNKNOWN_NAME
from stages.corpus.records.reading import find_images, read_questions
from stages.profiles.splice import reset
from stages.taxonomy import Category, Taxonomy, Vocabulary, fold_slugs

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
    similar: str | None = None
    """A known slug that a new one is spelled like."""

    def __str__(self) -> str:
        """As in messages."""
        use = f"a new entry {self.slug}" if self.is_new else f"another name of {self.slug}"
        hint = f"; did you mean {self.similar}? Then correct the corpus" if self.similar else ""
        return f"{self.word!r} ({self.questions} questions): {use}{hint}"


@dataclass(frozen=True)
class Proposal:
    """What a corpus needs: its inspection, words that params.yaml lacks, and the groups to set."""

    inspection: Inspection
    words: list[Word]
    groups: dict[str, dict[str, Any]]
    left_out: list[str]
    """Splits with too little data, and their sizes."""
    too_much_refused: str | None
    """What exceeds the limits of stage download; None if nothing does."""
    folds: int | None = None
    """Of a cross-validation; None for one cut into train and test."""


def propose(path: Path, folds: int | None = None) -> Proposal:
    """The settings for a corpus that the pipeline reads. InputError if it cannot be read.

    `folds`: of a cross-validation, for small data.
    """
    text, _ = reset(read_text(layout.PARAMS), layout.PARAMS)
    tree = parse_settings(text, layout.PARAMS)
    base = check_params(tree, layout.PARAMS)
    with (
        tempfile.TemporaryDirectory(prefix="use-") as scratch,
        open_corpus(path, base.corpus.limits, Path(scratch)) as corpus,
    ):
        taxonomy, words = learn_words(corpus, base.taxonomy)
        reading, _ = find_images(corpus, read_questions(corpus, taxonomy))
        datasets = [record.dataset for record in reading.records]
        quarantine = tally("download", reading.read, datasets, reading.rows)
        excess = find_excess(quarantine, base.quarantine)
        found = Counter((record.modality, record.question_type) for record in reading.records)
        groups = groups_for(taxonomy, found)
        for name in ("modalities", "question_types"):
            if len(groups[name]) > MAX_CATEGORIES:
                raise InputError(
                    f"{path} has {len(groups[name])} {name.replace('_', ' ')}, at most"
                    f" {MAX_CATEGORIES} are possible: merge some in the corpus"
                )
        if not found:
            params = base
        else:
            # cells of the sample that the corpus may lack
            rule = tree["retrain"] | {"never_worse": []}
            params = check_params(tree | groups | {"retrain": rule}, layout.PARAMS)
            if folds:
                groups |= with_folds(groups, folds)
                splits = tree["splits"] | {"folds": folds}
                fitting = {"splits": splits, "retrain": rule}
                params = check_params(tree | groups | fitting, layout.PARAMS)
        inspection = inspect(corpus, params)
    left_out = []
    for axis, slugs in inspection.splits.items():
        for slug, (train, test) in slugs.items():
            if train >= params.matrix.min_train and test >= params.matrix.min_test:
                continue
            left_out.append(f"{axis}/{slug}: {train} to train, {test} to test")
            for name in [slug, *fold_slugs(slug, folds or 0)]:
                groups["checkpoints"].pop(name, None)
                groups["evaluations"].pop(name, None)
    refused = excess and excess[0]
    return Proposal(inspection, words, groups, left_out, refused, folds)


def check_usable(proposal: Proposal) -> None:
    """InputError if a run with the proposed settings would stop before a training."""
    if not proposal.inspection.usable:
        raise InputError("no record can be used, see above: correct the corpus")
    if proposal.too_much_refused:
        raise InputError(
            f"stage download would refuse too many records: {proposal.too_much_refused}. Correct"
            " them as the findings above say, and repeat the command. To train on the rest only,"
            " raise the limit in params.yaml (docs/ingest-quality.md)"
        )
    stops = [each.kind for each in proposal.inspection.findings if each.level == "stops"]
    if stops:
        raise InputError(f"stage splits would refuse this corpus, see above: {', '.join(stops)}")
    if not proposal.groups["checkpoints"]:
        raise InputError(
            "no modality and no question type has enough questions to train and to test: add images"
        )


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
        taken = {*taxonomy.modalities, *taxonomy.question_types, *RESERVED}
        found = [
            *_place(unknown["modality_type"], taxonomy.modalities, taken),
            *_place(unknown["question_type"], taxonomy.question_types, taken),
        ]
        words += found
        taxonomy = Taxonomy(
            _with_words(taxonomy.modalities, found), _with_words(taxonomy.question_types, found)
        )
    return taxonomy, words


def groups_for(
    taxonomy: Taxonomy, questions: Mapping[tuple[str, str], int]
) -> dict[str, dict[str, Any]]:
    """Groups of params.yaml for the modalities and question types that have `questions`.

    A checkpoint and an evaluation for each of them.
    """
    modalities = [slug for slug in taxonomy.modalities if any(slug == one for one, _ in questions)]
    kinds = [slug for slug in taxonomy.question_types if any(slug == one for _, one in questions)]
    checkpoints: dict[str, Any] = {}
    for axis, slugs in (("modality", modalities), ("task", kinds)):
        for slug in slugs:
            checkpoints[slug] = {
                "axis": axis,
                "split": slug,
                "method": "grpo",
                "images": f"data/images/{slug}" if axis == "modality" else "data/images",
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


def with_folds(groups: Mapping[str, dict[str, Any]], folds: int) -> dict[str, dict[str, Any]]:
    """Checkpoints and evaluations for each fold of a cross-validation, instead of each split."""
    checkpoints: dict[str, Any] = {}
    for name, each in groups["checkpoints"].items():
        pairs = zip(fold_slugs(name, folds), fold_slugs(each["split"], folds), strict=True)
        checkpoints |= {own: {**each, "split": split} for own, split in pairs}
    evaluations = {name: {"axis": each["axis"]} for name, each in checkpoints.items()}
    return {"checkpoints": checkpoints, "evaluations": {"base": {"axis": "all"}, **evaluations}}


def _settings(vocabulary: Vocabulary, slug: str) -> dict[str, Any]:
    category = vocabulary.categories[slug]
    settings: dict[str, Any] = {"names": list(category.names)}
    return settings | ({"dicom": list(category.dicom)} if category.dicom else {})


def _place(counts: Mapping[str, int], vocabulary: Vocabulary, taken: set[str]) -> list[Word]:
    """What each unknown word becomes: a name of the slug that shares a word with it, or new.

    Spellings that differ in case only are of one slug; new slugs are added to `taken`.
    """
    words = []
    new: dict[str, str] = {}
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        folded = word.casefold()
        known = vocabulary.spelled(folded) or vocabulary.nearest_by_word(word)
        if known:
            words.append(Word(vocabulary.field, word, count, known, is_new=False))
            continue
        if folded not in new:
            new[folded] = _new_slug(word, vocabulary.field, taken)
            taken.add(new[folded])
        similar = vocabulary.nearest(word)
        words.append(Word(vocabulary.field, word, count, new[folded], is_new=True, similar=similar))
    return words


def _new_slug(word: str, field: str, taken: set[str]) -> str:
    slug = "-".join(re.findall(r"[a-z0-9]+", word.casefold()))[: MAX_SLUG - 3].strip("-")
    slug = slug.removeprefix(SFT) or field.partition("_")[0]
    number = 2
    unique = slug
    while unique in taken:
        unique = f"{slug}-{number}"
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
