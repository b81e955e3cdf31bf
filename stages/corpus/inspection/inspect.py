"""Inspect a corpus as the pipeline would read it, without writing anything.

Questions go through the reader of stage download, images through the decoder of stage resize. At
most one image per thread is in memory, and a few examples per kind of finding.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Final, Literal, NamedTuple, get_args

from stages.core.iteration.prefetch import prefetch
from stages.core.iteration.progress import counted
from stages.core.params import Params
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.source import Corpus
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.images.decoding import ImageError, decode_files
from stages.corpus.images.resizer import check_modality, describe
from stages.corpus.quarantine.advice import (
    DUPLICATE_IMAGES,
    IGNORED_COLUMNS,
    MISSING_SPLITS,
    OTHER_TABLES,
    SMALLEST_SPLIT,
    UNUSED_IMAGES,
    Advice,
    advise,
)
from stages.corpus.quarantine.ledger import Row
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.reading import find_images, read_questions
from stages.corpus.records.records import Record, refuse
from stages.corpus.records.table import read_header
from stages.corpus.records.texts import RefusedRecord
from stages.corpus.records.texts import decode as decode_text
from stages.corpus.splitting.data_tests import TESTS, Result, judge_corpus
from stages.corpus.splitting.drawing import draw_splits
from stages.corpus.splitting.expectations import contradictions
from stages.taxonomy import AXES

Status = Literal["ready", "problems", "unusable"]
Level = Literal["refused", "stops", "note"]
"""Costs records; stops stage splits; neither."""


_OF_ALL_SPLITS: Final = (
    *("majority_letter", "majority_answer", "single_answer_tests"),
    *("questions_of_modality", "questions_of_type"),
)
"""Data tests that say nothing of a corpus without questions for every split."""
_OTHER_TABLES: Final = (
    *(".jsonl", ".ndjson", ".tsv", ".xlsx", ".xls", ".ods"),
    *(".parquet", ".feather", ".arrow", ".numbers"),
)
"""Suffixes of tables that hold questions, in forms that are not read."""
_SUFFIXES: Final = {"jpeg": "jpg", "tiff": "tif", "dicom": "dcm"}
"""Two spellings of a suffix."""
_DOCUMENTS: Final = (
    *(".md", ".txt", ".rst", ".pdf", ".doc", ".docx", ".rtf", ".html", ".htm"),
    *(".csv", ".json", ".yaml", ".yml", ".xml", ".py", ".sh", ".log", ".zip", ".dvc"),
)
"""Suffixes of files that are no images, whether or not a record names them."""


_LEVELS: Final = get_args(Level)


class Example(NamedTuple):
    """Location, value and explanation of one finding."""

    where: str
    what: str
    why: str


@dataclass
class CorpusFinding:
    """One kind of problem or oddity: count, examples and remedy.

    `level`: "refused" if it costs records.
    """

    kind: str
    remedy: str
    level: Level
    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """Result of an inspection: read = usable + refused.

    `questions`: (modality, question type) -> usable ones; `images`: number per modality.
    """

    layout: str
    question_files: list[str]
    read: int
    usable: int
    questions: dict[tuple[str, str], int]
    images: dict[str, int]
    decoded: bool
    findings: list[CorpusFinding]

    @property
    def refused(self) -> int:
        """Records that cannot be used."""
        return self.read - self.usable

    def status(self, strict: bool = False) -> Status:
        """One of "ready", "problems" (refusals, what stops; also notes if `strict`), "unusable"."""
        if not self.usable:
            return "unusable"
        stops = any(finding.level == "stops" for finding in self.findings)
        return "problems" if self.refused or stops or (strict and self.findings) else "ready"


class Findings:
    """Findings by kind, with the first examples of each."""

    def __init__(self, max_examples: int) -> None:
        self._max_examples = max_examples
        self._by_kind: dict[str, CorpusFinding] = {}

    def refuse(self, row: Row) -> None:
        """Count a refused record under the kind of its reason."""
        self._add(advise(row.reason), "refused", Example(str(row.where), row.what, row.why))

    def note(self, advice: Advice, where: str, what: str, why: str) -> None:
        """Count an oddity that costs no record."""
        self._add(advice, "note", Example(where, what, why))

    def data_test(self, result: Result) -> None:
        """Add a failed data test, or one with violations within its limit."""
        test = TESTS[result.test]
        level: Level = "stops" if result.stops else "note"
        value = f"{result.value:g}, limit {result.limit:g}"
        advice = Advice(f"data test {result.test}", test.remedy)
        for example in result.examples or (result.where,):
            self._add(advice, level, Example(result.where or result.test, example, value))
        self._by_kind[advice.kind].count = max(result.found, 1)

    def _add(self, advice: Advice, level: Level, example: Example) -> None:
        new = CorpusFinding(advice.kind, advice.remedy, level)
        finding = self._by_kind.setdefault(advice.kind, new)
        finding.count += 1
        if len(finding.examples) < self._max_examples:
            finding.examples.append(example)

    def ordered(self) -> list[CorpusFinding]:
        """Refusals first, then by count."""
        return sorted(
            self._by_kind.values(),
            key=lambda finding: (_LEVELS.index(finding.level), -finding.count, finding.kind),
        )


def inspect(
    corpus: Corpus, params: Params, *, images: bool = True, examples: int = 3
) -> Inspection:
    """Read all questions, and with `images` decode every image that one names.

    `examples`: at most so many per kind of finding. InputError if a file cannot be read at all.
    """
    findings = Findings(examples)
    reading, files = find_images(corpus, read_questions(corpus))
    for row in _with_hints(reading.rows, corpus.names):
        findings.refuse(row)
    _note_ignored_columns(corpus, findings)
    usable = reading.records
    _note_unused_images(corpus, set(chain.from_iterable(files.values())), findings)
    if images:
        usable, metadata = _decodable(corpus, usable, files, params, findings)
        is_complete = _note_missing_splits(usable, findings)
        _run_data_tests(usable, metadata, params, findings, is_complete=is_complete)
    else:
        _note_missing_splits(usable, findings)
    distinct = {(record.modality, record.image_path) for record in usable}
    is_csv = bool(corpus.question_files) and all(map(_is_csv, corpus.question_files))
    return Inspection(
        layout="CSV" if is_csv else "OmniMedVQA",
        question_files=list(corpus.question_files),
        read=reading.read,
        usable=len(usable),
        questions=dict(Counter((record.modality, record.question_type) for record in usable)),
        images=dict(Counter(modality for modality, _ in distinct)),
        decoded=images,
        findings=findings.ordered(),
    )


def as_json(inspection: Inspection, strict: bool = False) -> dict[str, Any]:
    """The JSON form of an inspection."""
    questions = {
        slug: {
            kind: inspection.questions[slug, kind]
            for kind in AXES["task"]
            if (slug, kind) in inspection.questions
        }
        for slug in AXES["modality"]
    }
    return {
        "status": inspection.status(strict),
        "layout": inspection.layout,
        "question_files": inspection.question_files,
        "read": inspection.read,
        "kept": inspection.usable,
        "refused": inspection.refused,
        "questions": questions,
        "images": {slug: inspection.images.get(slug, 0) for slug in AXES["modality"]},
        "images_decoded": inspection.decoded,
        "findings": [
            {
                "kind": finding.kind,
                "level": finding.level,
                "count": finding.count,
                "remedy": finding.remedy,
                "examples": [example._asdict() for example in finding.examples],
            }
            for finding in inspection.findings
        ],
    }


def _is_csv(name: str) -> bool:
    return name.lower().endswith(".csv")


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _with_hints(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Rows with a hint where exactly one file differs only in case, folder, suffix or spelling."""
    missing = {_similar_name(row.what) for row in rows if _is_missing_image(row)}
    similar: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if (key := _similar_name(name)) in missing:
            similar[key].append(name)
    hinted = []
    for row in rows:
        candidates = similar.get(_similar_name(row.what), [])
        if _is_missing_image(row) and len(candidates) == 1:
            row = row._replace(why=f"{row.why}; there is {candidates[0]!r}")
        hinted.append(row)
    return hinted


