"""Class folders and label sheets become balanced questions that reveal nothing without images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.corpus.formats.balance import blind_accuracy, build_questions
from stages.corpus.formats.convert import detect
from stages.corpus.formats.questions import (
    ConversionOptions,
    LabelledImage,
    Question,
    Refusal,
    SourceLocation,
)
from stages.corpus.formats.several import NamedImage
from tests.conftest import ROOT
from tests.corpus.formats.sources import (
    digest,
    records,
    refusals,
    run,
    write_book,
    write_csv,
    write_images,
)


def build(counts: Mapping[str, int], **options: Any) -> tuple[list[dict[str, str]], list[Refusal]]:
    """Records and refusals for a vocabulary with these numbers of images."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    items = {
        number: LabelledImage(
            *(SourceLocation(f"{number}.png"), "Set", "CT", "Disease Diagnosis", "class", label),
            (NamedImage(f"{number}.png", Path(f"{number}.png")),),
        )
        for number, label in enumerate(labels)
    }
    results = build_questions(items, ConversionOptions(**options))
    assert sorted(results) == list(range(len(labels)))
    built = [each for _, each in sorted(results.items())]
    return (
        [each.record for each in built if isinstance(each, Question)],
        [each for each in built if isinstance(each, Refusal)],
    )


BALANCED_3 = {"Cyst": 400, "Mass": 400, "Nodule": 400}
IMBALANCED_3 = {"Cyst": 700, "Mass": 300, "Nodule": 200}
IMBALANCED_6 = {"A1": 290, "B1": 270, "C1": 250, "D1": 200, "E1": 120, "F1": 70}
SKEWED_6 = {"A1": 700, "B1": 200, "C1": 120, "D1": 90, "E1": 60, "F1": 30}
MANY = {f"L{number}": 5 + 2 * number for number in range(40)}


