"""Settings that fit a corpus: which of its words are known, and what it has data for.

Nothing is guessed silently: each word that params.yaml does not know is listed with the modality or
question type that it would be another name of, or that would be added for it.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.core import layout
from stages.core.errors import InputError
from stages.core.params import MAX_CATEGORIES, Params, Volume, check_params, parse_settings
from stages.core.settings.categories import MAX_SLUG, RESERVED, SFT
from stages.core.yaml_files import read_text
from stages.corpus.archives.source import Corpus, open_corpus
from stages.corpus.inspection.inspect import Inspection, inspect
from stages.corpus.quarantine.ledger import tally
from stages.corpus.quarantine.limits import find_excess
from stages.corpus.quarantine.reasons import UNKNOWN_NAME
from stages.corpus.records.reading import find_images, read_questions
from stages.profiles.proposals.checkpoints import (
    Merged,
    evaluations_of,
    merge_existing,
    new_checkpoints,
)
from stages.profiles.proposals.image_settings import (
    Setting,
    as_params,
    fit_images,
    keep_one_slice,
    to_look_at,
)
from stages.profiles.schema import SAMPLE, load_profile, merge
from stages.profiles.splice import reset
from stages.taxonomy import Axes, Category, Taxonomy, Vocabulary, fold_slugs

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
    left_out: list[LeftOut]
    """Splits with too little data."""
    of_model: Params
    """Settings of params.yaml with the model that is to be trained."""
    too_much_refused: str | None
    """What exceeds the limits of stage download; None if nothing does."""
    folds: int | None = None
    """Of a cross-validation; None for one cut into train and test."""
    settings: list[Setting] = field(default_factory=list)
    """For the images of questions, and what follows from the corpus in other groups."""
    existing: Merged = field(default_factory=Merged)
    """What became of the checkpoints that params.yaml had."""

    @property
    def params(self) -> dict[str, Any]:
        """Keys of params.yaml to set, nested as there, beside `groups`."""
        return as_params(self.settings)

    @property
    def volume(self) -> Volume:
        """The group `volume` with these settings."""
        return self.of_model.volume.model_copy(update=self.params.get("volume", {}))

    @property
    def fitted(self) -> Params:
        """Settings of the model with those that are proposed for images and evaluations."""
        evaluate = self.of_model.evaluate.model_copy(update=self.params.get("evaluate", {}))
        return self.of_model.model_copy(update={"volume": self.volume, "evaluate": evaluate})


class LeftOut(NamedTuple):
    """A split with too little data, and its questions."""

    axis: str
    slug: str
    train: int
    test: int

    def __str__(self) -> str:
        """As in messages."""
        return f"{self.axis}/{self.slug}: {self.train} to train, {self.test} to test"


def propose(path: Path, folds: int | None = None, scale: str = SAMPLE) -> Proposal:
    """The settings for a corpus that the pipeline reads. InputError if it cannot be read.

    `folds`: of a cross-validation, for small data; `scale`: the profile whose model is trained.
    """
    current_text = read_text(layout.PARAMS)
    text, _ = reset(current_text, layout.PARAMS)
    tree = parse_settings(text, layout.PARAMS)
    current = parse_settings(current_text, layout.PARAMS)
    base = check_params(tree, layout.PARAMS)
    _, scaled = load_profile(scale)
    # checkpoints of splits that the corpus may lack
    rule = tree["retrain"] | {"never_worse": []}
    none = {"checkpoints": {}, "evaluations": {"base": {"axis": "all"}}, "retrain": rule}
    of_model = check_params(merge(tree | none, scaled.params), layout.PARAMS)
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
        params = base
        if found:
            fitting: dict[str, Any] = {"retrain": rule}
            own = groups
            if folds:
                own = groups | with_folds(groups, folds)
                fitting["splits"] = tree["splits"] | {"folds": folds}
            params = check_params(tree | own | fitting, layout.PARAMS)
        inspection, settings = _inspect(corpus, params, of_model)
    left_out = []
    for axis, slugs in inspection.splits.items():
        for slug, (train, test) in slugs.items():
            if train < params.matrix.min_train or test < params.matrix.min_test:
                left_out.append(LeftOut(axis, slug, train, test))
                groups["checkpoints"].pop(slug, None)
    existing = merge_existing(
        groups["checkpoints"],
        current["checkpoints"],
        tree["checkpoints"],
        tree["splits"].get("joint", {}),
        params.taxonomy.axes,
    )
    groups["checkpoints"] = existing.checkpoints
    groups["evaluations"] = evaluations_of(existing.checkpoints, tree["evaluations"])
    if folds:
        groups |= with_folds(groups, folds)
    settings += _other_settings(tree, groups, params.taxonomy.axes, of_model)
    refused = excess and excess[0]
    return Proposal(
        inspection, words, groups, left_out, of_model, refused, folds, settings, existing
    )


def _inspect(corpus: Corpus, params: Params, of_model: Params) -> tuple[Inspection, list[Setting]]:
    """The corpus with the settings that its volumes and lists of images need, and these."""
    looking = params.model_copy(update={"volume": to_look_at(params.volume)})
    inspection = inspect(corpus, looking)
    settings = fit_images(inspection, of_model)
    volume = params.volume.model_copy(update=as_params(settings).get("volume", {}))
    is_as_seen = (volume.plane, volume.several) == (params.volume.plane, False)
    if not inspection.volumes or is_as_seen:
        return inspection, settings
    with_slices = inspect(corpus, params.model_copy(update={"volume": volume}))
    refused = inspection.usable - with_slices.usable
    limit = params.quarantine.max_refused_share * inspection.read
    if refused >= params.quarantine.min_refused and refused > limit:
        return inspection, keep_one_slice(settings, params.volume, refused, inspection.usable)
    return with_slices, settings


def _other_settings(
    tree: dict[str, Any], groups: dict[str, dict[str, Any]], axes: Axes, of_model: Params
) -> list[Setting]:
    """Variants that evaluations ask, and cells that the corpus lacks."""
    reason = (
        "the report then shows what images, their number and order, and the context are worth"
        " (docs/scoring.md)"
    )
    old = of_model.evaluate.ablations
    settings = [Setting("evaluate", "ablations", True, old, reason)]
    cells = tree["retrain"]["never_worse"]
    names: set[str] = set()
    for name, each in groups["checkpoints"].items():
        names.update(f"{name}/{tested}" for tested in axes[each["axis"]])
    present = [cell for cell in cells if cell in names]
    if present != cells:
        reason = "the corpus has no other cells of them"
        settings.append(Setting("retrain", "never_worse", present, cells, reason))
    return settings


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
        raise InputError(_too_little(proposal))


def _too_little(proposal: Proposal) -> str:
    """Which splits have how many questions, what they need, and what to do."""
    matrix = proposal.of_model.matrix
    own = [each for each in proposal.left_out if each.train or each.test]
    sizes = "; ".join(map(str, own))
    images = sum(proposal.inspection.images.values())
    remedy = "add images, of other patients where they are known"
    if matrix.min_train > 1 or matrix.min_test > 1:
        remedy += ", or lower matrix in params.yaml"
    return (
        "no modality and no question type has enough questions: a split needs"
        f" {matrix.min_train} to train (matrix.min_train) and {matrix.min_test} to test"
        f" (matrix.min_test), and there are {sizes}. Train and test share no image, no copy of one"
        f" and no patient, and the corpus has {images} image{'s' * (images != 1)}: {remedy}"
    )


def learn_words(corpus: Corpus, taxonomy: Taxonomy) -> tuple[Taxonomy, list[Word]]:
    """The taxonomy with every word of the corpus, and the words that were added."""
    words: list[Word] = []
    for _ in range(_MAX_PASSES):
        reading = read_questions(corpus, taxonomy)
        unknown = {name: Counter[str]() for name in UNKNOWN_NAME}
        for name, reason in UNKNOWN_NAME.items():
            rows = (row.what.strip() for row in reading.rows if row.reason == reason)
            unknown[name].update(filter(None, rows))
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
    checkpoints = new_checkpoints({"modality": modalities, "task": kinds})
    return {
        "modalities": {slug: _settings(taxonomy.modalities, slug) for slug in modalities},
        "question_types": {slug: _settings(taxonomy.question_types, slug) for slug in kinds},
        "checkpoints": checkpoints,
        "evaluations": evaluations_of(checkpoints),
    }


def with_folds(groups: Mapping[str, dict[str, Any]], folds: int) -> dict[str, dict[str, Any]]:
    """Checkpoints and evaluations for each fold of a cross-validation, instead of each split."""
    checkpoints: dict[str, Any] = {}
    for name, each in groups["checkpoints"].items():
        pairs = zip(fold_slugs(name, folds), fold_slugs(each["split"], folds), strict=True)
        checkpoints |= {own: {**each, "split": split} for own, split in pairs}
    return {"checkpoints": checkpoints, "evaluations": evaluations_of(checkpoints)}


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
