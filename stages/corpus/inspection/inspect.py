"""Inspect a corpus as the pipeline would read it, without writing anything.

Questions go through the reader of stage download, images through the decoder of stage resize. At
most one image per thread is in memory, and a few examples per kind of finding.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from stages.core.params import Params
from stages.corpus.archives.source import Corpus
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.inspection.findings import CorpusFinding, Findings
from stages.corpus.inspection.images import decodable
from stages.corpus.inspection.slices import VolumeSlices
from stages.corpus.inspection.volumes import QuestionImages, VolumeFacts, count_question_images
from stages.corpus.quarantine.advice import (
    IGNORED_COLUMNS,
    MISSING_SPLITS,
    NOT_JOINED,
    OTHER_TABLES,
    SMALLEST_SPLIT,
    UNUSED_IMAGES,
)
from stages.corpus.quarantine.ledger import Row
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.images import SHOWN
from stages.corpus.records.reading import find_images, read_questions
from stages.corpus.records.records import Record
from stages.corpus.records.table import read_header
from stages.corpus.records.texts import RefusedRecord
from stages.corpus.records.texts import decode as decode_text
from stages.corpus.splitting.data_tests import judge_corpus
from stages.corpus.splitting.drawing import draw_folds, draw_splits, make_item
from stages.corpus.splitting.draws import Draw, Item
from stages.corpus.splitting.expectations import contradictions
from stages.corpus.splitting.released import read_released
from stages.corpus.splitting.released_join import join
from stages.taxonomy import Axes

Status = Literal["ready", "problems", "unusable"]


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


@dataclass(frozen=True)
class Inspection:
    """Result of an inspection: read = usable + refused.

    `questions`: (modality, question type) -> usable ones; `images`: number per modality; `axes`:
    those of the project. All else needs decoded images, and is empty or 0 without them: `shown`:
    images of a question -> questions that show as many; `slices`: what questions show of volumes;
    `splits`: axis -> slug -> training and test questions of the kind in use, and `tests`: axis ->
    all of the latter; `volumes`: slices and plane -> volumes; `question_images`: what questions
    show -> questions that do; `contexts`: questions that have one; `longest`: the question of most
    characters, context included.
    """

    layout: str
    question_files: list[str]
    read: int
    usable: int
    questions: dict[tuple[str, str], int]
    images: dict[str, int]
    shown: dict[int, int]
    slices: VolumeSlices
    axes: Axes
    splits: dict[str, dict[str, tuple[int, int]]]
    decoded: bool
    findings: list[CorpusFinding]
    volumes: dict[VolumeFacts, int]
    question_images: dict[QuestionImages, int]
    contexts: int
    longest: Item | None
    tests: dict[str, list[Item]]

    @property
    def refused(self) -> int:
        """Records that cannot be used."""
        return self.read - self.usable

    def has_more_than(self, examples: int) -> bool:
        """Whether there is more of any kind than so many examples."""
        counts = [each.count for each in self.findings]
        counts += [kind.questions for kind in self.slices.kinds]
        return any(count > examples for count in counts)

    def status(self, strict: bool = False) -> Status:
        """One of "ready", "problems" (refusals, what stops; also notes if `strict`), "unusable"."""
        if not self.usable:
            return "unusable"
        stops = any(finding.level == "stops" for finding in self.findings)
        return "problems" if self.refused or stops or (strict and self.findings) else "ready"


def inspect(
    corpus: Corpus, params: Params, *, images: bool = True, examples: int = 3
) -> Inspection:
    """Read all questions, and with `images` decode every image that one names.

    `examples`: at most so many per kind of finding. InputError if a file cannot be read at all.
    """
    findings = Findings(examples)
    reading, files = find_images(corpus, read_questions(corpus, params.taxonomy))
    for row in _with_hints(reading.rows, corpus.names):
        findings.refuse(row)
    _note_ignored_columns(corpus, findings)
    usable = reading.records
    draw: Draw = {}
    volumes: Mapping[str, VolumeFacts] = {}
    _note_unused_images(corpus, set(chain.from_iterable(files.values())), findings)
    slices = VolumeSlices(params.volume, examples)
    if images:
        usable, volumes = decodable(corpus, usable, files, params, findings, slices)
        is_complete = _note_missing_splits(usable, params.taxonomy.axes, findings)
        draw = _run_data_tests(usable, params, findings, is_complete=is_complete)
    else:
        _note_missing_splits(usable, params.taxonomy.axes, findings)
    shown = Counter(len(record.fields.get(SHOWN, [""])) for record in usable)
    distinct: set[tuple[str, str]] = set()
    for record in usable:
        distinct.update((record.modality, path) for path in record.image_paths)
    is_csv = bool(corpus.question_files) and all(map(_is_csv, corpus.question_files))
    return Inspection(
        layout="CSV" if is_csv else "OmniMedVQA",
        question_files=list(corpus.question_files),
        read=reading.read,
        usable=len(usable),
        questions=dict(Counter((record.modality, record.question_type) for record in usable)),
        images=dict(Counter(modality for modality, _ in distinct)),
        shown=dict(sorted(shown.items())) if images else {},
        slices=slices,
        axes=params.taxonomy.axes,
        splits={
            axis: {slug: (len(train), len(test)) for slug, (train, test) in slugs.items()}
            for axis, slugs in draw.items()
        },
        decoded=images,
        findings=findings.ordered(),
        volumes=dict(sorted(Counter(volumes.values()).items())),
        question_images=count_question_images(usable, volumes) if images else {},
        contexts=sum(record.context is not None for record in usable) if images else 0,
        longest=max(map(make_item, usable), key=_length, default=None) if images else None,
        tests={axis: _tests(slugs) for axis, slugs in draw.items()},
    )


def as_json(inspection: Inspection, strict: bool = False) -> dict[str, Any]:
    """The JSON form of an inspection."""
    questions = {
        slug: {
            kind: inspection.questions[slug, kind]
            for kind in inspection.axes["task"]
            if (slug, kind) in inspection.questions
        }
        for slug in inspection.axes["modality"]
    }
    return {
        "status": inspection.status(strict),
        "layout": inspection.layout,
        "question_files": inspection.question_files,
        "read": inspection.read,
        "kept": inspection.usable,
        "refused": inspection.refused,
        "questions": questions,
        "images": {slug: inspection.images.get(slug, 0) for slug in inspection.axes["modality"]},
        "images_decoded": inspection.decoded,
        "images_per_question": {str(count): number for count, number in inspection.shown.items()},
        "slices": inspection.slices.as_json() if inspection.decoded else None,
        "questions_with_context": inspection.contexts,
        "volumes": [
            {"slices": facts.frames, "plane": facts.plane, "volumes": count}
            for facts, count in inspection.volumes.items()
        ],
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


def _length(item: Item) -> int:
    return len(item["problem"]) + len(item.get("context", ""))


def _tests(slugs: Mapping[str, tuple[Sequence[Item], Sequence[Item]]]) -> list[Item]:
    return list(chain.from_iterable(test for _, test in slugs.values()))


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


def _run_data_tests(
    records: Sequence[Record],
    params: Params,
    findings: Findings,
    *,
    is_complete: bool,
) -> Draw:
    """Run the data tests of stage splits on the splits that it would draw; the draw, or first fold.

    Those that need questions of all modalities and types count only if the corpus `is_complete`.
    Contradictory labels are listed even if they are within their limit.
    """
    full = sorted(records, key=lambda record: record.question_id)
    if not full:
        return {}
    axes = params.taxonomy.axes
    _, group_of, draws = draw_splits(full, params.splits, axes)
    if params.splits.kind == "released":
        draws["released"] = _join_released(full, params, findings, is_complete=is_complete)
    folds = [draws[params.splits.kind]]
    if params.splits.folds:
        folds = draw_folds(full, group_of, params.splits, axes)
    for result in judge_corpus(full, folds, params.resize.size, dict(params.data_tests)).tests:
        is_judged = is_complete or result.test not in _OF_ALL_SPLITS
        if result.test == "contradictions" and result.found:
            findings.data_test(replace(result, examples=contradictions(full).examples))
        elif is_judged and result.outcome == "failed":
            findings.data_test(result)
    return folds[0]  # all are of about one size


def _join_released(
    records: Sequence[Record], params: Params, findings: Findings, *, is_complete: bool
) -> Draw:
    """The released splits; questions that do not join stop a complete corpus if they are many."""
    settings = params.splits.released
    joined = join(read_released(Path(settings.folder), params.taxonomy), records)
    for each in joined.files:
        add = findings.stop if is_complete and each.lost > settings.max_lost else findings.note
        for lost in each.not_joined:
            where = f"{settings.folder}/{lost.file}, item {lost.index}"
            add(NOT_JOINED, where, lost.image, f"{lost.fault} {lost.found}".strip())
    return joined.draw(params.taxonomy.axes)


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


def _note_missing_splits(records: Sequence[Record], axes: Axes, findings: Findings) -> bool:
    """Note splits with too few images, since train and test share none; False if there are any."""
    is_complete = True
    images: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for slug in (record.modality, record.question_type):
            images[slug].update(record.image_paths)
    for axis, slugs in axes.items():
        for slug in slugs:
            count = len(images[slug])
            if count < SMALLEST_SPLIT:
                is_complete = False
                findings.note(
                    MISSING_SPLITS,
                    f"{axis}/{slug}",
                    "1 image" if count == 1 else f"{count} images",
                    f"fewer than {SMALLEST_SPLIT}",
                )
    return is_complete