@pytest.mark.parametrize(
    ("counts", "options", "chance"),
    [
        (BALANCED_3, {}, 1 / 3),
        (IMBALANCED_3, {"equalize": True}, 1 / 3),
        (IMBALANCED_6, {}, 1 / 4),
        (SKEWED_6, {"equalize": True}, 1 / 4),
        (MANY, {}, 1 / 4),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_blind_rules_stay_near_chance(
    counts: dict[str, int], options: dict[str, Any], chance: float, seed: int
) -> None:
    built, _ = build(counts, seed=seed, **options)
    blind = blind_accuracy(built, seed=seed)
    assert blind.chance == pytest.approx(chance)
    assert blind.highest < chance + 0.06
    assert blind.questions == len(built)


@pytest.mark.parametrize("counts", [IMBALANCED_3, SKEWED_6])
def test_a_label_that_is_too_frequent_is_measured(counts: dict[str, int]) -> None:
    share = max(counts.values()) / sum(counts.values())
    built, _ = build(counts)
    assert blind_accuracy(built).by_text == pytest.approx(share, abs=0.03)


def test_in_a_set_of_options_each_is_correct_equally_often() -> None:
    built, _ = build({label: count * 20 for label, count in IMBALANCED_6.items()})
    correct: dict[frozenset[str], Counter[str]] = {}
    for record in built:
        options = frozenset(record[f"option_{letter}"] for letter in "ABCD")
        correct.setdefault(options, Counter())[record["gt_answer"]] += 1
    assert len(correct) > 5
    for counts in correct.values():
        total = sum(counts.values())
        spread = 4 * (total * 0.25 * 0.75) ** 0.5
        assert all(abs(count - total / 4) < spread for count in counts.values())


@pytest.mark.parametrize("counts", [IMBALANCED_3, IMBALANCED_6, {"x": 7, "y": 9}])
def test_letters_are_balanced_per_label_and_in_total(counts: dict[str, int]) -> None:
    built, _ = build(counts)
    letters: Counter[tuple[str, str]] = Counter()
    for record in built:
        texts = {key[-1]: text for key, text in record.items() if key.startswith("option_")}
        letters[
            record["gt_answer"], next(k for k, v in texts.items() if v == record["gt_answer"])
        ] += 1
    size = min(4, len(counts))
    for label, count in counts.items():
        of_label = [letters[label, letter] for letter in "ABCD"[:size]]
        assert max(of_label) - min(of_label) <= 1
        assert sum(of_label) == count


def test_a_small_vocabulary_is_always_offered_in_full() -> None:
    built, _ = build(IMBALANCED_3)
    for record in built:
        assert {record[f"option_{letter}"] for letter in "ABC"} == set(IMBALANCED_3)


def test_equalizing_refuses_surplus_images_by_name() -> None:
    built, refused = build(IMBALANCED_3, equalize=True)
    assert Counter(record["gt_answer"] for record in built) == dict.fromkeys(IMBALANCED_3, 200)
    assert len(refused) == 600
    assert "surplus image of the label 'Cyst': 200 of 700 are used" in {
        each.why for each in refused
    }


def test_chance_and_rules_of_given_records() -> None:
    record = {"question": "What?", "option_A": "x", "option_B": "y", "gt_answer": "x"}
    always = blind_accuracy([record] * 20)
    assert (always.by_text, always.by_letter, always.chance) == (1.0, 1.0, 0.5)
    other = {"question": "Which?", "option_A": "y", "option_B": "x", "gt_answer": "y"}
    mixed = blind_accuracy([record, other] * 20)
    assert (mixed.by_question, mixed.by_letter) == (1.0, 1.0)
    assert mixed.by_text < 0.7
    empty = blind_accuracy([])
    assert (empty.highest, empty.questions) == (0.0, 0)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    root = tmp_path / "Tumors"
    names = [
        f"{modality}/{label}/{number}.png"
        for modality, labels in {"CT": ("cyst", "mass"), "MR": ("edema", "glioma", "none")}.items()
        for label in labels
        for number in range(9)
    ]
    write_images(root, *names)
    return root


def test_class_folders_become_questions_per_modality(classes: Path, tmp_path: Path) -> None:
    assert detect(classes) == "class-folders"
    conversion = run(classes, tmp_path / "out")
    assert (conversion.questions, conversion.images) == (45, 45)
    assert conversion.modalities == {"CT": 18, "MR": 27}
    assert conversion.labels == {
        "class": {"cyst": 9, "edema": 9, "glioma": 9, "mass": 9, "none": 9}
    }
    first = records(tmp_path / "out")[0]
    assert first["question"] == "Which class does this image show?"
    assert first["question_type"] == "Disease Diagnosis"
    assert first["image_path"] == "Images/CT/cyst/0.png"
    assert {first["option_A"], first["option_B"]} == {"cyst", "mass"}


def test_equal_sources_give_equal_bytes_and_seeds_other_ones(classes: Path, tmp_path: Path) -> None:
    for name, seed in {"one": 1, "two": 1, "three": 3}.items():
        run(classes, tmp_path / name, seed=seed)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert digest(tmp_path / "one") != digest(tmp_path / "three")
    ids = [{each["question_id"] for each in records(tmp_path / name)} for name in ("one", "three")]
    assert ids[0] == ids[1]


def test_a_modality_with_one_label_is_refused_by_name(classes: Path, tmp_path: Path) -> None:
    write_images(classes, "OCT/drusen/1.png", "OCT/drusen/2.png", "stray.png", "MR/stray.png")
    conversion = run(classes, tmp_path / "out")
    found = refusals(conversion)
    assert len(found) == 4
    assert "OCT/drusen/1.png: 'drusen': the only label of class in OCT" in found[1]
    assert "another depth" in found[0]


def test_folders_of_labels_need_a_modality(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cyst, mass.*--modality"):
        run(classes / "CT", tmp_path / "out")
    conversion = run(classes / "CT", tmp_path / "out", modality="CT", question="What is it?")
    assert conversion.modalities == {"CT": 18}
    assert records(tmp_path / "out")[0]["question"] == "What is it?"


def test_folders_of_splits_are_no_modalities(tmp_path: Path) -> None:
    names = [
        f"{split}/{label}/{split}{n}.png"
        for split in ("train", "test")
        for label in ("a", "b")
        for n in range(6)
    ]
    write_images(tmp_path / "xrays", *names)
    with pytest.raises(InputError, match="test, train: name the modality"):
        run(tmp_path / "xrays", tmp_path / "out")
    assert run(tmp_path / "xrays", tmp_path / "out", modality="X-Ray").questions == 24


def test_labels_in_two_spellings_are_refused(classes: Path, tmp_path: Path) -> None:
    write_images(classes, *(f"MR/Glioma/{number}.png" for number in range(100, 103)))
    conversion = run(classes, tmp_path / "out")
    assert len(conversion.refusals) == 12
    assert "differ only in case or blanks: ['Glioma', 'glioma']" in refusals(conversion)[0]


def test_blind_questions_must_be_accepted(tmp_path: Path) -> None:
    names = [f"CT/common/{number}.png" for number in range(40)]
    write_images(tmp_path / "set", *names, *(f"CT/rare/{number}.png" for number in range(10)))
    with pytest.raises(InputError, match=r"80\.0%.*chance 50\.0%.*'common' with 80%.*--equalize"):
        run(tmp_path / "set", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert run(tmp_path / "set", tmp_path / "all", accept_blind=True).questions == 50
    conversion = run(tmp_path / "set", tmp_path / "equal", equalize=True)
    assert (conversion.questions, len(conversion.refusals)) == (20, 30)
    assert conversion.images == 20


def label_rows(count: int = 24, **changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "image": f"scans/{number}.png",
            "label": ("cyst", "mass", "none")[number % 3],
            "patient": f"p{number // 2}",
            "modality": "CT",
        }
        | changes
        for number in range(count)
    ]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_images(tmp_path / "ward", *(f"scans/{number}.png" for number in range(60)))
    return tmp_path / "ward"


def test_a_sheet_of_labels_becomes_questions(scans: Path, tmp_path: Path) -> None:
    sheet = write_csv(scans / "labels.csv", label_rows(), ";")
    assert detect(sheet) == "label-sheet"
    conversion = run(sheet, tmp_path / "out")
    assert (conversion.questions, conversion.patients_known) == (24, 24)
    assert conversion.labels == {"label": {"cyst": 8, "mass": 8, "none": 8}}
    assert records(tmp_path / "out")[0]["patient"] == "p0"


def test_several_columns_of_labels_are_chosen_by_name(scans: Path, tmp_path: Path) -> None:
    rows = [
        row | {"side": ("left", "right")[number // 2 % 2], "grade": number % 4}
        for number, row in enumerate(label_rows())
    ]
    book = write_book(scans / "labels.xlsx", {"L": rows})
    conversion = run(book, tmp_path / "out", labels=("side", "grade"), question_type="Grading")
    assert conversion.questions == 48
    assert set(conversion.labels) == {"side", "grade"}
    assert conversion.question_types == {"Grading": 48}
    questions = {record["question"] for record in records(tmp_path / "out")}
    assert questions == {"Which side does this image show?", "Which grade does this image show?"}


def test_measurements_need_bins(scans: Path, tmp_path: Path) -> None:
    rows = [row | {"age": 20 + number} for number, row in enumerate(label_rows(60))]
    rows += [label_rows(1)[0] | {"age": "unknown", "image": "scans/0.png"}]
    sheet = write_csv(scans / "labels.csv", rows)
    with pytest.raises(InputError, match=r"'age' holds 60 different numbers.*--bins"):
        run(sheet, tmp_path / "out", labels=("age",))
    conversion = run(sheet, tmp_path / "out", labels=("age",), bins={"age": (21, 40, 60)})
    assert conversion.labels == {
        "age": {"21 to below 40": 19, "40 to below 60": 20, "60 or more": 20}
    }
    found = refusals(conversion)
    assert "line 2: '20': age is no number from 21 on" in found[0]
    assert "'unknown'" in found[1]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"label": ""}, "label is empty"),
        ({"modality": ""}, "--modality"),
        ({"image": "scans/77.png"}, "not in"),
        ({"image": "../x.png"}, "out of its folder"),
        ({"image": "scans/0.png"}, "has this label already"),
        ({"label": "See <answer>"}, "command"),
        ({"label": "x" * 20_001}, "limit is 20000"),
        ({"label": "(C) Cyst"}, "options begin with their letters"),
        ({"label": "Cyst, B)Mass"}, "option label"),
    ],
)
def test_an_unusable_row_is_refused_by_its_line(
    scans: Path, tmp_path: Path, changes: dict[str, str], what: str
) -> None:
    rows = label_rows()
    rows.append(label_rows()[0] | {"image": "scans/40.png"} | changes)
    conversion = run(write_csv(scans / "l.csv", rows), tmp_path / "out", accept_blind=True)
    text = next(text for text in refusals(conversion) if text.startswith("l.csv, line 26: "))
    assert what in text


def test_an_image_with_two_labels_is_refused_twice(scans: Path, tmp_path: Path) -> None:
    rows = [*label_rows(), label_rows()[0] | {"label": "mass"}]
    conversion = run(write_csv(scans / "l.csv", rows), tmp_path / "out")
    assert [str(each.location) for each in conversion.refusals] == [
        "l.csv, line 2",
        "l.csv, line 26",
    ]
    assert "several labels in one column: ['cyst', 'mass']" in refusals(conversion)[0]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"labels": ("side",)}, "lacks the column side"),
        ({"bins": {"age": (1,)}}, "--bins names age"),
    ],
)
def test_unknown_columns_are_named(
    scans: Path, tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    with pytest.raises(InputError, match=what):
        run(write_csv(scans / "l.csv", label_rows()), tmp_path / "out", **options)


def test_a_sheet_without_labels_beside_one_is_one_refusal(scans: Path, tmp_path: Path) -> None:
    write_csv(scans / "labels.csv", label_rows())
    write_csv(scans / "staff.csv", [{"name": "Doe"}])
    (text,) = refusals(run(scans, tmp_path / "out"))
    assert text.startswith("staff.csv: ")


def test_a_folder_named_images_is_no_modality(tmp_path: Path) -> None:
    names = [f"images/{label}/{n}.png" for label in ("a", "b") for n in range(6)]
    write_images(tmp_path / "set", *names)
    with pytest.raises(InputError, match="images: name the modality"):
        run(tmp_path / "set", tmp_path / "out")
    assert run(tmp_path / "set", tmp_path / "out", modality="CT").questions == 12


def test_processes_with_other_hashes_write_the_same_bytes(tmp_path: Path) -> None:
    names = [f"CT/label {label}/{number}.png" for label in "abcdefg" for number in range(6)]
    write_images(tmp_path / "set", *names)
    code = (
        "import sys; from pathlib import Path; from stages.corpus.formats.convert import convert;"
        "from stages.corpus.formats.questions import ConversionOptions;"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), ConversionOptions())"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "set"), str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
        )
    assert digest(tmp_path / "1") == digest(tmp_path / "2")
