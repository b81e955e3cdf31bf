"""Conversion of questions in any known form into one corpus folder in OmniMedVQA's layout.

The corpus is written under a temporary name beside its target and renamed when it is complete. The
same source, options and seed give the same bytes. Every entry of the source is either a question of
the corpus or a refusal with its location and reason.
"""

from __future__ import annotations

import codecs
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.core.outputs import atomic_directory, write_json
from stages.corpus.dataset.paths import QUESTIONS, is_left_behind
from stages.corpus.formats.balance import BlindAccuracy, blind_accuracy, option_texts
from stages.corpus.formats.images import ImageStore, file_name
from stages.corpus.formats.labels import ClassFolders
from stages.corpus.formats.med_r1 import MedR1Files
from stages.corpus.formats.parquet import HuggingFaceFolder
from stages.corpus.formats.questions import (
    ConversionOptions,
    Reader,
    Refusal,
    SourceLocation,
)
from stages.corpus.formats.sheets import LabelSheets, QuestionSheets
from stages.corpus.formats.vlmevalkit import VlmEvalKitTable
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import written_context
from stages.corpus.records.records import check_texts
from stages.corpus.records.table import read_header
from stages.corpus.records.texts import RefusedRecord

CORPUS: Final = "corpus"
"""Format of what the pipeline reads as it is."""
READERS: Final[tuple[Reader, ...]] = (
    VlmEvalKitTable(),
    MedR1Files(),
    HuggingFaceFolder(),
    QuestionSheets(),
    LabelSheets(),
    ClassFolders(),
)
"""In the order of detection: the more special form first."""
_HEAD: Final = 2**16
_EXAMPLES: Final = 3


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion: entries = questions + refusals."""

    format: str
    entries: int
    """Number read from the source."""
    questions: int
    """Number in the corpus."""
    refusals: tuple[Refusal, ...]
    """In the order of the source."""
    images: int
    """Different images in the corpus."""
    patients_known: int
    """Images whose patient is known."""
    modalities: Mapping[str, int]
    """Word of a modality, as written -> its questions."""
    question_types: Mapping[str, int]
    """Word of a question type, as written -> its questions."""
    labels: Mapping[str, Mapping[str, int]]
    """Label column -> label -> its questions; empty unless questions were built from labels."""
    blind: BlindAccuracy
    """What rules answer that never see the image; it has chance, too."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A question without its image."""

    position: int
    location: SourceLocation
    record: dict[str, str]
    image_name: str
    label_column: str | None


