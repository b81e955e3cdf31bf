"""Med-R1's published questions: JSON lists of {"image", "problem", "solution"}.

The options are inside the problem. Folders such as `modality` and `task` hold the same questions
twice, each time with one of the two words: an item has the words of all its files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from stages.corpus.dataset.paths import IMAGES, is_left_behind
from stages.corpus.dataset.problems import parse_problem, parse_solution
from stages.corpus.formats.images import ImageFolder
from stages.corpus.formats.questions import (
    ConversionOptions,
    Question,
    Refusal,
    SourceLocation,
    path_words,
)
from stages.corpus.formats.rows import decode_text
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import written_context
from stages.corpus.records.json_list import RawRecord, parse_list
from stages.corpus.records.texts import RefusedRecord

_ITEM_KEYS: Final = ("image", "problem", "solution")
_HEAD: Final = 2**16


class MedR1Files:
    """Reader of Med-R1's question files: one, or all those below a folder."""

    name = "med-r1"
    description = "Med-R1's questions (a JSON list of image, problem and solution)"

    def detects(self, path: Path) -> bool:
        """Whether a JSON file begins with an item that has the three keys."""
        heads = map(_first_object, _json_files(path))
        return any(all(f'"{key}"' in head for key in _ITEM_KEYS) for head in heads)

    def read(self, path: Path, options: ConversionOptions) -> Iterator[Question | Refusal]:
        """Items in the order of files; a file that is no list is refused as one entry."""
        root = path if path.is_dir() else path.parent
        files = {file.relative_to(root).as_posix(): file for file in _json_files(path)}
        words = _words_of_items(files)
        folder = ImageFolder(options.images or root)
        for name, file in files.items():
            for entry in _entries(file):
                row = None if entry.number is None else entry.number + 1
                location = SourceLocation(name, line=entry.line, row=row)
                try:
                    yield _item_question(location, entry, words, folder, options)
                except RefusedRecord as error:
                    yield Refusal.of(location, error)


def _json_files(path: Path) -> list[Path]:
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    return [
        file for file in files if file.suffix.lower() == ".json" and not is_left_behind(file.name)
    ]


def _first_object(file: Path) -> str:
    """The first item of a JSON list, or what of it is in the first bytes."""
    with file.open("rb") as handle:
        head = handle.read(_HEAD).decode(errors="replace").removeprefix("\ufeff").lstrip()
    return head.partition("}")[0] if head.startswith("[") else ""


def _entries(file: Path) -> list[RawRecord]:
    """The items of a file; a file that is no list is one entry, refused."""
    try:
        return list(parse_list(decode_text(file, None)))
    except RefusedRecord as error:
        return [RawRecord(None, None, None, error)]


class _Words(NamedTuple):
    """Modality and question type that are known of an item."""

    modality: str | None
    question_type: str | None


def _item_key(raw: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(raw.get(key)) for key in _ITEM_KEYS)


def _words_of_items(files: Mapping[str, Path]) -> dict[tuple[str, ...], _Words]:
    """Item -> its words in any of the files: one may give its modality, another its type."""
    modalities: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    kinds: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for name, file in files.items():
        modality, kind = path_words(PurePosixPath(name))
        for entry in _entries(file):
            if isinstance(entry.raw, dict):
                key = _item_key(entry.raw)
                modalities[key].update([modality] if modality else [])
                kinds[key].update([kind] if kind else [])
    return {key: _Words(_only(modalities[key]), _only(kinds[key])) for key in modalities}


def _only(words: set[str]) -> str | None:
    """The word that all files agree on."""
    return next(iter(words)) if len(words) == 1 else None


def _item_question(
    location: SourceLocation,
    entry: RawRecord,
    words: Mapping[tuple[str, ...], _Words],
    folder: ImageFolder,
    options: ConversionOptions,
) -> Question:
    if entry.refusal:
        raise entry.refusal
    raw = entry.raw
    if not isinstance(raw, dict):
        raise RefusedRecord(raw, "not an object with the keys of an item", Reason.RECORD_FORM)
    for key in _ITEM_KEYS:
        if not isinstance(raw.get(key), str):
            why = f"{key} is missing, or not a text"
            raise RefusedRecord(raw.get(key, key), why, Reason.FIELD_MISSING)
    question, answer, texts = _parse_item(raw)
    known = words[_item_key(raw)]
    name, image = folder.find(raw["image"])
    top = PurePosixPath(name).parts[0] if "/" in name else Path(location.file).stem
    record = {
        "dataset": _text(raw, "dataset") or options.dataset or top,
        "question_id": _text(raw, "question_id"),
        "question": question,
        "gt_answer": answer,
        "image_path": f"{IMAGES}{name}",
        "modality_type": _text(raw, "modality") or known.modality or options.modality or "",
        "question_type": (
            _text(raw, "question_type") or known.question_type or options.question_type or ""
        ),
        **{f"option_{letter}": text for letter, text in texts.items()},
        **written_context(raw),
    }
    if patient := _text(raw, "patient"):
        record["patient"] = patient
    return Question.from_record(location, record, image, name)


def _parse_item(raw: Mapping[str, Any]) -> tuple[str, str, dict[str, str]]:
    """Question, text of the correct option, and options by letter."""
    try:
        question, texts = parse_problem(raw["problem"])
    except ValueError as error:
        raise RefusedRecord(raw["problem"], str(error), Reason.OPTIONS_FORM) from None
    try:
        letter = parse_solution(raw["solution"])
    except ValueError as error:
        raise RefusedRecord(raw["solution"], str(error), Reason.ANSWER_NOT_OFFERED) from None
    if letter not in texts:
        why = f"no option has this letter, but {', '.join(texts)}"
        raise RefusedRecord(raw["solution"], why, Reason.ANSWER_NOT_OFFERED)
    return question, texts[letter], texts


def _text(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise RefusedRecord(value, f"{key} is not a text", Reason.FIELD_TYPE)
    return (value or "").strip()
