"""Med-R1's JSON and VLMEvalKit's TSV become records with their images."""

from __future__ import annotations

import base64
import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.corpus.dataset.problems import format_problem, format_solution
from stages.corpus.formats.convert import detect
from tests.corpus.formats.sources import digest, png, records, refusals, run, write_images

CT = "CT(Computed Tomography)"


def item(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "image": f"Images/Chest/{number}.png",
        "problem": format_problem("What is seen?", ["Cyst, simple", "Nodule", "None (of these)"]),
        "solution": format_solution("B"),
    } | changes


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def med_r1(tmp_path: Path) -> Path:
    root = tmp_path / "med-r1"
    write_images(root, *(f"Images/Chest/{number}.png" for number in range(4)))
    return root


def test_an_item_has_the_words_of_all_its_files(med_r1: Path, tmp_path: Path) -> None:
    write_json(med_r1 / f"Splits/modality/train/{CT}_train.json", [item(0), item(1)])
    write_json(med_r1 / "Splits/question_type/Disease Diagnosis_test.json", [item(0), item(2)])
    assert detect(med_r1) == "med-r1"
    conversion = run(med_r1, tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert record == {
        "dataset": "Chest",
        "question_id": record["question_id"],
        "question_type": "Disease Diagnosis",
        "question": "What is seen?",
        "gt_answer": "Nodule",
        "image_path": "Images/Chest/0.png",
        "option_A": "Cyst, simple",
        "option_B": "Nodule",
        "option_C": "None (of these)",
        "modality_type": CT,
    }
    assert conversion.entries == 4
    found = refusals(conversion)
    assert any("--question-type" in text and "row 2" in text for text in found)
    assert any("duplicate question_id" in text for text in found)
    assert any("--modality" in text for text in found)


def test_words_come_from_keys_folders_or_options(med_r1: Path, tmp_path: Path) -> None:
    own = {"modality": "MR", "question_type": "Lesion Grading", "question_id": "q", "dataset": "D"}
    write_json(med_r1 / "modality/ct/test.json", [item(0), item(1, **own)])
    conversion = run(med_r1, tmp_path / "out", question_type="Disease Diagnosis")
    assert conversion.modalities == {"MR": 1, "ct": 1}
    assert conversion.question_types == {"Disease Diagnosis": 1, "Lesion Grading": 1}
    assert {record["dataset"] for record in records(tmp_path / "out")} == {"Chest", "D"}


def test_images_may_lie_elsewhere(med_r1: Path, tmp_path: Path) -> None:
    path = write_json(tmp_path / "elsewhere/test.json", [item()])
    options = {"modality": "ct", "question_type": "x"}
    assert run(path, tmp_path / "out", images=med_r1, **options).questions == 1


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (item(solution="<answer> D </answer>"), "no option has this letter, but A, B, C"),
        (item(solution="B"), "not of the form"),
        (item(problem="What is seen?"), "no labels"),
        (item(problem="What? A)x, C)y"), "labels A, C"),
        (item(image="Images/Chest/9.png"), "not in"),
        (item(image="Images/../../x.png"), "out of its folder"),
        (item(image=None), "image is missing"),
        (item(question_id=7), "question_id is not a text"),
        (["no object"], "not an object"),
    ],
)
def test_an_unusable_item_is_refused_by_its_position(
    med_r1: Path, tmp_path: Path, entry: object, what: str
) -> None:
    write_json(med_r1 / "modality/ct/test.json", [item(1), entry])
    (text,) = refusals(run(med_r1, tmp_path / "out", question_type="x"))
    assert text.startswith("modality/ct/test.json, row 2: ")
    assert what in text


def test_a_file_that_is_no_list_is_one_refusal(med_r1: Path, tmp_path: Path) -> None:
    write_json(med_r1 / "modality/ct/test.json", [item()])
    (med_r1 / "modality/ct/train.json").write_text('[{"image": "x"')
    write_json(med_r1 / "info.json", {"version": 1})
    found = refusals(run(med_r1, tmp_path / "out", question_type="x"))
    assert [text.partition(":")[0] for text in found] == ["info.json", "modality/ct/train.json"]


def encoded(number: int) -> str:
    return base64.b64encode(png(number)).decode()


def question(index: int, image: str, **changes: str) -> dict[str, str]:
    return {
        "index": str(index),
        "image": image,
        "question": f"What is seen in {index}?",
        "A": "Cyst",
        "B": "Nodule",
        "C": "Mass",
        "D": "",
        "answer": "B",
        "category": "Disease Diagnosis",
        "split": "dev",
    } | changes


