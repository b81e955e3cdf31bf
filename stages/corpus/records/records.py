"""OmniMedVQA's records (arXiv 2402.09181): validation, and the reasons for refusal.

`QA_information/Open-access/<dataset>.json` is a list of objects of strings: dataset, question_id,
question_type, question, gt_answer (the TEXT of an option, not its letter), image_path, option_A to
option_D (absent when there are fewer), modality_type. A record is taken as it stands or refused
with a reason, never mended. A CSV of one's own gives such records, too
(stages/corpus/records/table.py).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any, Final

from stages.core.errors import InputError
from stages.core.outputs import read_json_lines
from stages.corpus.dataset.paths import IMAGES, unsafe_path
from stages.corpus.dataset.problems import LETTERS, format_problem, letter_options, parse_problem
from stages.corpus.quarantine.ledger import RecordLocation, Row, shown
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.json_list import RawRecord, parse_list
from stages.corpus.records.table import parse_table
from stages.corpus.records.texts import LONGEST, RefusedRecord, decode, is_plain, unfit, unfit_name
from stages.taxonomy import MODALITIES, MODALITY_SLUGS, QUESTION_TYPE_SLUGS, QUESTION_TYPES, nearest

__all__ = [
    "FIELDS",
    "OPTIONS",
    "Reading",
    "Record",
    "RefusedRecord",
    "check_record",
    "iterate_records",
    "read_record_files",
    "read_record_lines",
]

FIELDS: Final = (
    "dataset",
    "question_id",
    "question_type",
    "question",
    "gt_answer",
    "image_path",
    "modality_type",
)
OPTIONS: Final = tuple(f"option_{letter}" for letter in LETTERS)

_NAMES = ("dataset", "question_id", "image_path")
"""Fields of one line: they name files, or are printed in lists."""
_LONGEST_NAME = 240
"""Bytes of one part of a path: file systems allow 255, and stages add a suffix."""


@dataclass(frozen=True, slots=True)
class Record:
    """One question that can be asked.

    Texts are without outer blanks, `modality` and `question_type` slugs, `gold` a letter.
    """

    question_id: str
    dataset: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    gold: str
    image_path: str
    place: RecordLocation
    fields: Mapping[str, Any]
    """Everything the record held, as it was written."""


@dataclass(frozen=True)
class Reading:
    """Result of reading record files: read = records + rows.

    An unparsable file counts as one read.
    """

    read: int
    records: list[Record]
    rows: list[Row]


ModalityOf = Callable[[str], str | None]
"""The slug of the modality that the image at an image_path names itself; None if it does not, or is
not there.
"""


def read_record_files(
    files: Iterable[tuple[str, bytes]], modality_of: ModalityOf = lambda image_path: None
) -> Reading:
    """Read (name, content) pairs, JSON or .csv, in order of name; refused records become rows.

    `modality_of` is asked for records without modality_type only.
    """
    collected = _Collected(modality_of)
    waiting = sorted(files, reverse=True)
    while waiting:
        name, content = waiting.pop()
        try:
            text = decode(content)
            del content  # which is as large again
            found = _parse(name, text)
        except RefusedRecord as refusal:
            collected.refuse_file(name, refusal)
            continue
        for each in found:
            collected.add(name, each)
    return collected.reading()


def read_record_lines(paths: Iterable[Path], remedy: str) -> Reading:
    """Read an earlier stage's JSON Lines files in order of name; unfit records become rows.

    Raises InputError, with `remedy`, if a file is missing or a line is not JSON object.
    """
    collected = _Collected(lambda image_path: None)
    texts: dict[str, str] = {}
    for path in sorted(paths):
        for each in _lines(path, remedy):
            collected.add(path.as_posix(), each._replace(raw=_share_texts(each.raw, texts)))
    return collected.reading()


def iterate_records(path: Path, remedy: str) -> Iterator[Record]:
    """Iterate over the records of a JSON Lines file of an earlier stage, one in memory at a time.

    Raises InputError, with `remedy`, if the file is missing or at the first line that is not a
    usable record.
    """
    for each in _lines(path, remedy):
        try:
            yield check_record(each.raw, _place(path.as_posix(), each))
        except RefusedRecord as refusal:
            wrong = f"{refusal.what!r}: {refusal.why}"
            raise InputError(
                f"{path}, line {each.line} was changed by hand: {wrong}; {remedy}"
            ) from refusal


def refuse(record: Record, what: object, why: str, reason: Reason) -> Row:
    """The row of a record that was good until now."""
    return Row(
        record.place,
        shown(what),
        why,
        reason,
        shown(record.dataset),
        shown(record.fields["modality_type"]),
    )


def check_record(raw: object, place: RecordLocation) -> Record:
    """Validate a JSON record; RefusedRecord names the first problem.

    `place` is its location.
    """
    if not isinstance(raw, dict):
        raise RefusedRecord(raw, "not an object with the fields of a record", Reason.RECORD_FORM)
    option_keys = [key for key in raw if key.startswith("option_")]
    text = _texts(raw, [*FIELDS, *option_keys])
    options = tuple([text[field] for field in _options(option_keys)])
    if len(set(options)) < len(options):
        raise RefusedRecord(list(options), "two options are the same", Reason.OPTIONS_EQUAL)
    if text["gt_answer"] not in options:
        raise RefusedRecord(
            text["gt_answer"],
            f"gt_answer is none of the options {shown(list(options))}",
            Reason.ANSWER_NOT_OFFERED,
        )
    if raw["modality_type"] not in MODALITY_SLUGS:
        raise _unknown(raw, "modality_type", MODALITIES, Reason.UNKNOWN_MODALITY)
    if raw["question_type"] not in QUESTION_TYPE_SLUGS:
        raise _unknown(raw, "question_type", QUESTION_TYPES, Reason.UNKNOWN_QUESTION_TYPE)
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


class _Collected:
    """Records by question_id in reading order, one row per refused record, and the total."""

    def __init__(self, modality_of: ModalityOf) -> None:
        self._modality_of = modality_of
        self._records: dict[str, Record] = {}
        self._rows: list[Row] = []
        self._read = 0

    def add(self, file: str, found: RawRecord) -> None:
        self._read += 1
        place = _place(file, found)
        try:
            if found.refusal:
                raise found.refusal
            record = check_record(_with_modality(found.raw, self._modality_of), place)
            first = self._records.setdefault(record.question_id, record)
            if first is not record:
                why = f"question_id stands twice; kept: {first.place}"
                raise RefusedRecord(record.question_id, why, Reason.DUPLICATE_ID)
        except RefusedRecord as refusal:
            dataset, modality = (
                _written(found.raw, field) for field in ("dataset", "modality_type")
            )
            self._rows.append(
                Row(place, refusal.what, refusal.why, refusal.reason, dataset, modality)
            )

    def refuse_file(self, name: str, refusal: RefusedRecord) -> None:
        self._read += 1
        self._rows.append(
            Row(RecordLocation(shown(name)), refusal.what, refusal.why, refusal.reason)
        )

    def reading(self) -> Reading:
        return Reading(self._read, list(self._records.values()), self._rows)


def _share_texts(raw: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    """The record with one object per distinct text.

    Most texts of a corpus stand in it many times.
    """
    return {
        intern(key): texts.setdefault(value, value) if type(value) is str else value
        for key, value in raw.items()
    }


def _lines(path: Path, remedy: str) -> Iterator[RawRecord]:
    for number, raw in enumerate(read_json_lines(path, remedy), start=1):
        yield RawRecord(None, number, raw, None)


def _with_modality(raw: object, modality_of: ModalityOf) -> object:
    """The record with its image's modality_type, if it has none and the image declares one."""
    if (
        not isinstance(raw, dict)
        or "modality_type" in raw
        or not isinstance(raw.get("image_path"), str)
    ):
        return raw
    slug = modality_of(raw["image_path"])
    return raw if slug is None else raw | {"modality_type": MODALITIES[slug]}


