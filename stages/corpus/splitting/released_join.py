"""Join released questions to the records of the corpus, by image path and question.

A question that joins keeps its released text and letters; its image, id and data set are the
record's. Every other one is listed with its fault: nothing is matched by resemblance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum, unique
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.corpus.dataset.paths import IMAGES
from stages.corpus.quarantine.ledger import safe_text
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError
from stages.corpus.records.records import Record
from stages.corpus.splitting.drawing import make_item
from stages.corpus.splitting.draws import Draw, Item
from stages.corpus.splitting.released import Released, ReleasedFile, ReleasedQuestion
from stages.taxonomy import AXIS_NAMES, Axes

NONE_RELEASED: Final[dict[str, Any]] = {
    "folder": None,
    "files": [],
    "unused": [],
    "other_types": 0,
    "records_unused": 0,
    "in_train_and_test": {},
    "not_joined": [],
}
"""The content of data/released.json if no split files of others are used."""
_EXCERPT: Final = 120


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
    REPEATED = "repeated"
    """The file has this question already."""
    MODALITY_DIFFERS = "modality-differs"
    """The file is of another modality than the record."""
    TWO_TYPES = "two-types"
    """Files of two question types have this question; the first one keeps it."""


@dataclass(frozen=True)
class NotJoined:
    """A released question that does not join: where it is, and what the corpus has instead."""

    file: str
    index: int
    """From 0, as in the file's list."""
    image: str
    problem: str
    fault: JoinFault
    found: str

    def __str__(self) -> str:
        """As in messages."""
        found = f" ({self.found})" if self.found else ""
        return f"{self.file}, item {self.index}, {self.image!r}: {self.fault}{found}"


@dataclass(frozen=True)
class JoinedFile:
    """A file with its questions that join, as items of a split, in its order."""

    file: ReleasedFile
    items: tuple[Item, ...]
    not_joined: tuple[NotJoined, ...]

    @property
    def lost(self) -> float:
        """Share of its questions that do not join."""
        return len(self.not_joined) / max(len(self.file.questions), 1)


@dataclass(frozen=True)
class Joined:
    """All files joined."""

    files: tuple[JoinedFile, ...]
    other_types: int
    """Questions whose type is another one in the corpus; the released one is used."""
    records_unused: int
    """Records of the corpus that are in none of the files."""

    def draw(self, axes: Axes) -> Draw:
        """The splits; one without a file has no questions on that side."""
        sides: dict[tuple[str, str, str], Sequence[Item]] = {
            (each.file.axis, each.file.slug, each.file.part): each.items for each in self.files
        }
        return {
            axis: {
                slug: (sides.get((axis, slug, "train"), ()), sides.get((axis, slug, "test"), ()))
                for slug in slugs
            }
            for axis, slugs in axes.items()
        }


def join(released: Released, records: Sequence[Record]) -> Joined:
    """Join all files to valid records."""
    index = _Index(records)
    taken = _Taken({}, {axis: set() for axis in AXIS_NAMES})
    # question types first: an item of the other axis has the released type too
    by_path = {
        file.path: _join_file(file, index, taken)
        for file in sorted(released.files, key=lambda file: file.axis != "task")
    }
    typed = index.typed(taken.types)
    other = sum(taken.types[record.question_id] != record.question_type for record in typed)
    files = tuple(by_path[file.path] for file in released.files)
    items = chain.from_iterable(file.items for file in files)
    used = {item["question_id"] for item in items}
    return Joined(files, other, len(records) - len(used))


def check_joined(joined: Joined, max_lost: float, report: Path) -> None:
    """Raise RefusedDataError if more than this share of a file's questions does not join."""
    worst = max(joined.files, key=lambda each: each.lost)
    if worst.lost <= max_lost:
        return
    faults = Counter(str(each.fault) for each in worst.not_joined)
    counts = ", ".join(f"{name} {count}" for name, count in faults.most_common())
    raise RefusedDataError(
        f"{len(worst.not_joined)} of {len(worst.file.questions)} questions of {worst.file.path} do"
        f" not join the corpus ({counts}; first: {worst.not_joined[0]}), more than"
        f" splits.released.max_lost, {max_lost}: {report} lists them all. Use the corpus that the"
        " files were made from, correct them, or raise the limit",
        CorpusFault.RELEASED_SPLITS,
    )


def in_train_and_test(draw: Draw) -> dict[str, dict[str, list[str]]]:
    """Axis -> slug -> ids of questions that are in both parts of the split; only where any are."""
    both: dict[str, dict[str, list[str]]] = {}
    for axis, slugs in draw.items():
        for slug, (train, test) in slugs.items():
            ids = {item["question_id"] for item in train}
            if repeated := sorted(ids & {item["question_id"] for item in test}):
                both.setdefault(axis, {})[slug] = repeated
    return both


