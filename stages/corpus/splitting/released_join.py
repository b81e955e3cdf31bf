"""Join released questions to the records of the corpus, by image path and question.

A question that joins keeps its released text and letters; its images, context, id and data set are
the record's. What a released file says of further images and the context must agree with the
record; where it says nothing, the record's are used. Every other one is listed with its fault:
nothing is matched by resemblance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.corpus.dataset.split_files import images_of
from stages.corpus.quarantine.ledger import safe_text
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError
from stages.corpus.records.records import Record
from stages.corpus.splitting.drawing import make_item
from stages.corpus.splitting.draws import Draw, Item
from stages.corpus.splitting.released import Released, ReleasedFile, ReleasedQuestion
from stages.corpus.splitting.released_match import JoinFault, Miss, match_contents, path_forms
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
        self._by_further_image: dict[str, list[Record]] = defaultdict(list)
        self._by_id: dict[str, Record] = {}
        for record in records:
            self._by_id[record.question_id] = record
            for path in {record.image_path, record.fields["image"]}:
                self._by_image[path].append(record)
            for path in {*record.image_paths, *images_of(make_item(record))}:
                self._by_further_image[path].append(record)

    def of_image(self, question: ReleasedQuestion) -> list[Record]:
        """The records of a question's image; what stands before an `Images/` is not compared.

        Of a question that lists its images, the first may be a further one of a record, whose order
        is another.
        """
        indices = [self._by_image, *([self._by_further_image] if question.images else [])]
        for index, path in product(indices, path_forms(question.image)):
            if path in index:
                return index[path]
        return []

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
        if isinstance(match, Miss):
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


def _find(
    question: ReleasedQuestion,
    file: ReleasedFile,
    index: _Index,
    used: set[str],
    taken: _Taken,
) -> Record | Miss:
    """The record of a question of a file, none of `used`."""
    known = match_contents(question, index.of_image(question))
    if isinstance(known, Miss):
        return known
    unused = [each for each in known if each.question_id not in used]
    if not unused:
        return Miss(JoinFault.REPEATED, f"as {known[0].question_id}")
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
        return Miss(JoinFault.MODALITY_DIFFERS, f"in the corpus: {record.modality}")
    if other_type(record):
        return Miss(JoinFault.TWO_TYPES, f"also {taken.types[record.question_id]}")
    return record