def _written(raw: object, field: str) -> str | None:
    """A field of a record that may hold anything, if it is a text that is not empty."""
    value = raw.get(field) if isinstance(raw, dict) else None
    return shown(value) if isinstance(value, str) and value else None


def _parse(name: str, text: str) -> list[RawRecord]:
    """All that stands in a question file; RefusedRecord if it cannot be read as a whole."""
    if name.lower().endswith(".csv"):
        return list(parse_table(text, posixpath.basename(name)[: -len(".csv")]))
    return list(parse_list(text))


def _place(file: str, found: RawRecord) -> RecordLocation:
    question_id = found.raw.get("question_id") if isinstance(found.raw, dict) else None
    return RecordLocation(
        shown(file), found.number, shown(question_id) if question_id else None, found.line
    )


def _texts(raw: dict[str, Any], fields: list[str]) -> dict[str, str]:
    """Fields with outer whitespace removed; RefusedRecord for non-text or unsafe text."""
    try:
        text = {field: raw[field].strip() for field in fields}
        together = " ".join([raw[field] for field in fields])
        if len(together) <= LONGEST and is_plain(together) and all(text.values()):
            return text
    except (KeyError, AttributeError):
        pass
    for field in fields:
        _check_text(raw, field)
    return text


def _check_text(raw: dict[str, Any], field: str) -> None:
    if field not in raw:
        raise RefusedRecord(field, f"{field} is missing", Reason.FIELD_MISSING)
    value = raw[field]
    if not isinstance(value, str):
        raise RefusedRecord(value, f"{field} is not a string", Reason.FIELD_TYPE)
    if not value.strip():
        raise RefusedRecord(value, f"{field} is empty", Reason.FIELD_EMPTY)
    if problem := (unfit_name if field in _NAMES else unfit)(value):
        raise RefusedRecord(value, f"{field} {problem.why}", problem.reason)