def _similar_name(path: str) -> str:
    """The name of a file in one case, Unicode form and spelling of its suffix."""
    name = unicodedata.normalize("NFC", _file_name(path)).casefold()
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{dot}{_SUFFIXES.get(suffix, suffix)}" if stem else name


def _is_missing_image(row: Row) -> bool:
    return row.reason == Reason.IMAGE_MISSING


class _DecodedImage(NamedTuple):
    """Path, digest of its bytes, and why it cannot be used: at all, or in one modality."""

    path: str
    digest: bytes = b""
    error: ImageError | None = None
    modality_errors: Mapping[str, ImageError] = {}
    metadata: Mapping[str, Any] = {}
    """As stage resize adds to a record."""


def _decodable(
    corpus: Corpus,
    records: list[Record],
    files: Mapping[str, list[str]],
    params: Params,
    findings: Findings,
) -> tuple[list[Record], dict[str, Mapping[str, Any]]]:
    """Records whose image can be decoded, and image -> metadata; notes images of the same bytes.

    `files`: image path -> its files, several for a DICOM series.
    """
    paths = sorted(files)
    modalities: dict[str, set[str]] = defaultdict(set)
    for record in records:
        modalities[record.image_path].add(record.modality)

    def decode_image(path: str) -> _DecodedImage:
        return _decode(corpus, path, files[path], modalities[path], params)

    errors: dict[tuple[str, str], ImageError] = {}
    metadata: dict[str, Mapping[str, Any]] = {}
    first: dict[bytes, str] = {}
    threads = os.cpu_count() or 1
    decoded = prefetch(decode_image, paths, threads=threads, budget=threads + 1)
    for image in counted(decoded, len(paths), "check", "image"):
        for slug in modalities[image.path]:
            if error := image.error or image.modality_errors.get(slug):
                errors[image.path, slug] = error
        metadata[image.path] = image.metadata
        original = image.path if image.error else first.setdefault(image.digest, image.path)
        if original != image.path:
            findings.note(DUPLICATE_IMAGES, image.path, original, "the same bytes as this one")
    usable = []
    for record in records:
        if error := errors.get((record.image_path, record.modality)):
            why = f"the image cannot be used: {error}"
            findings.refuse(refuse(record, record.image_path, why, error.reason))
        else:
            usable.append(record)
    return usable, metadata