def detect(path: Path) -> str:
    """The name of the format of a file or folder; `corpus` if it needs no conversion.

    Raises InputError that lists what was found and what is supported.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if _is_corpus(path):
        return CORPUS
    name = next((reader.name for reader in READERS if reader.detects(path)), None)
    if name is not None:
        return name
    supported = "; ".join(f"{reader.name}: {reader.description}" for reader in READERS)
    raise InputError(f"{path}: no known format. Found: {_found(path)}. Supported: {supported}")


def convert(source: Path, target: Path, options: ConversionOptions) -> Conversion:
    """Write the questions of a source as a corpus folder, and what became of each entry.

    Raises InputError if nothing can be converted, if the target holds anything, or if questions
    built from labels can be answered without their images.
    """
    reader = _reader(source, options)
    _check_target(source, target)
    with atomic_directory(target) as folder:
        entries, refusals = _store(reader, source, folder, options)
        ordered = [refusals[position] for position in sorted(refusals)]
        if not entries:
            examples = "".join(f"\n- {refusal}" for refusal in ordered[:_EXAMPLES])
            raise InputError(f"{source}: none of {len(ordered)} entries can be used{examples}")
        by_file = defaultdict(list)
        for entry in entries:
            by_file[file_name(entry.record["dataset"])].append(entry.record)
        for name, records in sorted(by_file.items()):
            write_json(folder / QUESTIONS / f"{name}.json", records)
        conversion = _summary(reader.name, entries, ordered, options)
        if conversion.labels:
            _check_blind(conversion, options)
    return conversion


def _reader(source: Path, options: ConversionOptions) -> Reader:
    name = options.format or detect(source)
    if name == CORPUS:
        raise InputError(f"{source} is a corpus already: the pipeline reads it as it is")
    reader = next((reader for reader in READERS if reader.name == name), None)
    if reader is None:
        names = ", ".join(reader.name for reader in READERS)
        raise InputError(f"format={name!r} is unknown: name one of {names}")
    return reader


def _check_target(source: Path, target: Path) -> None:
    """Raise InputError unless the target is free or empty, and apart from the source."""
    resolved = target.resolve()
    root = source.resolve()
    if root == resolved or root.is_relative_to(resolved) or resolved.is_relative_to(root):
        raise InputError(f"{target} and the source {source} contain each other: name another")
    if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"{target} exists: remove it, or name another")


def _store(
    reader: Reader, source: Path, folder: Path, options: ConversionOptions
) -> tuple[list[_Entry], dict[int, Refusal]]:
    """Store the images of usable questions; also the refusals, by their positions."""
    images = ImageStore(folder)
    entries: dict[str, _Entry] = {}
    refusals: dict[int, Refusal] = {}
    for position, each in enumerate(reader.read(source, options)):
        if isinstance(each, Refusal):
            refusals[position] = each
            continue
        record = each.record
        entry = _Entry(position, each.location, record, each.image_name, each.label_column)
        try:
            check_texts(record)
            if first := entries.get(record["question_id"]):
                why = f"duplicate question_id; kept: {first.location}"
                raise RefusedRecord(record["question_id"], why, Reason.DUPLICATE_ID)
            images.add(each.image_name, each.image)
            entries[record["question_id"]] = entry
        except RefusedRecord as error:
            refusals[position] = Refusal.of(each.location, error)
    used, contradictions = _without_contradictions(list(entries.values()))
    images.remove_others({entry.image_name for entry in used})
    return used, refusals | contradictions


def _without_contradictions(
    entries: Sequence[_Entry],
) -> tuple[list[_Entry], dict[int, Refusal]]:
    """Entries without those that answer one question about one image differently."""
    answers: defaultdict[tuple[str, ...], dict[str, SourceLocation]] = defaultdict(dict)
    for entry in entries:
        answers[_question_key(entry)].setdefault(entry.record["gt_answer"], entry.location)
    used = []
    refusals = {}
    for entry in entries:
        found = answers[_question_key(entry)]
        if len(found) == 1:
            used.append(entry)
            continue
        others = {text: place for text, place in found.items() if text != entry.record["gt_answer"]}
        text, place = next(iter(others.items()))
        why = f"the same question about the same image has the answer {text!r} in {place}"
        error = RefusedRecord(entry.record["gt_answer"], why, Reason.ANSWER_AMBIGUOUS)
        refusals[entry.position] = Refusal.of(entry.location, error)
    return used, refusals


def _question_key(entry: _Entry) -> tuple[str, ...]:
    options = sorted(option_texts(entry.record).values())
    context = [f"{name}: {text}" for name, text in written_context(entry.record).items()]
    return (entry.record["image_path"], entry.record["question"], *options, *context)


def _summary(
    name: str, entries: Sequence[_Entry], refusals: Sequence[Refusal], options: ConversionOptions
) -> Conversion:
    records = [entry.record for entry in entries]
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        if entry.label_column is not None:
            labels[entry.label_column][entry.record["gt_answer"]] += 1
    with_patient = {record["image_path"] for record in records if "patient" in record}
    return Conversion(
        format=name,
        entries=len(entries) + len(refusals),
        questions=len(entries),
        refusals=tuple(refusals),
        images=len({record["image_path"] for record in records}),
        patients_known=len(with_patient),
        modalities=_counts(record["modality_type"] for record in records),
        question_types=_counts(record["question_type"] for record in records),
        labels={column: _counts(counts.elements()) for column, counts in sorted(labels.items())},
        blind=blind_accuracy(records, seed=options.seed),
    )


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _check_blind(conversion: Conversion, options: ConversionOptions) -> None:
    """Raise InputError if a blind rule answers more than chance and the margin."""
    blind = conversion.blind
    if options.accept_blind or blind.highest <= blind.chance + options.blind_margin:
        return
    raise InputError(
        f"the questions can be answered without the image: {blind.highest:.1%} are, by chance"
        f" {blind.chance:.1%} would be (limit: chance + {options.blind_margin:.0%}), because some"
        f" labels are frequent, {_frequent(conversion.labels)}: --equalize refuses surplus"
        " images of frequent labels, --accept-blind accepts the questions as they are"
    )


def _frequent(labels: Mapping[str, Mapping[str, int]]) -> str:
    """The most frequent label of each column, with its share."""
    texts = []
    for column, counts in labels.items():
        label = max(counts, key=lambda each: counts[each])
        texts.append(f"{label!r} with {counts[label] / sum(counts.values()):.0%} of {column}")
    return ", ".join(texts)


def _is_corpus(path: Path) -> bool:
    """Whether the pipeline reads a folder as it is: OmniMedVQA's layout, or CSV with images."""
    if not path.is_dir():
        return False
    if any((folder / QUESTIONS).is_dir() for folder in (path, *_folders(path))):
        return True
    tables = [
        file
        for file in sorted(path.iterdir())
        if file.suffix.lower() == ".csv" and not is_left_behind(file.name)
    ]
    return bool(tables) and all(map(_is_table, tables))


def _folders(path: Path) -> list[Path]:
    return [each for each in sorted(path.iterdir()) if each.is_dir()]


def _is_table(file: Path) -> bool:
    """Whether the first lines are those of a CSV that the pipeline reads."""
    with file.open("rb") as handle:
        head = handle.read(_HEAD)
    is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    decoder = codecs.getincrementaldecoder("utf-16" if is_utf16 else "utf-8-sig")()
    try:
        read_header(decoder.decode(head))  # its end may be inside a character
    except (RefusedRecord, UnicodeDecodeError):
        return False
    return True


def _found(path: Path) -> str:
    """What is in a folder, or the kind of a file."""
    if path.is_file():
        return f"a file {path.suffix or 'without a suffix'}"
    suffixes = Counter(file.suffix.lower() for file in path.rglob("*") if file.is_file())
    texts = [
        f"{count} {suffix or 'without a suffix'}" for suffix, count in sorted(suffixes.items())
    ]
    return ", ".join(texts[:8]) or "an empty folder"
