"""Inspect a corpus as the pipeline would read it, without writing anything.

Questions go through the reader of stage download, images through the decoder of stage resize.
Images are held in memory one at a time and thread, refusals by kind with a few examples of each.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

from stages.core.iteration.prefetch import prefetch
from stages.core.iteration.progress import counted
from stages.core.params import Params
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.source import Corpus
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.images.decoding import ImageError, decode_files
from stages.corpus.inspection.advice import advise
from stages.corpus.quarantine.ledger import Row
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.reading import find_images, read_questions
from stages.corpus.records.records import Record, refuse
from stages.corpus.records.table import read_header
from stages.corpus.records.texts import RefusedRecord
from stages.corpus.records.texts import decode as decode_text
from stages.taxonomy import AXES

Status = Literal["ready", "problems", "unusable"]
Level = Literal["refused", "note"]

LEAST: Final = 2
"""Different images that a modality or a question type needs: one to train on, one to test."""


class Example(NamedTuple):
    """One place at which something was found: where, which value, and what is said of it."""

    where: str
    what: str
    why: str


@dataclass
class CorpusFinding:
    """One kind of thing that is wrong, or odd: how often, some examples, and what to do.

    `refused`: records are lost by it.
    """

    kind: str
    remedy: str
    level: Level
    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """Result of an inspection: read = kept + refused.

    `questions`: (modality, question type) -> number kept; `images`: number per modality.
    """

    layout: str
    question_files: list[str]
    read: int
    kept: int
    questions: dict[tuple[str, str], int]
    images: dict[str, int]
    decoded: bool
    findings: list[CorpusFinding]

    @property
    def refused(self) -> int:
        """Records that cannot be used."""
        return self.read - self.kept

    def status(self, strict: bool = False) -> Status:
        """One of "ready", "problems" (refusals; oddities if `strict`) and "unusable"."""
        if not self.kept:
            return "unusable"
        return "problems" if self.refused or (strict and self.findings) else "ready"


class _Look(NamedTuple):
    name: str
    digest: bytes
    error: ImageError | None


class Findings:
    """Findings by kind, with the first examples of each."""

    def __init__(self, examples: int) -> None:
        self.most, self.by_kind = examples, dict[str, CorpusFinding]()

    def refuse(self, row: Row) -> None:
        """Count a refused record under the kind of its reason."""
        kind, remedy = advise(row.reason)
        self.add(kind, remedy, "refused", Example(str(row.where), row.what, row.why))

    def add(self, kind: str, remedy: str, level: Level, row: Example) -> None:
        """Count one finding of a kind."""
        finding = self.by_kind.setdefault(kind, CorpusFinding(kind, remedy, level))
        finding.count += 1
        if len(finding.examples) < self.most:
            finding.examples.append(row)

    def ordered(self) -> list[CorpusFinding]:
        """What loses records first, then by count."""
        return sorted(
            self.by_kind.values(),
            key=lambda finding: (finding.level != "refused", -finding.count, finding.kind),
        )


def inspect(
    corpus: Corpus, params: Params, *, images: bool = True, examples: int = 3
) -> Inspection:
    """Read all questions, and with `images` decode every image that one names.

    InputError if a file cannot be read at all.
    """
    findings = Findings(examples)
    reading, files = find_images(corpus, read_questions(corpus))
    for row in _pointed(reading.rows, corpus.names):
        findings.refuse(row)
    _note_columns(corpus, findings)
    kept = (
        _without_bad_images(corpus, reading.records, files, params, findings)
        if images
        else reading.records
    )
    _note_unnamed(corpus, set(chain.from_iterable(files.values())), findings)
    _note_small(kept, findings)
    counts = Counter(
        modality for modality, _ in {(record.modality, record.image_path) for record in kept}
    )
    layout = (
        "CSV"
        if corpus.question_files
        and all(name.lower().endswith(".csv") for name in corpus.question_files)
        else "OmniMedVQA"
    )
    questions = Counter((record.modality, record.question_type) for record in kept)
    return Inspection(
        layout,
        list(corpus.question_files),
        reading.read,
        len(kept),
        dict(questions),
        dict(counts),
        images,
        findings.ordered(),
    )


def as_json(inspection: Inspection, strict: bool = False) -> dict[str, Any]:
    """The same for programs."""
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
        "kept": inspection.kept,
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
                "examples": [row._asdict() for row in finding.examples],
            }
            for finding in inspection.findings
        ],
    }


def _pointed(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Refusal rows, with a hint where a file of the same name differs only in case or folder."""
    alike: dict[str, list[str]] = {}
    if any(row.reason == Reason.IMAGE_MISSING for row in rows):
        for name in names:
            alike.setdefault(_bare(name), []).append(name)
    return [
        (
            row._replace(why=f"{row.why}; there is {alike[_bare(row.what)][0]!r}")
            if row.reason == Reason.IMAGE_MISSING and len(alike.get(_bare(row.what), [])) == 1
            else row
        )
        for row in rows
    ]