def joined_as_json(released: Released, joined: Joined, folder: str, draw: Draw) -> dict[str, Any]:
    """The content of data/released.json."""
    return {
        "folder": folder,
        "files": [
            {
                "path": each.file.path,
                "axis": each.file.axis,
                "split": each.file.slug,
                "part": each.file.part,
                "questions": len(each.file.questions),
                "joined": len(each.items),
                "sha256": each.file.digest,
            }
            for each in joined.files
        ],
        "unused": [asdict(each) for each in released.unused],
        "other_types": joined.other_types,
        "records_unused": joined.records_unused,
        "in_train_and_test": in_train_and_test(draw),
        "not_joined": [
            asdict(lost) for lost in chain.from_iterable(each.not_joined for each in joined.files)
        ],
    }


class _Index:
    """Records by image path, that of the corpus and that of the resized image."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._by_image: dict[str, list[Record]] = defaultdict(list)
        self._by_id: dict[str, Record] = {}
        for record in records:
            self._by_id[record.question_id] = record
            for path in {record.image_path, record.fields["image"]}:
                self._by_image[path].append(record)

    def of_image(self, path: str) -> list[Record]:
        """The records of an image; what stands before an `Images/` in a path is not compared."""
        while path not in self._by_image:
            _, slash, below = f"/{path}".partition(f"/{IMAGES}")
            if not slash:
                return []
            # a path that begins with Images/ and is none: what follows may have it once more
            path = below if path.startswith(IMAGES) else f"{IMAGES}{below}"
        return self._by_image[path]

    def typed(self, types: Mapping[str, str]) -> list[Record]:
        """The records that have a released type."""
        return [self._by_id[question_id] for question_id in types]


class _Taken(NamedTuple):
    """Records that files have joined so far."""

    types: dict[str, str]
    """question_id -> the question type that a file gave it."""
    ids: dict[str, set[str]]
    """Axis -> the ids that its files have joined."""


def _join_file(file: ReleasedFile, index: _Index, taken: _Taken) -> JoinedFile:
    """Join one file, and add to what is taken."""
    items: list[Item] = []
    lost: list[NotJoined] = []
    used: set[str] = set()
    for question in file.questions:
        match = _find(question, file, index, used, taken)
        if isinstance(match, _Miss):
            image, problem = (
                safe_text(text[:_EXCERPT]) for text in (question.image, question.problem)
            )
            fault, found = match
            lost.append(NotJoined(file.path, question.index, image, problem, fault, found))
            continue
        record = match
        used.add(record.question_id)
        if file.axis == "task":
            taken.types[record.question_id] = file.slug
        items.append(
            {
                **make_item(record),
                "problem": question.problem,
                "solution": question.solution,
                "question_type": taken.types.get(record.question_id, record.question_type),
            }
        )
    taken.ids[file.axis] |= used
    return JoinedFile(file, tuple(items), tuple(lost))


class _Miss(NamedTuple):
    fault: JoinFault
    found: str
    """What the corpus has instead."""


def _find(
    question: ReleasedQuestion,
    file: ReleasedFile,
    index: _Index,
    used: set[str],
    taken: _Taken,
) -> Record | _Miss:
    """The record of a question of a file, none of `used`."""
    if question.fault:
        return _Miss(JoinFault.UNREADABLE, question.fault)
    of_image = index.of_image(question.image)
    if not of_image:
        return _Miss(JoinFault.IMAGE_MISSING, "")
    asked = [each for each in of_image if _same(each.question, question.question)]
    if not asked:
        return _Miss(JoinFault.QUESTION_MISSING, f"the corpus asks {of_image[0].question!r:.80}")
    offered = [each for each in asked if _same_options(each.options, question.options)]
    if not offered:
        options = " | ".join(asked[0].options)
        return _Miss(JoinFault.OPTIONS_DIFFER, f"in the corpus: {options:.120}")
    answered = [each for each in offered if each.gold == question.gold]
    if not answered:
        return _Miss(JoinFault.ANSWER_DIFFERS, f"in the corpus: {offered[0].gold}")
    unused = [each for each in answered if each.question_id not in used]
    if not unused:
        return _Miss(JoinFault.REPEATED, f"as {answered[0].question_id}")
    is_task = file.axis == "task"

    def other_type(record: Record) -> bool:
        return is_task and taken.types.get(record.question_id, file.slug) != file.slug

    # of equal records, one that is free, and that the corpus has under the same name
    record = min(
        unused,
        key=lambda each: (
            other_type(each),
            each.question_id in taken.ids[file.axis],
            file.slug not in (each.modality, each.question_type),
        ),
    )
    if not is_task and record.modality != file.slug:
        return _Miss(JoinFault.MODALITY_DIFFERS, f"in the corpus: {record.modality}")
    if other_type(record):
        return _Miss(JoinFault.TWO_TYPES, f"also {taken.types[record.question_id]}")
    return record


def _same(one: str, other: str) -> bool:
    """Whether two texts are equal but for white space, which forms of questions change."""
    return one == other or one.split() == other.split()


def _same_options(some: Sequence[str], others: Sequence[str]) -> bool:
    return len(some) == len(others) and all(map(_same, some, others))
