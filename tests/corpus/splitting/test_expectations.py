"""Every data test fails on a planted defect and passes on good data; only errors stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.core.params import DataTests
from stages.core.yaml_files import read_yaml
from stages.corpus.dataset.problems import LETTERS, format_problem, format_solution
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError
from stages.corpus.records.records import Reading, Record, read_record_files
from stages.corpus.splitting.data_tests import (
    CORPUS_TESTS,
    RECORD_TESTS,
    TESTS,
    Result,
    Results,
    judge_corpus,
    judge_records,
    read_results,
    stop_on_errors,
    write_results,
)
from stages.corpus.splitting.draws import Draw
from stages.corpus.splitting.expectations import (
    contradictions,
    letter_bias,
    repeated_questions,
    statistics,
    unique_images,
)
from tests.conftest import ROOT, Raw
from tests.omnimedvqa import AXES, MODALITIES, QUESTION_TYPES, TAXONOMY

SETTINGS = DataTests.model_validate(read_yaml(ROOT / "params.yaml")["data_tests"])
RULES = dict(SETTINGS)
FILE_OF = {slug: f"{slug}.json" for slug in MODALITIES}
ANSWERS = ("Cyst", "Nodule", "Mass", "Polyp")
SIZE = 384
CT = MODALITIES["ct"]

Plant = Callable[[list[Raw]], object]


def good() -> list[Raw]:
    """25 images per modality, one question per type about each, answers in rotation."""
    records = []
    for slug, literal in MODALITIES.items():
        for number in range(25):
            for at, kind in enumerate(QUESTION_TYPES.values()):
                turn = number + at
                options = {
                    f"option_{letter}": ANSWERS[(turn // 4 + place) % 4]
                    for place, letter in enumerate(LETTERS[:4])
                }
                name = f"{list(MODALITIES).index(slug):02x}{number:02x}"
                record: Raw = {
                    "dataset": f"Set {slug}",
                    "question_id": f"{slug}_{number}_{at}",
                    "question_type": kind,
                    "question": (
                        f"What is seen? ({kind})"
                    ),  # questions about one image must not answer one another
                    "gt_answer": options[f"option_{LETTERS[turn % 4]}"],
                    "image_path": f"Images/{slug}/{number}.png",
                    **options,
                    "modality_type": literal,
                    "image": f"data/images/{slug}/{number}.png",
                    "source_size": [512, 400],
                    "source_mode": "L",
                    "pixel_hash": name * 16,
                    "perceptual_hash": name * 16,
                    "brightness": [90.0 + number, 40.0],
                }
                records.append(record)
    return records


def read(records: list[Raw]) -> Reading:
    """Read the records from their modality's file, as stage splits does."""
    by_file: dict[str, list[Raw]] = {name: [] for name in FILE_OF.values()}
    slugs = {literal: slug for slug, literal in MODALITIES.items()}
    for record in records:
        slug = record.get("_file") or slugs.get(record.get("modality_type", ""), "ct")
        by_file[FILE_OF[slug]].append(record)
    return read_record_files(
        ((name, json.dumps(rows).encode()) for name, rows in by_file.items()), TAXONOMY
    )


def draw_of(records: list[Record]) -> Draw:
    """Every fifth question in test, on both axes."""
    items = [
        {
            "problem": format_problem(record.question, record.options),
            "solution": format_solution(record.gold),
            "options": record.options,
            "modality": record.modality,
            "task": record.question_type,
        }
        for record in records
    ]
    drawn: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {}
    for axis, slugs in AXES.items():
        drawn[axis] = {}
        for slug in slugs:
            mine = [item for item in items if item[axis] == slug]
            drawn[axis][slug] = [item for at, item in enumerate(mine) if at % 5], mine[::5]
    return drawn


def of_ct(change: Callable[[int, Raw], object]) -> Plant:
    """Apply change(index, record) to each record of CT."""
    return lambda records: [
        change(at, record) for at, record in enumerate(records) if record["modality_type"] == CT
    ]


def in_one(**changes: Any) -> Plant:
    """Change fields of the first record; None removes one."""

    def plant(records: list[Raw]) -> None:
        records[0] |= changes
        for name, value in changes.items():
            if value is None:
                del records[0][name]

    return plant


def results(records: list[Raw]) -> dict[str, Result]:
    reading = read(records)
    tests = judge_records(reading, FILE_OF)
    if not any(each.stops for each in tests):
        draw = draw_of(reading.records)
        tests += judge_corpus(reading.records, [draw], SIZE, RULES).tests
    return {each.test: each for each in tests}


def test_good_data_passes_every_test() -> None:
    by_test = results(good())
    assert list(by_test) == list(TESTS)
    assert {name for name, each in by_test.items() if each.outcome != "passed"} == set()
    assert all(each.checked > 0 for each in by_test.values())


def option_letters(at: int, record: Raw) -> None:
    record |= {
        "option_A": record["gt_answer"],
        "option_B": "Else",
        "option_C": "Other",
        "option_D": "None",
    }


