"""Class folders, and checks of the labels from which questions are built.

Each label of each image becomes one multiple-choice question about the labels of its column and
modality (stages/corpus/formats/balance.py). Labels that contradict each other are refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.dataset.split_paths import SPLIT_NAMES
from stages.corpus.formats.balance import MAX_OPTIONS, Items, build_questions
from stages.corpus.formats.images import ImageFolder, image_files_below
from stages.corpus.formats.questions import (
    DIAGNOSIS,
    ConversionOptions,
    LabelledImage,
    Question,
    Refusal,
    SourceLocation,
)
from stages.corpus.quarantine.ledger import safe_text
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.records import FIELDS, OPTIONS, check_texts
from stages.corpus.records.texts import RefusedRecord

_CLASS: Final = "class"
_GENERAL: Final = frozenset({"images", "image", "imgs", "data", "dataset", "all"})
"""Names of folders that are no modalities."""

Labelled = LabelledImage | Refusal
Shown = tuple[tuple[str, ...], tuple[int, ...]]
"""Images of an entry and the slices it is about."""


class ClassFolders:
    """Reader of `<modality>/<label>/*.png`, or `<label>/*.png` with a modality in the options."""

    name = "class-folders"
    description = "class folders (<modality>/<label>/*.png, or <label>/*.png)"

    def detects(self, path: Path) -> bool:
        """Whether a folder has images in folders of its folders, or in its folders."""
        if not path.is_dir():
            return False
        return any(_depth(path, file) in (2, 3) for file in image_files_below(path))

    def read(self, path: Path, options: ConversionOptions) -> Iterator[Question | Refusal]:
        """One question per image, in the order of paths.

        Raises InputError if it is unclear what the folders' names are.
        """
        files = image_files_below(path)
        depths = Counter(_depth(path, file) for file in files if _depth(path, file) > 1)
        depth = max(depths, key=lambda each: depths[each], default=1)
        tops = {file.relative_to(path).parts[0] for file in files if _depth(path, file) == depth}
        are_splits = {top.casefold() for top in tops} <= SPLIT_NAMES | _GENERAL
        if depth == 2 and options.modality is None:
            raise InputError(
                f"{path} holds folders of images, {', '.join(sorted(tops)[:5])}: name the modality"
                " of the images with --modality, or put the folders into one per modality"
            )
        if depth == 3 and are_splits == (options.modality is None):
            names = ", ".join(sorted(tops)[:5])
            raise InputError(
                f"{path} holds folders of folders of images, {names}: name the modality of the"
                " images with --modality if these are splits or the like, and only then"
            )
        dataset = options.dataset or path.resolve().name
        yield from balanced_questions(
            [_of_file(path, file, depth, dataset, options) for file in files], options
        )


def _depth(root: Path, file: Path) -> int:
    """Parts of a file's path: 2 in `<label>/a.png`."""
    return len(file.relative_to(root).parts)


def _of_file(
    root: Path, file: Path, depth: int, dataset: str, options: ConversionOptions
) -> Labelled:
    name = file.relative_to(root).as_posix()
    location = SourceLocation(name)
    parts = name.split("/")
    if len(parts) != depth:
        why = f"an image at another depth than in {'/'.join(['*'] * (depth - 1))}/"
        return Refusal(location, safe_text(name), why, Reason.IMAGE_PATH)
    try:
        image = ImageFolder(root).find(name)
    except RefusedRecord as error:
        return Refusal.of(location, error)
    return LabelledImage(
        location=location,
        dataset=dataset,
        modality=options.modality or parts[0],
        question_type=options.question_type or DIAGNOSIS,
        column=_CLASS,
        label=parts[-2].strip(),
        images=(image,),
    )