def _run_data_tests(
    records: Sequence[Record],
    metadata: Mapping[str, Mapping[str, Any]],
    params: Params,
    findings: Findings,
    *,
    is_complete: bool,
) -> None:
    """Run the data tests of stage splits, on the splits that it would draw.

    Those that need questions of all modalities and types count only if the corpus `is_complete`.
    Contradictory labels are listed even if they are within their limit.
    """
    full = [
        replace(
            record,
            fields={**record.fields, "image": record.image_path, **metadata[record.image_path]},
        )
        for record in sorted(records, key=lambda record: record.question_id)
    ]
    if not full:
        return
    _, _, draws = draw_splits(full, params.splits)
    draw = draws[params.splits.kind]
    for result in judge_corpus(full, draw, params.resize.size, dict(params.data_tests)).tests:
        is_judged = is_complete or result.test not in _OF_ALL_SPLITS
        if result.test == "contradictions" and result.found:
            findings.data_test(replace(result, examples=contradictions(full).examples))
        elif is_judged and result.outcome == "failed":
            findings.data_test(result)


def _decode(
    corpus: Corpus, path: str, names: list[str], modalities: Collection[str], params: Params
) -> _DecodedImage:
    """Decode an image with all its frames, and compare its header with the records' modalities."""
    digest = hashlib.sha256()
    wrong = {}
    try:
        contents = [corpus.fetch(name) for name in names]
        for content in contents:
            digest.update(content)
        image = decode_files(contents, params.resize, params.dicom, folder=names != [path])
        for _ in image.frames:  # each is decoded on access
            pass
        for slug in modalities:
            try:
                check_modality(image, slug)
            except ImageError as error:
                wrong[slug] = error
    except ImageError as error:
        return _DecodedImage(path, error=error)
    except DamagedMemberError as error:
        return _DecodedImage(path, error=ImageError(str(error)))
    return _DecodedImage(path, digest.digest()[:16], None, wrong, describe(image))


def _note_ignored_columns(corpus: Corpus, findings: Findings) -> None:
    """Note ignored CSV columns: misspelt names, or data that should not be in the file at all."""
    for name, content in corpus.read(filter(_is_csv, corpus.question_files)):
        try:
            columns = read_header(decode_text(content)).ignored_columns
        except RefusedRecord:
            continue  # reported as a refusal
        for column in columns:
            findings.note(IGNORED_COLUMNS, name, column, "not a known column")


def _note_unused_images(corpus: Corpus, used: set[str], findings: Findings) -> None:
    for name in corpus.names:
        suffix = PurePosixPath(name.lower()).suffix
        if suffix in _OTHER_TABLES:
            findings.note(OTHER_TABLES, name, name, "a table in a form that is not read")
        is_image = name.startswith(IMAGES) and not _file_name(name).startswith(".")
        if is_image and name not in used and suffix not in (*_OTHER_TABLES, *_DOCUMENTS):
            findings.note(UNUSED_IMAGES, name, name, "named by no record that could be read")


def _note_missing_splits(records: Sequence[Record], findings: Findings) -> bool:
    """Note splits with too few images, since train and test share none; False if there are any."""
    is_complete = True
    images: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for slug in (record.modality, record.question_type):
            images[slug].add(record.image_path)
    for axis, slugs in AXES.items():
        for slug in slugs:
            count = len(images[slug])
            if count < SMALLEST_SPLIT:
                is_complete = False
                findings.note(
                    MISSING_SPLITS,
                    f"{axis}/{slug}",
                    f"{count} images",
                    f"fewer than {SMALLEST_SPLIT}",
                )
    return is_complete
