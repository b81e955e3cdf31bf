"""OmniMedVQA's records (arXiv 2402.09181): validation, and the reasons for refusal.

`QA_information/Open-access/<dataset>.json` is a list of objects of strings: dataset, question_id,
question_type, question, gt_answer (the TEXT of an option, not its letter), image_path, option_A,
option_B and so on (2 to 26 in all), modality_type, and, if they are known, patient and the fields
of a context (stages/corpus/records/context.py). `images`, a list of paths, may stand for image_path
(stages/corpus/records/images.py). A record is used as it is or refused with a reason, never
corrected. A user's CSV yields such records, too (stages/corpus/records/table.py).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any, Final

from stages.core.errors import InputError
from stages.core.outputs import read_json_lines
from stages.corpus.dataset.problems import LETTERS, format_problem, letter_options, parse_problem
from stages.corpus.quarantine.ledger import RecordLocation, Row, safe_text
from stages.corpus.quarantine.reasons import UNKNOWN_NAME, Reason
from stages.corpus.records.context import context_of
from stages.corpus.records.images import IMAGE, SEVERAL, read_image_paths, read_slices
from stages.corpus.records.json_list import RawRecord, parse_list
from stages.corpus.records.labels import check_labels
from stages.corpus.records.table import parse_table
from stages.corpus.records.texts import (
    MAX_TEXT_LENGTH,
    RefusedRecord,
    decode,
    find_name_problem,
    find_text_problem,
    is_plain,
)
from stages.taxonomy import Taxonomy, Vocabulary

__all__ = [
    "FIELDS",
    "OPTIONS",
    "PATIENT",
    "Reading",
    "Record",
    "RefusedRecord",
    "check_record",
    "check_texts",
    "iterate_records",
    "read_record_files",
    "read_record_lines",
    "refuse",
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
_FIELDS_OF_SEVERAL: Final = tuple(field for field in FIELDS if field != IMAGE)
OPTIONS: Final = tuple(f"option_{letter}" for letter in LETTERS)

PATIENT: Final = "patient"
"""Optional field: the id of a patient as its author writes it; after stage download, an image."""
STUDY: Final = "study"
"""Field of a record after stage download: the first image of the same DICOM study."""
_OPTION_NAME = re.compile(r"option_(?:[A-Za-z]{1,2}|\d{1,3})")
"""A field that was meant to be an option, however spelled; `option_index` was not."""
_NAMES = ("dataset", "question_id", "image_path")
"""Fields of a single line: they name files, or are printed in lists."""


@dataclass(frozen=True, slots=True)
class Record:
    """One usable question.

    `question` and `options` have no outer whitespace, identifiers are as written. `modality` and
    `question_type` are slugs, `gold` is a letter.
    """

    question_id: str
    dataset: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    gold: str
    image_paths: tuple[str, ...]
    """Files or folders below Images/, in order: most records have one."""
    slices: tuple[int, ...]
    """Frames of its volume that it names, from 1; empty: as `volume` in params.yaml says."""
    location: RecordLocation
    fields: Mapping[str, Any]
    """All fields of the record, as written."""
    context: str | None = None
    """What is known of the patient, in one line."""

    @property
    def image_path(self) -> str:
        """The image, or the first of several, by which the question is listed."""
        return self.image_paths[0]


@dataclass(frozen=True)
class Reading:
    """Result of reading record files: read = records + rows, the refused ones.

    A file that cannot be parsed counts as one record.
    """

    read: int
    records: list[Record]
    rows: list[Row]


ModalityOf = Callable[[str], str | None]
"""The slug of the modality that the image at an image_path declares; None if it does not.

