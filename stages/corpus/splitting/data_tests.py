"""Data tests of a corpus: meanings, remedies, and the verdict by limit and severity.

A failed test of severity `error` stops the pipeline before anything is trained; a `warning` is
printed and reported. Tests of single records are always errors: a record that fails one is not a
usable question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from stages.core.errors import InputError
from stages.core.outputs import read_json, write_json
from stages.corpus.quarantine.reasons import CorpusFault, Reason, RefusedDataError
from stages.corpus.splitting import expectations
from stages.corpus.splitting.draws import Draw, by_fold
from stages.corpus.splitting.expectations import Measurement

if TYPE_CHECKING:
    from stages.corpus.records.records import Reading, Record

Severity = Literal["error", "warning", "off"]
Outcome = Literal["passed", "failed", "not run"]


class Rule(Protocol):
    """An entry of the group `data_tests` of params.yaml."""

    @property
    def severity(self) -> Severity:
        """What a failure does."""

    @property
    def limit(self) -> float:
        """The largest value that passes; the smallest if `Expectation.is_minimum`."""


class Expectation(NamedTuple):
    """Meaning of a test's value, and the remedy if it is beyond its limit."""

    meaning: str
    remedy: str
    is_minimum: bool = False
    """The value may not be below the limit; otherwise not above."""


@dataclass(frozen=True)
class Result:
    """Outcome of one test, with the numbers of its `Measurement`; the form of data-tests.json."""

    test: str
    severity: Severity
    outcome: Outcome
    limit: float
    value: float
    checked: int
    found: int
    """Number of violations."""
    where: str
    examples: tuple[str, ...]

    @property
    def stops(self) -> bool:
        """Whether it is a failed error."""
        return self.outcome == "failed" and self.severity == "error"


@dataclass(frozen=True)
class Results:
    """Results of all tests in the order of TESTS, and image statistics by modality."""

    tests: tuple[Result, ...]
    statistics: Mapping[str, Mapping[str, Any]]


_REDO: Final = "the file was changed after stage resize: run `dvc repro -f resize`"
_CORRECT: Final = "check the examples, then remove or correct what is wrong in the corpus"

RECORD_TESTS: Final[Mapping[str, Expectation]] = {
    "schema": Expectation(
        "records with a missing or malformed field, and files that are not a list of records",
        _REDO,
    ),
    "facts": Expectation(
        "records without the image metadata of stage resize", "run `dvc repro resize`"
    ),
    "values": Expectation(
        "records with an unknown modality or question type, or an unusable text or path", _REDO
    ),
    "options": Expectation("records with fewer than 2, more than 4 or duplicate options", _REDO),
    "gold": Expectation("records whose answer is none of the options", _REDO),
    "ids": Expectation(
        "duplicate question ids", "make the ids of the corpus unique and run `dvc repro`"
    ),
    "files": Expectation("records in the file of another modality", _REDO),
}
"""Tests of single records: always errors, with a limit of zero."""

CORPUS_TESTS: Final[Mapping[str, Expectation]] = {
    "repeated_questions": Expectation(
        "share of questions that repeat another: words, options, image", "remove the repetitions"
    ),
    "contradictions": Expectation(
        "share of questions that another one about the same image contradicts", _CORRECT
    ),
    "letter_bias": Expectation(
        "excess of the most frequent right letter over chance, share of questions",
        "shuffle the options",
    ),
    "majority_letter": Expectation(
        "largest share of one letter among the right answers of a split", "shuffle the options"
    ),
    "majority_answer": Expectation(
        "largest share of one text among the right answers of a split",
        "add questions, or compare with the blind baseline",
    ),
    "single_answer_tests": Expectation(
        "test splits in which one letter or one text is always right",
        "add questions with other answers",
    ),
    "questions_of_modality": Expectation(
        "questions of the modality that has fewest", "add data of this modality", is_minimum=True
    ),
    "questions_of_type": Expectation(
        "questions of the question type that has fewest", "add data of this type", is_minimum=True
    ),
    "blank_images": Expectation("share of images of a single grey level", _CORRECT),
    "dark_or_bright_images": Expectation(
        "share of images that are all but black or white",
        "check whether 16-bit sources are scaled; " + _CORRECT,
    ),
    "upscaled_images": Expectation(
        "share of images smaller than what they are resized to",
        "get larger sources, or lower resize.size",
    ),
    "extreme_aspect_images": Expectation(
        "share of images with one side more than 4 times the other", "crop them in the corpus"
    ),
    "duplicate_images": Expectation(
        "share of images with the pixels of another",
        "remove the copies; grouped splits keep them on one side",
    ),
}
"""Tests of the corpus, with a severity and a limit in params.yaml."""

TESTS: Final[Mapping[str, Expectation]] = {**RECORD_TESTS, **CORPUS_TESTS}

_REASONS: Final[Mapping[str, tuple[Reason, ...]]] = {
    "schema": (
        Reason.FILE_UNREADABLE,
        Reason.FILE_EMPTY,
        Reason.FILE_ENCODING,
        Reason.FILE_FORM,
        Reason.RECORD_FORM,
        Reason.RECORD_VALUE,
        Reason.FIELD_DUPLICATE,
        Reason.FIELD_MISSING,
        Reason.FIELD_TYPE,
        Reason.FIELD_EMPTY,
        Reason.FIELD_ENCODING,
    ),
    "values": (
        Reason.FIELD_TEXT,
        Reason.FIELD_LENGTH,
        Reason.FIELD_TOKEN,
        Reason.FIELD_AGE,
        Reason.FIELD_SEX,
        Reason.FIELD_IDENTIFIER,
        Reason.UNKNOWN_MODALITY,
        Reason.UNKNOWN_QUESTION_TYPE,
        Reason.IMAGE_PATH,
        Reason.OPTION_LABEL,
    ),
    "options": (
        Reason.OPTION_COUNT,
        Reason.OPTION_GAP,
        Reason.OPTION_EXTRA,
        Reason.OPTION_LETTERS,
        Reason.OPTIONS_EQUAL,
    ),
    "gold": (Reason.ANSWER_NOT_OFFERED,),
    "ids": (Reason.DUPLICATE_ID,),
}


