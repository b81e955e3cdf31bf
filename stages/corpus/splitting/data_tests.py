"""Data tests of a corpus: meaning, remedy, and judgement by severity and limit.

A failed test of severity `error` stops the pipeline before anything is trained; a `warning` goes on
and into the report. Tests of single records are always errors: without what they ask for, a record
is no question.
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
from stages.corpus.splitting.expectations import Draw, Measured
from stages.taxonomy import MODALITIES, QUESTION_TYPES

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
        """The largest value that passes; for tests of a least number, the smallest."""


class Expectation(NamedTuple):
    """What the value of a test is, and what to do if it is beyond its limit."""

    meaning: str
    remedy: str
    least: bool = False
    """The value may not be below the limit; else not above."""


@dataclass(frozen=True)
class Result:
    """How one test ended; the numbers are those of `Measured`."""

    test: str
    severity: Severity
    outcome: Outcome
    limit: float
    value: float
    checked: int
    found: int
    where: str
    examples: tuple[str, ...]

    @property
    def stops(self) -> bool:
        """Is it a failed error."""
        return self.outcome == "failed" and self.severity == "error"


@dataclass(frozen=True)
class Results:
    """Results of all tests in the order of TESTS, and image statistics by modality."""

    tests: tuple[Result, ...]
    statistics: Mapping[str, Mapping[str, Any]]


_ANEW: Final = "the file was changed after stage resize: run `dvc repro -f resize`"
_LOOK: Final = "look at the examples, and remove or correct what is wrong in the corpus"

RECORD_TESTS: Final[Mapping[str, Expectation]] = {
    "schema": Expectation(
        "records without a field, or with one of another type, and files that are no list of"
        " records",
        _ANEW,
    ),
    "facts": Expectation(
        "records without what stage resize found out of their image", "run `dvc repro resize`"
    ),
    "values": Expectation(
        "records of an unknown modality or question type, of a text or a path that cannot be used",
        _ANEW,
    ),
    "options": Expectation(
        "records with fewer than 2 or more than 4 options, or with equal ones", _ANEW
    ),
    "gold": Expectation("records whose answer is none of the options", _ANEW),
    "ids": Expectation(
        "question ids that stand twice", "make the ids of the corpus unique and run `dvc repro`"
    ),
    "files": Expectation("records filed under another modality", _ANEW),
}
"""Tests of single records: always errors, none may be found."""

CORPUS_TESTS: Final[Mapping[str, Expectation]] = {
    "repeated_questions": Expectation(
        "share of questions that repeat another: words, options, image", "take the repetitions out"
    ),
    "contradictions": Expectation(
        "share of questions that another one about the same image contradicts", _LOOK
    ),
    "letter_bias": Expectation(
        "excess of the letter that is right most often over chance, share of questions",
        "shuffle the options",
    ),
    "majority_letter": Expectation(
        "largest share of one letter among the right answers of a split", "shuffle the options"
    ),
    "majority_answer": Expectation(
        "largest share of one text among the right answers of a split",
        "ask more, or compare it with the blind baseline",
    ),
    "single_answer_tests": Expectation(
        "test splits in which one letter or one text is always right",
        "add questions with other answers",
    ),
    "questions_of_modality": Expectation(
        "questions of the modality that has fewest", "add data of this modality", least=True
    ),
    "questions_of_type": Expectation(
        "questions of the question type that has fewest", "add data of this type", least=True
    ),
    "blank_images": Expectation("share of images of one grey level", _LOOK),
    "dark_or_bright_images": Expectation(
        "share of images all but black or white", "see whether 16-bit sources are scaled; " + _LOOK
    ),
    "upscaled_images": Expectation(
        "share of images smaller than what they are resized to",
        "get larger sources, or lower resize.size",
    ),
    "extreme_aspect_images": Expectation(
        "share of images more than 4 times as long as wide, or as wide as long",
        "crop them in the corpus",
    ),
    "duplicate_images": Expectation(
        "share of images with the pixels of another",
        "take copies out; grouped splits keep them on one side",
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
        Reason.UNKNOWN_MODALITY,
        Reason.UNKNOWN_QUESTION_TYPE,
        Reason.IMAGE_PATH,
        Reason.OPTION_LABEL,
    ),
    "options": (Reason.OPTION_COUNT, Reason.OPTION_EXTRA, Reason.OPTIONS_EQUAL),
    "gold": (Reason.ANSWER_NOT_OFFERED,),
    "ids": (Reason.DUPLICATE_ID,),
}


@dataclass(frozen=True)
class _Always:
    severity: Severity = "error"
    limit: float = 0.0


def judge_records(reading: Reading, file_of: Mapping[str, str]) -> list[Result]:
    """The tests of single records.

    `file_of` is modality -> the file its records should stand in.
    """
    measured = {
        name: expectations.refused_for(reading, reasons) for name, reasons in _REASONS.items()
    }
    measured["facts"] = expectations.lacking_facts(reading.records)
    measured["files"] = expectations.strays(reading.records, file_of)
    return [_judge(name, measured[name], _Always()) for name in RECORD_TESTS]


def judge_corpus(
    records: Sequence[Record], draw: Draw, size: int, rules: Mapping[str, Rule]
) -> Results:
    """The tests of records that passed those of single ones, and of the splits drawn from them.

    `size`: side of the resized images; `rules`: test -> severity and limit, for all of
    CORPUS_TESTS.
    """
    images = expectations.images_of(records)
    modalities, kinds = (
        Counter(getattr(record, field) for record in records)
        for field in ("modality", "question_type")
    )
    measured = {
        "repeated_questions": expectations.repeated_questions(records),
        "contradictions": expectations.contradictions(records),
        "letter_bias": expectations.letter_bias(records),
        "majority_letter": expectations.majority_letter(draw),
        "majority_answer": expectations.majority_answer(draw),
        "single_answer_tests": expectations.single_answer_tests(draw),
        "questions_of_modality": expectations.fewest(
            {slug: modalities[slug] for slug in MODALITIES}
        ),
        "questions_of_type": expectations.fewest({slug: kinds[slug] for slug in QUESTION_TYPES}),
        "blank_images": expectations.blank(images),
        "dark_or_bright_images": expectations.dark_or_bright(images),
        "upscaled_images": expectations.upscaled(images, size),
        "extreme_aspect_images": expectations.extreme_aspect(images),
        "duplicate_images": expectations.duplicates(images),
    }
    results = tuple(_judge(name, measured[name], rules[name]) for name in CORPUS_TESTS)
    return Results(results, expectations.statistics(records, images, size))


def write_results(path: Path, results: Results, provenance: Mapping[str, Any]) -> None:
    """Write results as JSON with meanings, remedies, and `passed`.

    No test of severity error failed.
    """
    tests = [
        {**asdict(each), "meaning": TESTS[each.test].meaning, "remedy": TESTS[each.test].remedy}
        for each in results.tests
    ]
    passed = not any(each.stops for each in results.tests)
    write_json(
        path,
        {
            "passed": passed,
            "tests": tests,
            "statistics": results.statistics,
            "provenance": provenance,
        },
    )


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote. InputError if it is missing or no such file."""
    remedy = "run `dvc repro splits`"
    tree = read_json(path, remedy)
    try:
        tests = [
            {key: value for key, value in each.items() if key not in ("meaning", "remedy")}
            for each in tree["tests"]
        ]
        return Results(
            tuple(Result(**{**each, "examples": tuple(each["examples"])}) for each in tests),
            tree["statistics"],
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} holds no results of data tests ({error!r}): {remedy}") from error


