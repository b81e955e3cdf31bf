"""Split files released by others, as they are: Med-R1's `image`, `problem`, `solution`.

Every `.json` and `.json.gz` below a folder is one part, train or test, of the split of one modality
or question type, as its path says. Lists of items with more fields, such as our own split files,
are read too: an item may say which `images` it is about, in order, which `slices` of a volume, and
what is known of the patient, as records do.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from stages.core.errors import InputError
from stages.corpus.dataset.paths import is_left_behind
from stages.corpus.dataset.problems import parse_problem, parse_solution
from stages.corpus.dataset.split_paths import SplitPath, parse_split_path
from stages.corpus.records.context import context_of, written_context
from stages.corpus.records.images import SEVERAL, read_slices
from stages.corpus.records.texts import RefusedRecord, find_name_problem, find_text_problem
from stages.taxonomy import Axis, Taxonomy, Vocabulary

_GZIP: Final = b"\x1f\x8b"
_FORM: Final = 'a JSON list of {"image", "problem", "solution"}, plain or .gz'

Part = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class ReleasedQuestion:
    """One item: the texts as they are, and what they mean.

    `options` are the option texts in the order of letters. `fault` says why the item is unusable,
    with empty texts where it has none; else it is empty.
    """

    index: int
    image: str
    problem: str
    solution: str
    question: str = ""
    options: tuple[str, ...] = ()
    gold: str = ""
    fault: str = ""
    images: tuple[str, ...] = ()
    """All images in order; empty if the item says nothing but `image`."""
    slices: tuple[int, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    """Context fields of the item; empty if it has none."""

    @property
    def identity(self) -> list[Any]:
        """What makes it another question: of a plain one, its three texts."""
        return [
            *(self.image, self.problem, self.solution),
            *filter(None, (self.images, self.slices, self.context)),
        ]


@dataclass(frozen=True)
class ReleasedFile:
    """One file: path below the folder, and the part of which split it is."""

    path: str
    axis: Axis
    slug: str
    part: Part
    questions: tuple[ReleasedQuestion, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the items without their order, by which a split is recognised."""
        items = sorted(json.dumps(each.identity, sort_keys=True) for each in self.questions)
        return hashlib.sha256("\n".join(items).encode()).hexdigest()


@dataclass(frozen=True)
class UnusedFile:
    """A file that is the part of no split here, and why."""

    path: str
    questions: int
    why: str


@dataclass(frozen=True)
class Released:
    """All files below a folder, in the order of their paths."""

    files: tuple[ReleasedFile, ...]
    unused: tuple[UnusedFile, ...]


def read_released(folder: Path, taxonomy: Taxonomy) -> Released:
    """Read all split files below a folder.

    InputError names the file that is not a list of questions, two files of one part, and a folder
    in which no file is a part of a split.
    """
    files: dict[tuple[Axis, str, Part], ReleasedFile] = {}
    unused: list[UnusedFile] = []
    for path in _json_files(folder):
        name = path.relative_to(folder).as_posix()
        # accepted names are compared without their case
        place = _place(parse_split_path(PurePosixPath(name.lower())), taxonomy)
        if isinstance(place, str):
            unused.append(UnusedFile(name, _count(path), place))
            continue
        questions = tuple(_question(index, item) for index, item in enumerate(_read_list(path)))
        axis, slug, part = place
        file = ReleasedFile(name, axis, slug, part, questions)
        if (first := files.setdefault(place, file)) is not file:
            raise InputError(
                f"{folder}: {first.path} and {name} are both the {part} part of {axis}/{slug}: keep"
                " one of them in the folder"
            )
    if not files:
        found = "; ".join(f"{each.path}: {each.why}" for each in unused) or "no JSON file"
        raise InputError(
            f"splits.kind is released, but no file in splits.released.folder, {folder}, is a part"
            f" of a split ({found}): put split files there, as modality/<modality>_test.json and"
            " task/<question type>_train.json (docs/splits.md)"
        )
    return Released(tuple(files.values()), tuple(unused))


def _json_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(
            f"splits.released.folder, {folder}, is no folder: fetch it (`med-r1 fetch`), or correct"
            " params.yaml"
        )
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return [
        folder / name
        for name in names
        if name.lower().endswith((".json", ".json.gz"))
        and not is_left_behind(name)
        and (folder / name).is_file()
    ]


