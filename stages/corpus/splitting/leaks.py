"""Leakage: test questions whose image, or an image of the same group, is in train."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, astuple, dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.core.outputs import read_json
from stages.corpus.dataset.split_files import KINDS, images_of
from stages.corpus.splitting.draws import Draw, Item, Split, splits_of
from stages.corpus.splitting.groups import GroupedImage
from stages.taxonomy import AXIS_NAMES


@dataclass(frozen=True)
class Leak:
    """Test questions of one or more splits, and how many leak from train, by kind of leak."""

    test: int
    """All test questions."""
    image: int
    """Those whose image is also in train of the same split."""
    group: int
    """Those with an image of the same group in train: it, a copy, or one of the same patient."""
    other_axis: int
    """Those that are training questions on the other axis."""


_REMEDY: Final = "run `dvc repro splits`"
PATIENTS: Final = "patients"
"""Key of leaks.json for the known patients by data set."""
Leaks = dict[str, dict[str, Leak]]
"""Axis -> slug -> leak counts."""


def count_leaks(folds: Sequence[Draw], group_of: Mapping[str, str]) -> Leaks:
    """Count the leaks of each split; `group_of` is image -> group.

    `folds`: the draws of a cross-validation, whose counts are added up, or one draw.
    """
    counted = [_count_of_draw(fold, group_of) for fold in folds]
    return {
        axis: {slug: total(each[axis][slug] for each in counted) for slug in slugs}
        for axis, slugs in counted[0].items()
    }


def _count_of_draw(draw: Draw, group_of: Mapping[str, str]) -> Leaks:
    # axis -> ids of the questions that any of its checkpoints is trained on
    trained: dict[str, set[str]] = defaultdict(set)
    for split in splits_of(draw):
        trained[split.axis].update(item["question_id"] for item in split.train)
    leaks: Leaks = {axis: {} for axis in draw}
    for split in splits_of(draw):
        elsewhere = set().union(*(ids for axis, ids in trained.items() if axis != split.axis))
        leaks[split.axis][split.slug] = _count(split, group_of, elsewhere)
    return leaks


def total(leaks: Iterable[Leak]) -> Leak:
    """The sum over splits."""
    columns = zip(astuple(Leak(0, 0, 0, 0)), *map(astuple, leaks), strict=True)
    return Leak(*map(sum, columns))


def as_json(leaks: Leaks) -> dict[str, dict[str, dict[str, int]]]:
    """The counts in the form of leaks.json."""
    return {
        axis: {slug: asdict(leak) for slug, leak in slugs.items()} for axis, slugs in leaks.items()
    }


@dataclass(frozen=True)
class KnownPatients:
    """Images of a data set, and those of them whose patient is known."""

    images: int
    known: int


def count_patients(images: Iterable[GroupedImage]) -> dict[str, KnownPatients]:
    """Data set -> for how many of its images the patient is known."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for image in images:
        counts[image.dataset].append(image.patient is not None)
    return {name: KnownPatients(len(known), sum(known)) for name, known in sorted(counts.items())}


def all_patients(patients: Mapping[str, KnownPatients]) -> KnownPatients:
    """The same for all data sets."""
    every = patients.values()
    return KnownPatients(sum(each.images for each in every), sum(each.known for each in every))


def read_patients(path: Path) -> dict[str, KnownPatients]:
    """Data set -> known patients, from the file of stage splits; InputError as `read_leaks`."""
    tree = read_json(path, _REMEDY)
    try:
        return {name: KnownPatients(**each) for name, each in tree[PATIENTS].items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} has no counts of patients ({error!r}): {_REMEDY}") from error


def read_leaks(path: Path) -> dict[str, Leaks]:
    """Kind of split -> its counts, from the file of stage splits.

    InputError if it is missing or malformed.
    """
    tree = read_json(path, _REMEDY)
    try:
        return {
            kind: {
                axis: {slug: Leak(**leak) for slug, leak in tree[kind][axis].items()}
                for axis in AXIS_NAMES
            }
            for kind in KINDS
            if kind in tree
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a file of leak counts ({error!r}): {_REMEDY}") from error


def _images(item: Item) -> set[str]:
    """The images of a question; of a volume also its own, beside the frames that are shown."""
    return {item["image"], *images_of(item)}


def _count(split: Split, group_of: Mapping[str, str], elsewhere: Set[str]) -> Leak:
    images = set(chain.from_iterable(_images(item) for item in split.train))
    groups = {group_of[item["image"]] for item in split.train}
    return Leak(
        test=len(split.test),
        image=sum(not images.isdisjoint(_images(item)) for item in split.test),
        group=sum(group_of[item["image"]] in groups for item in split.test),
        other_axis=sum(item["question_id"] in elsewhere for item in split.test),
    )