def stop_on_errors(results: Results, path: Path) -> None:
    """Raise RefusedDataError if a test of severity error failed; `path`: the written results."""
    failed = [each for each in results.tests if each.stops]
    if not failed:
        return
    summary = "; ".join(
        f"{describe(each)}{f', as {each.examples[0]}' if each.examples else ''}:"
        f" {TESTS[each.test].remedy}"
        for each in failed
    )
    raise RefusedDataError(
        f"{len(failed)} data test{'s' if len(failed) > 1 else ''} failed: {summary}. {path} holds"
        " all results (docs/ingest-quality.md); to go on all the same, unless single records are"
        " at fault: another limit, or the severity warning, in data_tests of params.yaml",
        CorpusFault.DATA_TEST,
    )


def describe(result: Result) -> str:
    """A failed test in a line, as "blank_images 0.12 (limit 0.05)"."""
    where = f" in {result.where}" if result.where else ""
    return f"{result.test} {result.value:g}{where} (limit {result.limit:g})"


def _judge(name: str, measured: Measured, rule: Rule) -> Result:
    beyond = measured.value < rule.limit if TESTS[name].least else measured.value > rule.limit
    outcome: Outcome = "failed" if beyond else "passed"
    if rule.severity == "off":
        outcome = "not run"
    return Result(
        name,
        rule.severity,
        outcome,
        rule.limit,
        measured.value,
        measured.checked,
        measured.found,
        measured.where,
        measured.examples if outcome == "failed" else (),
    )
