"""OmniMedVQA's records (arXiv 2402.09181): what one must hold to become a question, and why another is refused.

`QA_information/Open-access/<dataset>.json` is a list of objects of strings: dataset, question_id, question_type,
question, gt_answer (the TEXT of an option, not its letter), image_path, option_A to option_D (absent when there are
fewer), modality_type. A record is taken as it stands or refused with a reason, never mended.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from stages.corpus.archive import IMAGES, unsafe_path
from stages.corpus.modalities import MODALITIES, MODALITY_SLUGS, QUESTION_TYPE_SLUGS
from stages.corpus.problems import LETTERS, format_problem, parse_problem
from stages.corpus.quarantine import Place, Row, shown
from stages.corpus.reasons import Reason
from stages.errors import InputError

FIELDS: Final = ("dataset", "question_id", "question_type", "question", "gt_answer", "image_path", "modality_type")
OPTIONS: Final = tuple(f"option_{letter}" for letter in LETTERS)

_LONGEST_NAME = 240
"""Bytes of one part of a path: file systems allow 255, and stages add a suffix."""


class RefusedRecord(Exception):
    """A record that cannot be used: `what` is the offending value, `why` the reason in words, `reason` its code."""

    def __init__(self, what: object, why: str, reason: Reason) -> None:
        """Keep the value in a form that can be written down."""
        super().__init__(why)
        self.what, self.why, self.reason = shown(what), why, reason


@dataclass(frozen=True)
class Record:
    """One question that can be asked. Texts are without outer blanks, `modality` and `question_type` slugs, `gold` a letter."""

    question_id: str
    dataset: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    gold: str
    image_path: str
    place: Place
    fields: Mapping[str, Any]
    """Everything the record held, as it was written."""


@dataclass(frozen=True)
class Reading:
    """What a set of record files gave: read = records + rows; a file that cannot be parsed counts as one read."""

    read: int
    records: list[Record]
    rows: list[Row]


ModalityOf = Callable[[str], str | None]
"""The slug of the modality that the picture at an image_path names itself; None if it does not, or is not there."""


def read_record_files(files: Iterable[tuple[str, bytes]], modality_of: ModalityOf = lambda image_path: None) -> Reading:
    """Read (name, content) pairs in the order of their names; what is refused becomes a quarantine row.

    `modality_of` is asked for records without modality_type only.
    """
    records: dict[str, Record] = {}
    rows: list[Row] = []
    read = 0
    for name, content in sorted(files):
        try:
            found = _parse(content)
        except RefusedRecord as refusal:
            read += 1
            rows.append(Row(Place(shown(name)), refusal.what, refusal.why, refusal.reason))
            continue
        read += len(found)
        for index, raw in enumerate(found):
            place = _place(name, index, raw)
            try:
                record = check_record(_with_modality(raw, modality_of), place)
                if record.question_id in records:
                    raise RefusedRecord(
                        record.question_id, f"question_id stands twice; kept: {records[record.question_id].place}", Reason.DUPLICATE_ID
                    )
                records[record.question_id] = record
            except RefusedRecord as refusal:
                dataset, modality = (_written(raw, field) for field in ("dataset", "modality_type"))
                rows.append(Row(place, refusal.what, refusal.why, refusal.reason, dataset, modality))
    return Reading(read, list(records.values()), rows)


def refuse(record: Record, what: object, why: str, reason: Reason) -> Row:
    """The row of a record that was good until now."""
    return Row(record.place, shown(what), why, reason, shown(record.dataset), shown(record.fields["modality_type"]))


def check_record(raw: object, place: Place) -> Record:
    """A record of a JSON file as a `Record` that stands at `place`; RefusedRecord says what is wrong with it first."""
    if not isinstance(raw, dict):
        raise RefusedRecord(raw, "not an object with the fields of a record", Reason.RECORD_FORM)
    text = {field: _text(raw, field) for field in (*FIELDS, *(key for key in raw if str(key).startswith("option_")))}
    given = [key for key in text if key not in FIELDS]
    if extra := sorted(set(given) - set(OPTIONS)):
        raise RefusedRecord(extra, "options beyond option_D", Reason.OPTION_COUNT)
    if len(given) < 2:
        raise RefusedRecord(given, "fewer than two options", Reason.OPTION_COUNT)
    if gaps := [field for field in OPTIONS[: len(given)] if field not in given]:
        raise RefusedRecord(sorted(given), f"a gap in the options: {gaps[0]} is missing", Reason.OPTION_COUNT)
    options = tuple(text[field] for field in OPTIONS[: len(given)])
    if len(set(options)) < len(options):
        raise RefusedRecord(list(options), "two options are the same", Reason.OPTIONS_EQUAL)
    if text["gt_answer"] not in options:
        raise RefusedRecord(text["gt_answer"], f"gt_answer is none of the options {shown(list(options))}", Reason.ANSWER_NOT_OFFERED)
    if raw["modality_type"] not in MODALITY_SLUGS:
        raise RefusedRecord(raw["modality_type"], "unknown modality_type", Reason.UNKNOWN_MODALITY)
    if raw["question_type"] not in QUESTION_TYPE_SLUGS:
        raise RefusedRecord(raw["question_type"], "unknown question_type", Reason.UNKNOWN_QUESTION_TYPE)
    _check_image_path(raw["image_path"])
    _check_published_form(text["question"], options)
    return Record(
        question_id=raw["question_id"],
        dataset=raw["dataset"],
        modality=MODALITY_SLUGS[raw["modality_type"]],
        question_type=QUESTION_TYPE_SLUGS[raw["question_type"]],
        question=text["question"],
        options=options,
        gold=LETTERS[options.index(text["gt_answer"])],
        image_path=raw["image_path"],
        place=place,
        fields=raw,
    )


def read_kept(path: Path, remedy: str) -> list[Record]:
    """The records an earlier stage kept. InputError, with `remedy`, if the file is missing or was changed for the worse."""
    try:
        return [check_record(raw, _place(path.as_posix(), index, raw)) for index, raw in enumerate(_parse(path.read_bytes()))]
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {remedy}") from None
    except RefusedRecord as refusal:
        raise InputError(f"{path} was changed by hand: {refusal.what!r}: {refusal.why}; {remedy}") from refusal


def _with_modality(raw: object, modality_of: ModalityOf) -> object:
    """The record with the modality_type of its picture, where it has none itself and the picture says it."""
    if not isinstance(raw, dict) or "modality_type" in raw or not isinstance(raw.get("image_path"), str):
        return raw
    slug = modality_of(raw["image_path"])
    return raw if slug is None else raw | {"modality_type": MODALITIES[slug]}


def _place(file: str, index: int, raw: object) -> Place:
    question_id = raw.get("question_id") if isinstance(raw, dict) else None
    return Place(shown(file), index, shown(question_id) if question_id else None)


def _written(raw: object, field: str) -> str | None:
    """A field of a record that may hold anything, if it is a text that is not empty."""
    value = raw.get(field) if isinstance(raw, dict) else None
    return shown(value) if isinstance(value, str) and value else None


def _parse(content: bytes) -> list[Any]:
    """The list in a JSON file; RefusedRecord if there is none."""
    try:
        found = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RefusedRecord(str(error), "not a JSON file that can be parsed", Reason.FILE_UNREADABLE) from error
    if not isinstance(found, list):
        raise RefusedRecord(type(found).__name__, "not a JSON list of records", Reason.FILE_FORM)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _text(raw: dict[Any, Any], field: str) -> str:
    """A field without outer blanks."""
    if field not in raw:
        raise RefusedRecord(field, f"{field} is missing", Reason.FIELD_MISSING)
    value = raw[field]
    if not isinstance(value, str):
        raise RefusedRecord(value, f"{field} is not a string", Reason.FIELD_TYPE)
    if not (stripped := value.strip()):
        raise RefusedRecord(value, f"{field} is empty", Reason.FIELD_EMPTY)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RefusedRecord(value, f"{field} is not Unicode text", Reason.FIELD_ENCODING) from None
    return stripped


def _check_image_path(path: str) -> None:
    if why := unsafe_path(path):
        raise RefusedRecord(path, f"image_path is {why}", Reason.IMAGE_PATH)
    if not path.startswith(IMAGES) or posixpath.normpath(path) != path:
        raise RefusedRecord(path, f"image_path is not a file under {IMAGES}", Reason.IMAGE_PATH)
    if any(len(part.encode()) > _LONGEST_NAME for part in path.split("/")):
        raise RefusedRecord(path, f"image_path has a name longer than {_LONGEST_NAME} bytes", Reason.IMAGE_PATH)


def _check_published_form(question: str, options: tuple[str, ...]) -> None:
    """Med-R1's one-line form cannot carry every text: a question with " A)" in it would be cut there by every reader."""
    problem = format_problem(question, options)
    if parse_problem(problem) != (question, dict(zip(LETTERS, options, strict=False))):
        raise RefusedRecord(problem, "a text that holds an option label cannot be told from the options", Reason.OPTION_LABEL)