def _options(option_keys: list[str]) -> tuple[str, ...]:
    """The fields of the options, in their order."""
    expected = OPTIONS[: len(option_keys)]
    if tuple(option_keys) == expected and len(option_keys) > 1:
        return expected
    if extra := sorted(set(option_keys) - set(OPTIONS)):
        raise RefusedRecord(extra, "options beyond option_D", Reason.OPTION_EXTRA)
    if len(option_keys) < 2:
        raise RefusedRecord(option_keys, "fewer than two options", Reason.OPTION_COUNT)
    if gaps := [field for field in expected if field not in option_keys]:
        raise RefusedRecord(
            sorted(option_keys), f"a gap in the options: {gaps[0]} is missing", Reason.OPTION_COUNT
        )
    return expected


def _unknown(
    raw: dict[str, Any], field: str, literals: Mapping[str, str], reason: Reason
) -> RefusedRecord:
    """The refusal of a literal that is not in OmniMedVQA's list, with the nearest one that is."""
    slug = nearest(raw[field], literals)
    suggestion = f"; did you mean {literals[slug]!r} (slug {slug})?" if slug else ""
    return RefusedRecord(raw[field], f"unknown {field}{suggestion}", reason)


def _check_image_path(path: str) -> None:
    if why := unsafe_path(path):
        raise RefusedRecord(path, f"image_path is {why}", Reason.IMAGE_PATH)
    if not path.startswith(IMAGES) or posixpath.normpath(path) != path:
        raise RefusedRecord(path, f"image_path is not a file under {IMAGES}", Reason.IMAGE_PATH)
    if len(path) * 4 > _LONGEST_NAME and any(
        len(part.encode()) > _LONGEST_NAME for part in path.split("/")
    ):
        raise RefusedRecord(
            path, f"image_path has a name longer than {_LONGEST_NAME} bytes", Reason.IMAGE_PATH
        )


def _check_published_form(question: str, options: tuple[str, ...]) -> None:
    """Refuse texts that Med-R1's one-line form cannot represent, e.g. with " A)" in them."""
    if ")" not in question and ")" not in "".join(options):
        return  # nothing but the labels themselves can look like one
    problem = format_problem(question, options)
    if parse_problem(problem) != (question, letter_options(options)):
        raise RefusedRecord(
            problem,
            "a text that holds an option label cannot be distinguished from the options",
            Reason.OPTION_LABEL,
        )