@dataclass(frozen=True)
class _NoneAllowed:
    severity: Severity = "error"
    limit: float = 0.0


def judge_records(reading: Reading, file_of: Mapping[str, str]) -> list[Result]:
    """Run the tests of single records; `file_of`: modality -> the file for its records."""
    measurements = {
        name: expectations.refused_records(reading, reasons) for name, reasons in _REASONS.items()
    }
    measurements["facts"] = expectations.invalid_metadata(reading.records)
    measurements["files"] = expectations.misfiled_records(reading.records, file_of)
    return [_judge(name, measurements[name], _NoneAllowed()) for name in RECORD_TESTS]


def judge_corpus(
    records: Sequence[Record], folds: Sequence[Draw], size: int, rules: Mapping[str, Rule]
) -> Results:
    """Run the tests of a corpus on valid records and the splits drawn from them.

    `folds`: the draws of a cross-validation, or one draw; `size`: side of the resized images;
    `rules`: test -> severity and limit, for all of CORPUS_TESTS.
    """
    draw, every_split = folds[0], by_fold(folds)
    images = expectations.unique_images(records)
    modalities = Counter(record.modality for record in records)
    types = Counter(record.question_type for record in records)
    measurements = {
        "repeated_questions": expectations.repeated_questions(records),
        "contradictions": expectations.contradictions(records),
        "letter_bias": expectations.letter_bias(records),
        "majority_letter": expectations.majority_letter(every_split),
        "majority_answer": expectations.majority_answer(every_split),
        "single_answer_tests": expectations.single_answer_tests(every_split),
        "questions_of_modality": expectations.smallest_count(
            {slug: modalities[slug] for slug in draw["modality"]}
        ),
        "questions_of_type": expectations.smallest_count(
            {slug: types[slug] for slug in draw["task"]}
        ),
        "blank_images": expectations.blank_images(images),
        "dark_or_bright_images": expectations.dark_or_bright_images(images),
        "upscaled_images": expectations.upscaled_images(images, size),
        "extreme_aspect_images": expectations.extreme_aspect_images(images),
        "duplicate_images": expectations.duplicate_images(images),
    }
    results = tuple(_judge(name, measurements[name], rules[name]) for name in CORPUS_TESTS)
    return Results(results, expectations.statistics(records, images, size, draw["modality"]))


def write_results(path: Path, results: Results, provenance: Mapping[str, Any]) -> None:
    """Write results as JSON, with meanings and remedies; `passed`: no error failed."""
    tests = [
        {**asdict(each), "meaning": TESTS[each.test].meaning, "remedy": TESTS[each.test].remedy}
        for each in results.tests
    ]
    tree = {
        "passed": not any(each.stops for each in results.tests),
        "tests": tests,
        "statistics": results.statistics,
        "provenance": provenance,
    }
    write_json(path, tree)


def read_results(path: Path) -> Results:
    """Read the file of `write_results`; InputError if it is missing or malformed."""
    remedy = "run `dvc repro splits`"
    tree = read_json(path, remedy)
    try:
        results = []
        for test in tree["tests"]:
            fields = {key: test[key] for key in test if key not in ("meaning", "remedy")}
            results.append(Result(**fields | {"examples": tuple(test["examples"])}))
        return Results(tuple(results), tree["statistics"])
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not a file of data test results ({error!r}): {remedy}"
        ) from error


def stop_on_errors(results: Results, path: Path) -> None:
    """Raise RefusedDataError if a test of severity error failed; `path`: the written results."""
    errors = [each for each in results.tests if each.stops]
    if not errors:
        return
    summaries = []
    for each in errors:
        example = f", as {each.examples[0]}" if each.examples else ""
        summaries.append(f"{describe(each)}{example}: {TESTS[each.test].remedy}")
    raise RefusedDataError(
        f"{len(errors)} data test{'s' if len(errors) > 1 else ''} failed: {'; '.join(summaries)}."
        f" {path} holds all results (docs/ingest-quality.md). To continue anyway, change the limit"
        " or set the severity to warning in data_tests of params.yaml (not possible for tests of"
        " single records)",
        CorpusFault.DATA_TEST,
    )


def describe(result: Result) -> str:
    """A failed test in one line: "blank_images 0.12 (limit 0.05)"."""
    where = f" in {result.where}" if result.where else ""
    return f"{result.test} {result.value:g}{where} (limit {result.limit:g})"


def _judge(name: str, measured: Measurement, rule: Rule) -> Result:
    if TESTS[name].is_minimum:
        is_beyond = measured.value < rule.limit
    else:
        is_beyond = measured.value > rule.limit
    outcome: Outcome = "failed" if is_beyond else "passed"
    if rule.severity == "off":
        outcome = "not run"
    return Result(
        test=name,
        severity=rule.severity,
        outcome=outcome,
        limit=rule.limit,
        value=measured.value,
        checked=measured.checked,
        found=measured.violations,
        where=measured.where,
        examples=measured.examples if outcome == "failed" else (),
    )