def same_answer(at: int, record: Raw) -> None:
    options = ["Else", "Other", "None"]
    options.insert(at % 4, "Nodule")
    record["gt_answer"] = "Nodule"
    for letter, option in zip(LETTERS[:4], options, strict=True):
        record[f"option_{letter}"] = option


def repeat(records: list[Raw]) -> None:
    records.append(records[0] | {"question_id": "again", "image": "data/images/ct/renamed.png"})


def contradict(records: list[Raw]) -> None:
    for record in records[:30]:
        other = next(answer for answer in ANSWERS if answer != record["gt_answer"])
        records.append(
            record
            | {
                "question_id": f"{record['question_id']} again",
                "image": "data/images/ct/copy.png",
                "gt_answer": other,
            }
        )


def few_of_ct(records: list[Raw]) -> None:
    records[:] = [
        record for at, record in enumerate(records) if record["modality_type"] != CT or at < 90
    ]


def few_gradings(records: list[Raw]) -> None:
    kind = QUESTION_TYPES["lesion-grading"]
    records[:] = [
        record for at, record in enumerate(records) if record["question_type"] != kind or at < 400
    ]


@pytest.mark.parametrize(
    ("test", "plant", "example"),
    [
        ("schema", in_one(question=None), "ct.json#0 (ct_0_0): question is missing"),
        ("schema", in_one(dataset=3), "dataset is not a string: 3"),
        ("facts", in_one(pixel_hash=None), "ct.json#0 (ct_0_0): pixel_hash is missing"),
        ("facts", in_one(source_size=[512, 0]), "source_size is [512, 0]"),
        ("facts", in_one(brightness=[300.0, 1.0]), "brightness is [300.0, 1.0]"),
        ("facts", in_one(perceptual_hash="0" * 63), "perceptual_hash is '000"),
        ("values", in_one(modality_type="PET"), "unknown modality_type: PET"),
        ("values", in_one(question_type="Riddle"), "unknown question_type: Riddle"),
        ("options", in_one(option_B=None, option_C=None, option_D=None), "fewer than two options"),
        ("options", in_one(option_AA="Fifth"), "options are named option_A"),
        ("options", in_one(option_A="Mass", option_B="Mass"), "two options are the same"),
        ("gold", in_one(gt_answer="Wart"), "gt_answer is none of the options"),
        ("ids", in_one(question_id="ct_1_1"), "duplicate question_id; kept: ct.json#0"),
        ("files", in_one(_file="mri"), "mri.json#0 (ct_0_0): ct"),
        ("repeated_questions", repeat, "again repeats ct_0_0"),
        ("contradictions", contradict, "ct_0_0: 'Cyst', ct_0_0 again: 'Nodule'"),
        (
            "letter_bias",
            lambda records: list(map(partial(option_letters, 0), records)),
            "A: right in 1000, by chance 250",
        ),
        ("majority_letter", of_ct(option_letters), "'A' in 100 of 100"),
        ("majority_answer", of_ct(same_answer), "'nodule' in 100 of 100"),
        ("single_answer_tests", of_ct(same_answer), "modality/ct: the answer is always 'nodule'"),
        ("single_answer_tests", of_ct(option_letters), "modality/ct: the letter is always 'A'"),
        ("questions_of_modality", few_of_ct, "ct: 90"),
        ("questions_of_type", few_gradings, "lesion-grading: 80"),
        (
            "blank_images",
            of_ct(lambda at, record: record.update(brightness=[20.0, 0.0])),
            "data/images/ct/0.png: all about 20",
        ),
        (
            "dark_or_bright_images",
            of_ct(lambda at, record: record.update(brightness=[2.0, 1.5])),
            "data/images/ct/0.png: 2.0 of 255",
        ),
        (
            "upscaled_images",
            lambda records: [record.update(source_size=[384, 383]) for record in records],
            "data/images/ct/0.png: 384 x 383",
        ),
        (
            "extreme_aspect_images",
            of_ct(lambda at, record: record.update(source_size=[1601, 400])),
            "data/images/ct/0.png: 1601 x 400",
        ),
        (
            "duplicate_images",
            of_ct(lambda at, record: record.update(pixel_hash="ab" * 32)),
            "data/images/ct/1.png is data/images/ct/0.png",
        ),
    ],
)
def test_a_planted_defect_fails_its_test_with_an_example(
    test: str, plant: Plant, example: str
) -> None:
    records = good()
    plant(records)
    result = results(records)[test]
    assert result.outcome == "failed"
    assert any(example in each for each in result.examples), result.examples


def test_every_test_has_a_planted_defect() -> None:
    marks = test_a_planted_defect_fails_its_test_with_an_example.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(TESTS)


@pytest.mark.parametrize(("size", "passes"), [([384, 384], True), ([383, 2000], False)])
def test_an_image_is_upscaled_if_one_side_is_shorter(size: list[int], passes: bool) -> None:
    records = good()
    for record in records:
        record["source_size"] = size
    assert (results(records)["upscaled_images"].outcome == "passed") is passes