Raises RefusedRecord if it declares one that is none of the eight.
"""


def read_record_files(
    files: Iterable[tuple[str, bytes]],
    taxonomy: Taxonomy,
    modality_of: ModalityOf = lambda image_path: None,
) -> Reading:
    """Read (name, content) pairs, JSON or .csv, in order of name; refused records become rows.

    `modality_of` is called only for records without modality_type.
    """
    collector = _Collector(taxonomy, modality_of)
    pending = sorted(files, reverse=True)
    while pending:
        name, content = pending.pop()
        try:
            text = decode(content)
            del content  # as large as the text
            entries = _parse(name, text, taxonomy)
        except RefusedRecord as refusal:
            collector.refuse_file(name, refusal)
            continue
        for entry in entries:
            collector.add(name, entry)
    return collector.reading()


def read_record_lines(paths: Iterable[Path], remedy: str, taxonomy: Taxonomy) -> Reading:
    """Read an earlier stage's JSON Lines files in order of name; unusable records become rows.

    Raises InputError, with `remedy`, if a file is missing or a line is not a JSON object.
    """
    collector = _Collector(taxonomy, lambda image_path: None)
    texts: dict[str, str] = {}
    for path in sorted(paths):
        for entry in _read_lines(path, remedy):
            collector.add(path.as_posix(), entry._replace(raw=_share_texts(entry.raw, texts)))
    return collector.reading()


def iterate_records(path: Path, remedy: str, taxonomy: Taxonomy) -> Iterator[Record]:
    """Iterate over the records of an earlier stage's JSON Lines file, one in memory at a time.

    Raises InputError, with `remedy`, if the file is missing or at the first line that is not a
    usable record.
    """
    for entry in _read_lines(path, remedy):
        try:
            yield check_record(entry.raw, _locate(path.as_posix(), entry), taxonomy)
        except RefusedRecord as refusal:
            wrong = f"{refusal.what!r}: {refusal.why}"
            raise InputError(
                f"{path}, line {entry.line} was changed by hand: {wrong}; {remedy}"
            ) from refusal


def refuse(record: Record, what: object, why: str, reason: Reason) -> Row:
    """The quarantine row of a record that passed the checks until now."""
    return Row(
        where=record.location,
        what=safe_text(what),
        why=why,
        reason=reason,
        dataset=safe_text(record.dataset),
        modality=safe_text(record.fields["modality_type"]),
    )


def check_record(raw: object, location: RecordLocation, taxonomy: Taxonomy) -> Record:
    """Validate a JSON record. Raises RefusedRecord for the first problem."""
    raw, text, options = _check_fields(raw)
    modality = _slug(raw, taxonomy.modalities)
    question_type = _slug(raw, taxonomy.question_types)
    image_paths = read_image_paths(raw)
    slices = read_slices(raw, image_paths)
    _check_published_form(text["question"], options)
    return Record(
        question_id=raw["question_id"],
        dataset=raw["dataset"],
        modality=modality,
        question_type=question_type,
        question=text["question"],
        options=options,
        gold=LETTERS[options.index(text["gt_answer"])],
        image_paths=image_paths,
        slices=slices,
        location=location,
        fields=raw,
        context=context_of(raw),
    )


def check_texts(raw: object) -> None:
    """Raise RefusedRecord for the first problem of a record but an unknown modality or type."""
    raw, text, options = _check_fields(raw)
    read_slices(raw, read_image_paths(raw))
    _check_published_form(text["question"], options)
    context_of(raw)


def _check_fields(raw: object) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """The record, its texts and its options. Raises RefusedRecord for a wrong field or answer."""
    if not isinstance(raw, dict):
        raise RefusedRecord(raw, "not an object with the fields of a record", Reason.RECORD_FORM)
    option_keys = [key for key in raw if key.startswith("option_") and _OPTION_NAME.fullmatch(key)]
    required = FIELDS if SEVERAL not in raw else _FIELDS_OF_SEVERAL
    text = _texts(raw, [*required, *option_keys])
    if raw.get(PATIENT) is not None:
        _check_text(raw, PATIENT)
    options = tuple([text[field] for field in _option_fields(option_keys)])
    check_labels(options)
    if len(set(options)) < len(options):
        raise RefusedRecord(list(options), "two options are the same", Reason.OPTIONS_EQUAL)
    if text["gt_answer"] not in options:
        why = f"gt_answer is none of the options {safe_text(list(options))}"
        raise RefusedRecord(text["gt_answer"], why, Reason.ANSWER_NOT_OFFERED)
    return raw, text, options


class _Collector:
    """Collects records by question_id in reading order, and one row per refused record."""

    def __init__(self, taxonomy: Taxonomy, modality_of: ModalityOf) -> None:
        self._taxonomy = taxonomy
        self._modality_of = modality_of
        self._records: dict[str, Record] = {}
        self._rows: list[Row] = []
        self._read = 0

    def add(self, file: str, entry: RawRecord) -> None:
        self._read += 1
        location = _locate(file, entry)
        try:
            if entry.refusal:
                raise entry.refusal
            raw = _with_modality(entry.raw, self._modality_of, self._taxonomy.modalities)
            record = check_record(raw, location, self._taxonomy)
            first = self._records.setdefault(record.question_id, record)
            if first is not record:
                why = f"duplicate question_id; kept: {first.location}"
                raise RefusedRecord(record.question_id, why, Reason.DUPLICATE_ID)
        except RefusedRecord as refusal:
            self._refuse(
                location,
                refusal,
                dataset=_text_field(entry.raw, "dataset"),
                modality=_text_field(entry.raw, "modality_type"),
            )

    def refuse_file(self, name: str, refusal: RefusedRecord) -> None:
        self._read += 1
        self._refuse(RecordLocation(safe_text(name)), refusal)

    def reading(self) -> Reading:
        return Reading(self._read, list(self._records.values()), self._rows)

    def _refuse(
        self, location: RecordLocation, refusal: RefusedRecord, **written: str | None
    ) -> None:
        self._rows.append(Row(location, refusal.what, refusal.why, refusal.reason, **written))


def _share_texts(raw: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    """The record with one object per distinct text: most texts of a corpus occur many times."""
    return {
        intern(key): texts.setdefault(value, value) if type(value) is str else value
        for key, value in raw.items()
    }


def _read_lines(path: Path, remedy: str) -> Iterator[RawRecord]:
    for number, raw in enumerate(read_json_lines(path, remedy), start=1):
        yield RawRecord(None, number, raw, None)


def _with_modality(raw: object, modality_of: ModalityOf, modalities: Vocabulary) -> object:
    """The record with its image's modality_type, if it has none and the image declares one."""
    if not isinstance(raw, dict) or "modality_type" in raw:
        return raw
    images = raw.get(SEVERAL, [raw.get(IMAGE)])
    # the first of several speaks for all
    first = images[0] if isinstance(images, list) and images else None
    slug = modality_of(first) if isinstance(first, str) else None
    return raw if slug is None else raw | {"modality_type": modalities.name(slug)}