def _bare(name: str) -> str:
    return name.rpartition("/")[2].casefold()


def _without_bad_images(
    corpus: Corpus,
    records: list[Record],
    files: Mapping[str, list[str]],
    params: Params,
    findings: Findings,
) -> list[Record]:
    """The records whose image can be decoded; notes images that are byte for byte the same."""
    paths = sorted(files)
    errors: dict[str, ImageError] = {}
    first: dict[bytes, str] = {}

    def look(path: str) -> _Look:
        digest = hashlib.sha256()
        try:
            contents = [corpus.fetch(name) for name in files[path]]
            for content in contents:
                digest.update(content)
            decode_files(contents, params.resize, params.dicom, folder=files[path] != [path])
        except ImageError as error:
            return _Look(path, b"", error)
        except DamagedMemberError as error:
            return _Look(path, b"", ImageError(str(error)))
        return _Look(path, digest.digest()[:16], None)

    threads = os.cpu_count() or 1
    looks = prefetch(look, paths, threads=threads, budget=threads + 1)
    for name, digest, error in counted(looks, len(paths), "check", "image"):
        if error:
            errors[name] = error
        elif (known := first.setdefault(digest, name)) != name:
            remedy = (
                "No harm: copies are kept together in train or test. Questions of a copy with"
                " another answer would contradict each other."
            )
            findings.add(
                "images that are there twice",
                remedy,
                "note",
                Example(name, known, "the same bytes as this one"),
            )
    for record in records:
        if error := errors.get(record.image_path):
            why = f"the image cannot be used: {error}"
            findings.refuse(refuse(record, record.image_path, why, error.reason))
    return [record for record in records if record.image_path not in errors]


def _note_columns(corpus: Corpus, findings: Findings) -> None:
    """Note ignored CSV columns: misspelt names, or data that should not be in the file at all."""
    for name, content in corpus.read(
        name for name in corpus.question_files if name.lower().endswith(".csv")
    ):
        try:
            left_out = read_header(decode_text(content)).left_out
        except RefusedRecord:
            continue  # its one row says so
        for column in left_out:
            remedy = (
                "They are not read and go nowhere. Take out what names a patient before the folder"
                " is passed on."
            )
            findings.add(
                "columns that are left out",
                remedy,
                "note",
                Example(name, column, "no column of ours"),
            )


def _note_unnamed(corpus: Corpus, named: set[str], findings: Findings) -> None:
    for name in corpus.names:
        if name.startswith(IMAGES) and name not in named and not _hidden(name):
            remedy = (
                "They are not used. Name them in a question, or take them out; a name with other"
                " capitals is another name."
            )
            findings.add(
                "images that no question names",
                remedy,
                "note",
                Example(name, name, "named by no record that could be read"),
            )


def _hidden(name: str) -> bool:
    """What systems leave in folders."""
    return name.rpartition("/")[2].startswith((".", "Thumbs.db", "desktop.ini"))


def _note_small(kept: Sequence[Record], findings: Findings) -> None:
    """Splits that could not be cut, since train and test share no image."""
    for axis, slugs in AXES.items():
        by_slug: dict[str, set[str]] = {slug: set() for slug in slugs}
        for record in kept:
            by_slug[record.modality if axis == "modality" else record.question_type].add(
                record.image_path
            )
        for slug, images in by_slug.items():
            if len(images) < LEAST:
                remedy = (
                    f"Each of the 13 splits needs {LEAST} images that are no copies, and hundreds"
                    " to mean anything; stage splits refuses a corpus that lacks one. Add data, or"
                    " give the pipeline this corpus together with one that has it:"
                    " docs/own-data.md."
                )
                row = Example(f"{axis}/{slug}", f"{len(images)} images", f"fewer than {LEAST}")
                findings.add("splits without data", remedy, "note", row)