def test_answers_contradict_only_where_one_question_offers_the_answer_of_the_other() -> None:
    first = good()[0] | {
        "gt_answer": "CT",
        "option_A": "CT",
        "option_B": "MRI",
        "option_C": "PET",
        "option_D": "OCT",
    }
    other_words = first | {
        "question_id": "b",
        "gt_answer": "Computed tomography",
        "option_A": "Computed tomography",
    }
    other_image = first | {"question_id": "c", "gt_answer": "MRI", "pixel_hash": "f" * 64}
    other_question = first | {"question_id": "d", "gt_answer": "MRI", "question": "What else?"}
    unlike = read([first, other_words, other_image, other_question])
    assert contradictions(unlike.records).violations == 0
    one_offers = first | {"question_id": "e", "gt_answer": "PET", "option_A": "X-ray"}
    result = contradictions(read([first, one_offers]).records)
    assert (result.value, result.violations, result.checked) == (1.0, 2, 2)


def test_questions_that_differ_in_their_context_neither_repeat_nor_contradict_each_other() -> None:
    first = good()[0] | {"age": "54"}
    wrong = next(text for text in ANSWERS if text != first["gt_answer"])
    others = [
        first | {"question_id": "b", "age": "55", "gt_answer": wrong},
        first | {"question_id": "c", "age": None},
    ]
    records = [first, *others]
    assert contradictions(read(records).records).violations == 0
    assert repeated_questions(read(records).records).violations == 0
    same = [*records, others[0] | {"question_id": "d", "gt_answer": first["gt_answer"]}]
    assert contradictions(read(same).records).violations == 2
    assert repeated_questions(read(same).records).violations == 1


def test_letter_bias_accounts_for_questions_with_fewer_options() -> None:
    two = {"option_C": None, "option_D": None}
    records = [
        {name: value for name, value in (record | two).items() if value is not None}
        for record in good()[:40]
    ]
    for at, record in enumerate(records):
        record |= {"option_A": "Yes", "option_B": "No", "gt_answer": "Yes" if at % 2 else "No"}
    assert letter_bias(read(records).records).value == 0.0


def test_without_records_only_the_tests_of_a_minimum_fail() -> None:
    tests = judge_corpus([], [draw_of([])], SIZE, RULES).tests
    assert {each.test for each in tests if each.outcome == "failed"} == {
        "questions_of_modality",
        "questions_of_type",
    }


def test_a_failure_stops_or_not_by_its_severity() -> None:
    records = good()
    of_ct(lambda at, record: record.update(brightness=[20.0, 0.0]))(records)
    reading = read(records)

    def judged(severity: str) -> Results:
        rules = RULES | {
            "blank_images": SETTINGS.blank_images.model_copy(update={"severity": severity})
        }
        return judge_corpus(reading.records, [draw_of(reading.records)], SIZE, rules)

    with pytest.raises(RefusedDataError) as error:
        stop_on_errors(judged("error"), Path("r.json"))
    assert error.value.fault is CorpusFault.DATA_TEST
    for part in ("blank_images 0.125 (limit 0.05)", "data/images/ct/0.png", "r.json"):
        assert part in str(error.value)
    stop_on_errors(judged("warning"), Path("r.json"))
    (off,) = [each for each in judged("off").tests if each.test == "blank_images"]
    assert (off.outcome, off.examples) == ("not run", ())


def test_results_are_written_with_remedies_and_read_back(tmp_path: Path) -> None:
    reading = read(good())
    corpus = judge_corpus(reading.records, [draw_of(reading.records)], SIZE, RULES)
    written = Results((*judge_records(reading, FILE_OF), *corpus.tests), corpus.statistics)
    path = tmp_path / "r.json"
    write_results(path, written, {"corpus": "md5:abc"})
    assert read_results(path) == written
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert (tree["passed"], tree["provenance"]) == (True, {"corpus": "md5:abc"})
    assert {each["test"] for each in tree["tests"] if each["remedy"] and each["meaning"]} == set(
        TESTS
    )
    path.write_text('{"tests": [{"test": "x"}]}', encoding="utf-8")
    with pytest.raises(
        InputError, match=r"r\.json is not a file of data test results .*run `dvc repro splits`"
    ):
        read_results(path)


def test_statistics_by_modality_count_each_image_once() -> None:
    records = read(good()).records
    by_modality = statistics(records, unique_images(records), SIZE, MODALITIES)
    assert list(by_modality) == list(MODALITIES)
    assert by_modality["ct"] == {
        "questions": 125,
        "images": 25,
        "median_side": 400.0,
        "brightness": {"mean": 102.0, "std": 7.21},
        "contrast": {"mean": 40.0, "std": 0.0},
        "upscaled": 0.0,
    }


def test_params_name_every_test_of_the_corpus_and_no_other() -> None:
    assert set(DataTests.model_fields) == set(CORPUS_TESTS)
    assert not set(RECORD_TESTS) & set(CORPUS_TESTS)