def balanced_questions(
    entries: Sequence[Labelled], options: ConversionOptions
) -> Iterator[Question | Refusal]:
    """Questions about the labelled images, and the refusals, in the order of the entries."""
    vocabularies: defaultdict[tuple[str, str], dict[int, LabelledImage]] = defaultdict(dict)
    results: dict[int, Question | Refusal] = {}
    for position, entry in enumerate(entries):
        if isinstance(entry, Refusal):
            results[position] = entry
        else:
            vocabularies[entry.modality, entry.column][position] = entry
    for items in vocabularies.values():
        refusals = _unusable(items)
        # the first reason counts: labels that are unusable contradict nothing
        for find in (_repeated, _variants):
            refusals |= find(_without(items, refusals))
        refusals |= _single(_without(items, refusals))
        results |= refusals
        results |= build_questions(_without(items, refusals), options)
    for position in range(len(entries)):
        yield results[position]


def _without(items: Items, refusals: Mapping[int, Refusal]) -> dict[int, LabelledImage]:
    return {position: item for position, item in items.items() if position not in refusals}


def _unusable(items: Items) -> dict[int, Refusal]:
    """Labels that no question can offer, at some letter: they would spoil those of others."""
    errors: dict[str, RefusedRecord | None] = {}
    refusals = {}
    for position, item in items.items():
        if item.label not in errors:
            errors[item.label] = _label_error(item.label)
        if error := errors[item.label]:
            refusals[position] = Refusal.of(item.location, error)
    return refusals


def _label_error(label: str) -> RefusedRecord | None:
    for position in range(MAX_OPTIONS):
        texts = [f"other option {number}" for number in range(MAX_OPTIONS)]
        texts[position] = label
        record = dict.fromkeys(FIELDS, "x") | {"gt_answer": label, "image_path": f"{IMAGES}x"}
        try:
            check_texts(record | dict(zip(OPTIONS, texts, strict=False)))
        except RefusedRecord as error:
            return error
    return None


def _repeated(items: Items) -> dict[int, Refusal]:
    """Images with two labels in one column, and all but the first of equal entries."""
    first: dict[Shown, int] = {}
    labels: defaultdict[Shown, set[str]] = defaultdict(set)
    for position, item in items.items():
        first.setdefault(_shown(item), position)
        labels[_shown(item)].add(item.label)
    refusals = {}
    for position, item in items.items():
        found = sorted(labels[_shown(item)])
        names = ", ".join(map(repr, item.image_names))
        several = len(item.image_names) > 1
        subject = f"the images {names} have" if several else f"the image {names} has"
        if len(found) > 1:
            why = f"{subject} several labels in one column: {found}"
            refusals[position] = _refusal(item, why, Reason.ANSWER_AMBIGUOUS)
        elif first[_shown(item)] != position:
            where = items[first[_shown(item)]].location
            why = f"{subject} this label already; kept: {where}"
            refusals[position] = _refusal(item, why, Reason.DUPLICATE_ID)
    return refusals


def _shown(item: LabelledImage) -> Shown:
    return item.image_names, item.slices


def _variants(items: Items) -> dict[int, Refusal]:
    """Labels that differ only in case or blanks: it is unknown whether one is meant or two."""
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for item in items.values():
        spellings[_folded(item.label)].add(item.label)
    refusals = {}
    for position, item in items.items():
        found = sorted(spellings[_folded(item.label)])
        if len(found) > 1:
            why = f"labels that differ only in case or blanks: {found}; write one of them"
            refusals[position] = _refusal(item, why, Reason.OPTIONS_EQUAL)
    return refusals


def _folded(label: str) -> str:
    return " ".join(label.replace("_", " ").replace("-", " ").split()).casefold()


def _single(items: Items) -> dict[int, Refusal]:
    """All images, if they have one label only: a question needs another option."""
    if len({item.label for item in items.values()}) != 1:
        return {}
    why = "the only label of {} in {}: a question needs at least two"
    return {
        position: _refusal(item, why.format(item.column, item.modality), Reason.OPTION_COUNT)
        for position, item in items.items()
    }


def _refusal(item: LabelledImage, why: str, reason: Reason | None) -> Refusal:
    return Refusal(item.location, safe_text(item.label), why, reason)