def write_tsv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_tsv_has_images_in_its_cells_or_of_other_rows(tmp_path: Path) -> None:
    rows = [
        question(1, "3"),
        question(2, encoded(2)),
        question(3, encoded(3), hint="A chest."),
        question(4, encoded(2), question="What else?", D="Other"),
        question(5, "2"),
        question(6, "data:image/png;base64," + encoded(6)),
    ]
    for row in rows:
        row.setdefault("hint", "")
    path = write_tsv(tmp_path / "Bench.tsv", rows)
    assert detect(path) == "vlmevalkit"
    before = csv.field_size_limit()
    conversion = run(path, tmp_path / "out", modality="CT")
    assert csv.field_size_limit() == before
    assert (conversion.questions, conversion.images) == (6, 3)
    by_id = {record["question_id"]: record for record in records(tmp_path / "out")}
    assert by_id["Bench-1"]["image_path"] == by_id["Bench-3"]["image_path"]
    assert by_id["Bench-2"]["image_path"] == by_id["Bench-5"]["image_path"]
    assert by_id["Bench-3"]["question"] == "A chest.\nWhat is seen in 3?"
    assert by_id["Bench-4"]["option_D"] == "Other"
    assert "option_D" not in by_id["Bench-2"]
    content = (tmp_path / "out" / by_id["Bench-1"]["image_path"]).read_bytes()
    assert content == png(3)


def test_rows_with_rotated_options_are_no_contradiction(tmp_path: Path) -> None:
    rows = [
        question(1, encoded(1), question="What?"),
        question(2, "1", question="What?", A="Nodule", B="Cyst", answer="A"),
    ]
    assert run(write_tsv(tmp_path / "B.tsv", rows), tmp_path / "out", modality="CT").questions == 2


def test_a_category_is_a_type_unless_another_is_named(tmp_path: Path) -> None:
    rows = [question(1, encoded(1), type=""), question(2, encoded(2), type="Grading")]
    path = write_tsv(tmp_path / "B.tsv", rows)
    first = run(path, tmp_path / "one", modality="CT")
    assert first.question_types == {"Disease Diagnosis": 1, "Grading": 1}
    second = run(path, tmp_path / "two", modality="CT", question_type="Other")
    assert second.question_types == {"Grading": 1, "Other": 1}


def test_a_cell_of_20_mb_is_read(tmp_path: Path) -> None:
    content = png() + os.urandom(15_000_000)
    rows = [question(1, base64.b64encode(content).decode())]
    run(write_tsv(tmp_path / "B.tsv", rows), tmp_path / "out", modality="CT")
    (record,) = records(tmp_path / "out")
    assert (tmp_path / "out" / record["image_path"]).read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"image": "77"}, "nor the index of a row"),
        ({"image": ""}, "no image"),
        ({"image": "iVBORw0KGgo" * 10 + "!"}, "Only base64 data is allowed"),
        ({"image": base64.b64encode(b"no image" * 20).decode()}, "none of PNG"),
        ({"image": "['" + encoded(1) + "', 7]"}, "not a list of images"),
        ({"image": "scans/9.png"}, "not in"),
        ({"answer": "D"}, "none of the options"),
        ({"B": "", "answer": "C"}, "a gap in the options: option_B"),
        ({"category": ""}, "--question-type"),
        ({"index": "1"}, "duplicate question_id"),
    ],
)
def test_an_unusable_row_is_refused_by_its_line(
    tmp_path: Path, changes: dict[str, str], what: str
) -> None:
    rows = [question(1, encoded(1)), question(2, "1") | changes]
    path = write_tsv(tmp_path / "B.tsv", rows)
    (text,) = refusals(run(path, tmp_path / "out", modality="CT"))
    assert text.startswith("B.tsv, line 3: ")
    assert what in text


def test_two_images_with_one_index_are_refused(tmp_path: Path) -> None:
    rows = [question(1, encoded(1)), question(1, encoded(2))]
    (text,) = refusals(run(write_tsv(tmp_path / "B.tsv", rows), tmp_path / "out", modality="CT"))
    assert "a second image for this index" in text


def test_a_row_of_another_length_is_refused(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "B.tsv", [question(1, encoded(1))])
    path.write_text(path.read_text() + "2\t1\tWhat?\n")
    (text,) = refusals(run(path, tmp_path / "out", modality="CT"))
    assert text.startswith("B.tsv, line 3: '2': 3 cells")


def test_without_any_modality_all_is_refused_by_name(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "B.tsv", [question(1, encoded(1))])
    with pytest.raises(InputError, match=r"none of 1 entries.*\n.*--modality"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_equal_sources_give_equal_bytes(med_r1: Path, tmp_path: Path) -> None:
    rows = [question(1, "2"), question(2, encoded(2))]
    path = write_tsv(tmp_path / "B.tsv", rows)
    for name in ("one", "two"):
        run(path, tmp_path / name, modality="CT")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