def _place(path: SplitPath, taxonomy: Taxonomy) -> tuple[Axis, str, Part] | str:
    """Axis, slug and part of a file, or why it has none."""
    vocabularies: dict[Axis, Vocabulary] = {
        "modality": taxonomy.modalities,
        "task": taxonomy.question_types,
    }
    if not path.splits:
        return "its path says neither train nor test"
    if path.part is None:
        return f"it is not of train or test alone, as its path says {', '.join(path.splits)}"
    # the folder of an axis decides; otherwise a word that only one of them knows
    named: dict[Axis, tuple[str, ...]] = {}
    for axis in vocabularies:
        if (word := path.word(axis)) is not None:
            named[axis] = (word,)
    found: set[tuple[Axis, str]] = set()
    for axis, words in (named or dict.fromkeys(vocabularies, path.words)).items():
        slugs = [vocabularies[axis].spelled(word.casefold()) for word in words]
        found.update((axis, slug) for slug in slugs if slug is not None)
    if len(found) == 1:
        axis, slug = found.pop()
        return axis, slug, path.part
    if found:
        names = ", ".join(sorted(f"{axis}/{slug}" for axis, slug in found))
        return f"its path says more than one of {names}"
    unknown = chain.from_iterable(named.values()) if named else path.words
    return f"{', '.join(map(repr, unknown))} is no modality and no question type in params.yaml"


def _count(path: Path) -> int:
    """Items of a file that is not used, 0 if it is no list of items."""
    try:
        return len(_read_list(path))
    except InputError:
        return 0


def _read_list(path: Path) -> list[Any]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
        items = json.loads(text)
    # no permission, a corrupt or truncated gzip, another encoding, no JSON
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as {_FORM} ({error}): fetch it again, or remove it"
        ) from error
    if not isinstance(items, list):
        raise InputError(f"{path} is not {_FORM}, but {items!r:.60}: remove it from the folder")
    return items


def _question(index: int, item: object) -> ReleasedQuestion:
    texts = item if isinstance(item, dict) else {}
    images = texts.get(SEVERAL)
    image, problem, solution = (
        value if isinstance(value := texts.get(key), str) else ""
        for key in ("image", "problem", "solution")
    )
    if not image and isinstance(images, list) and images and isinstance(images[0], str):
        image = images[0]
    plain = ReleasedQuestion(index, image, problem, solution)
    if not (image and problem and solution):
        return replace(plain, fault=f"image, problem or solution is missing in {item!r:.80}")
    try:
        return _parsed(plain, texts)
    except RefusedRecord as error:
        return replace(plain, fault=error.why)
    except ValueError as error:
        return replace(plain, fault=str(error))


def _parsed(plain: ReleasedQuestion, item: Mapping[str, Any]) -> ReleasedQuestion:
    """The question with what its texts mean; ValueError or RefusedRecord if they are unusable."""
    for name, problem in (
        ("image", find_name_problem(plain.image)),
        ("problem", find_text_problem(plain.problem)),
    ):
        if problem is not None:
            raise ValueError(f"{name} {problem.why}")
    question, options = parse_problem(plain.problem)
    gold = parse_solution(plain.solution)
    if gold not in options:
        raise ValueError(f"{gold} is not one of the options {', '.join(options)}")
    images = _images(item)
    slices = read_slices(item, images or (plain.image,))
    context = written_context(item)
    context_of(context)
    return replace(
        plain,
        question=question,
        options=tuple(options.values()),
        gold=gold,
        images=images,
        slices=slices,
        context=context,
    )


def _images(item: Mapping[str, Any]) -> tuple[str, ...]:
    """The images that an item lists, if it does; ValueError if that is no list of paths."""
    images = item.get(SEVERAL)
    if images is None:
        return ()
    if not isinstance(images, list) or not images:
        raise ValueError(f"{SEVERAL} is {images!r:.60}, not a list of paths")
    for number, path in enumerate(images, start=1):
        if not isinstance(path, str):
            raise ValueError(f"image {number} of {SEVERAL} is not a path")
        if problem := find_name_problem(path):
            raise ValueError(f"image {number} of {SEVERAL} {problem.why}")
    return tuple(images)
