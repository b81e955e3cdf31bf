"""Questions and refusals that every reader yields, and the settings that they share.

A reader yields one `Question` or one `Refusal` per entry of its source, in a fixed order, so that
nothing is lost: read = kept + refused. Words of modalities and question types pass as written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

from stages.core.errors import InputError
from stages.core.params import shipped_taxonomy
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.dataset.problems import LETTERS, letter_options
from stages.corpus.dataset.split_paths import parse_split_path
from stages.corpus.quarantine.ledger import safe_text
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import written_context
from stages.corpus.records.table import content_id
from stages.corpus.records.texts import RefusedRecord
from stages.taxonomy import Vocabulary

DIAGNOSIS: Final = "Disease Diagnosis"
"""Question type of labels, unless the options name another."""


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Where an entry is in a source: file, sheet, and line or row, both counted from 1."""

    file: str
    line: int | None = None
    sheet: str | None = None
    row: int | None = None

    def __str__(self) -> str:
        """As in messages: "ward.xlsx, sheet 'Questions', row 3"."""
        parts = [safe_text(self.file)]
        if self.sheet is not None:
            parts.append(f"sheet {self.sheet!r}")
        if self.line is not None:
            parts.append(f"line {self.line}")
        if self.row is not None:
            parts.append(f"row {self.row}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry that is not converted: location, offending value, reason in words and its code."""

    location: SourceLocation
    value: str
    why: str
    reason: Reason | None
    """None if the entry itself has no fault."""

    @classmethod
    def of(cls, location: SourceLocation, error: RefusedRecord) -> Refusal:
        """The refusal of an entry for which a check raised `error`."""
        return cls(location, error.what, error.why, error.reason)

    def __str__(self) -> str:
        """As in messages: location, value and reason."""
        return f"{self.location}: {self.value!r}: {self.why}"


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its image, a file to copy or the bytes of one.

    `image_name` is the image's path below Images/, `answer` the text of an option. Files of `image`
    may be temporary: they exist until the reader yields its next entry.
    """

    location: SourceLocation
    dataset: str
    question_id: str
    question_type: str
    question: str
    options: tuple[str, ...]
    answer: str
    modality: str
    image: Path | bytes
    image_name: str
    patient: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    """The fields of a patient's context, as written."""
    label_column: str | None = None
    """The label that was made a question, of class folders and label sheets."""

    @property
    def record(self) -> dict[str, Any]:
        """OmniMedVQA's fields of this question."""
        options = {f"option_{key}": text for key, text in letter_options(self.options).items()}
        record: dict[str, Any] = {
            "dataset": self.dataset,
            "question_id": self.question_id or self._content_id(options),
            "question_type": self.question_type,
            "question": self.question,
            "gt_answer": self.answer,
            "image_path": f"{IMAGES}{self.image_name}",
            **options,
            "modality_type": self.modality,
            **self.context,
        }
        return record | ({"patient": self.patient} if self.patient else {})

    def _content_id(self, options: Mapping[str, str]) -> str:
        texts = [self.dataset, self.question_type, self.question, self.answer, self.image_name]
        return content_id([*texts, options, self.modality], self.context)

    @classmethod
    def from_record(
        cls,
        location: SourceLocation,
        record: Mapping[str, Any],
        image: Path | bytes,
        image_name: str,
    ) -> Question:
        """The question of a record in OmniMedVQA's form.

        Raises RefusedRecord, with the remedy, if it has no modality, no question type, or a gap
        between its options, which would otherwise be closed.
        """
        names = [name for name in record if name.startswith("option_")]
        if gaps := {f"option_{letter}" for letter in LETTERS[: len(names)]} - {*names}:
            why = f"a gap in the options: {min(gaps)} is missing"
            raise RefusedRecord(names, why, Reason.OPTION_GAP)
        for name, option in (("modality_type", "modality"), ("question_type", "question-type")):
            if not record.get(name, "").strip():
                why = f"{name} is missing: write it, or give it with --{option}"
                raise RefusedRecord("", why, Reason.FIELD_MISSING)
        return cls(
            location=location,
            dataset=record["dataset"],
            question_id=record.get("question_id", ""),
            question_type=record["question_type"].strip(),
            question=record["question"].strip(),
            options=tuple(record[name].strip() for name in sorted(names)),
            answer=record["gt_answer"].strip(),
            modality=record["modality_type"].strip(),
            image=image,
            image_name=image_name,
            patient=record.get("patient"),
            context=written_context(record),
        )


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One label of one image, which becomes one question."""

    location: SourceLocation
    dataset: str
    modality: str
    question_type: str
    column: str
    label: str
    image: Path
    image_name: str
    patient: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConversionOptions:
    """What a source does not say itself; without an option nothing is assumed in its place."""

    format: str | None = None
    """Name of the format; detected if it is None."""
    dataset: str | None = None
    modality: str | None = None
    """Of questions without a modality of their own."""
    question_type: str | None = None
    """Of questions without a type of their own."""
    question: str | None = None
    """Text of the questions about labels, with {label} for the column's name."""
    encoding: str | None = None
    """Of sheets that are neither UTF-8 nor UTF-16 with a byte order mark."""
    sheet: str | None = None
    """Name of the sheet of a workbook that has several."""
    images: Path | None = None
    """Folder from which image paths are written; by default the source's."""
    labels: tuple[str, ...] = ()
    """Columns of labels; by default `label` or `class`."""
    bins: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Label column of numbers -> lower bounds of its ranges; the last one is open."""
    answer_base: int | None = None
    """What an answer that is a number counts from, 0 or 1; detected if it is None."""
    seed: int = 42
    equalize: bool = False
    """Refuse surplus images of frequent labels, until no label reveals itself by its frequency."""
    accept_blind: bool = False
    """Accept built questions that can be answered without the image above `blind_margin`."""
    blind_margin: float = 0.10
    """Excess of the blind accuracy over chance above which built questions are not accepted."""


class Reader(Protocol):
    """Reader of one format."""

    name: str
    """As in ConversionOptions.format."""
    description: str
    """For messages that list what is supported."""

    def detects(self, path: Path) -> bool:
        """Whether a file or folder has this form; looks at names and first lines only."""

    def read(self, path: Path, options: ConversionOptions) -> Iterator[Question | Refusal]:
        """All entries in a fixed order. Raises InputError if the source as a whole is unusable."""


def keep_word(cell: str, field_name: str) -> str:
    """OmniMedVQA's name for a slug or name of its own in any case; other words as written."""
    known = shipped_taxonomy()
    vocabulary = known.modalities if field_name == known.modalities.field else known.question_types
    return vocabulary.spellings.get(cell.strip().casefold(), cell.strip())


def parse_bins(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Column -> bounds, from texts such as "age=0,40,60"; InputError for another form."""
    bins = {}
    for text in texts:
        column, equals, bounds = text.rpartition("=")
        try:
            values = [float(bound) for bound in bounds.split(",")]
        except ValueError:
            values = []
        if not column or not equals or values != sorted(set(values)) or len(values) < 2:
            raise InputError(f"--bins {text}: write a column and rising bounds, as age=0,40,60")
        bins[column] = tuple(values)
    return bins


def path_words(path: PurePosixPath) -> tuple[str | None, str | None]:
    """Modality and question type that the folders or the name of a file give, e.g. `modality/ct/`.

    The word after a folder named `modality` or `task`, however spelled, or any word that is one of
    OmniMedVQA's.
    """
    parts = parse_split_path(path)
    known = shipped_taxonomy()
    modality = parts.word("modality") or _known(parts.words, known.modalities)
    kind = parts.word("task") or _known(parts.words, known.question_types)
    return modality, kind


def _known(parts: Sequence[str], vocabulary: Vocabulary) -> str | None:
    spellings = vocabulary.spellings
    return next((part for part in reversed(parts) if part.casefold() in spellings), None)