def _text_field(raw: object, field: str) -> str | None:
    """A field of an unchecked record; None if it is missing, empty or not text."""
    value = raw.get(field) if isinstance(raw, dict) else None
    return safe_text(value) if isinstance(value, str) and value else None


def _parse(name: str, text: str, taxonomy: Taxonomy) -> list[RawRecord]:
    """All entries of a question file. Raises RefusedRecord if the file as a whole is unusable."""
    if name.lower().endswith(".csv"):
        return list(parse_table(text, posixpath.basename(name)[: -len(".csv")], taxonomy))
    return list(parse_list(text))


def _locate(file: str, entry: RawRecord) -> RecordLocation:
    question_id = entry.raw.get("question_id") if isinstance(entry.raw, dict) else None
    return RecordLocation(
        file=safe_text(file),
        record=entry.number,
        question_id=safe_text(question_id) if question_id else None,
        line=entry.line,
    )


def _texts(raw: dict[str, Any], fields: list[str]) -> dict[str, str]:
    """Fields without outer whitespace. Raises RefusedRecord for anything but usable text."""
    # fast path: one look at all texts of the record together
    try:
        text = {field: raw[field].strip() for field in fields}
        joined = " ".join([raw[field] for field in fields])
        if len(joined) <= MAX_TEXT_LENGTH and is_plain(joined) and all(text.values()):
            return text
    except (KeyError, AttributeError):
        pass
    # names the first problem; a KeyError or AttributeError above always is one
    for field in fields:
        _check_text(raw, field)
    return text


def _check_text(raw: dict[str, Any], field: str) -> None:
    if field not in raw:
        raise RefusedRecord(field, f"{field} is missing", Reason.FIELD_MISSING)
    value = raw[field]
    if value is None:
        raise RefusedRecord(value, f"{field} is null: leave it out", Reason.FIELD_EMPTY)
    if not isinstance(value, str):
        raise RefusedRecord(value, f"{field} is not a string", Reason.FIELD_TYPE)
    if not value.strip():
        raise RefusedRecord(value, f"{field} is empty", Reason.FIELD_EMPTY)
    find_problem = find_name_problem if field in _NAMES else find_text_problem
    if problem := find_problem(value):
        raise RefusedRecord(value, f"{field} {problem.why}", problem.reason)


def _option_fields(option_keys: list[str]) -> tuple[str, ...]:
    """The fields of the options in order: 2 to 26, from option_A on, without a gap."""
    expected = OPTIONS[: len(option_keys)]
    if tuple(option_keys) == expected and len(option_keys) > 1:
        return expected
    if extra := sorted(set(option_keys) - set(OPTIONS)):
        why = f"options are named {OPTIONS[0]}, {OPTIONS[1]}, ... up to {OPTIONS[-1]}"
        raise RefusedRecord(extra, why, Reason.OPTION_EXTRA)
    if len(option_keys) < 2:
        raise RefusedRecord(option_keys, "fewer than two options", Reason.OPTION_COUNT)
    if gaps := [field for field in expected if field not in option_keys]:
        why = f"a gap in the options: {gaps[0]} is missing"
        raise RefusedRecord(sorted(option_keys), why, Reason.OPTION_GAP)
    return expected


def _slug(raw: dict[str, Any], vocabulary: Vocabulary) -> str:
    """The slug of a record's name for its modality or question type.

    Raises RefusedRecord, with the nearest name, for one that is not accepted.
    """
    field = vocabulary.field
    if slug := vocabulary.slug_of.get(raw[field]):
        return slug
    nearest = vocabulary.nearest(raw[field])
    suggestion = f"; did you mean {vocabulary.name(nearest)!r} (slug {nearest})?" if nearest else ""
    reason = UNKNOWN_NAME[field]
    raise RefusedRecord(raw[field], f"unknown {field}{suggestion}", reason)


def _check_published_form(question: str, options: tuple[str, ...]) -> None:
    """Refuse texts that Med-R1's one-line form cannot represent, e.g. with " A)" in them."""
    if ")" not in question and ")" not in "".join(options):
        return  # without a bracket, nothing looks like a label
    problem = format_problem(question, options)
    try:
        survives = parse_problem(problem) == (question, letter_options(options))
    except ValueError:
        survives = False
    if not survives:
        why = "a text that holds an option label cannot be distinguished from the options"
        raise RefusedRecord(problem, why, Reason.OPTION_LABEL)
