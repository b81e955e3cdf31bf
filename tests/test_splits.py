"""Stage splits: 13 train and test files in the published form, drawn independently."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from stages import layout, splits
from stages.corpus.modalities import AXES, MODALITIES, QUESTION_TYPES
from stages.corpus.problems import parse_problem, parse_solution
from stages.corpus.splits import FIELDS, read_split
from stages.errors import InputError
from stages.params import Splits, load_params
from stages.provenance import provenance
from tests.conftest import ROOT, Raw, RunStage

SETTINGS = Splits(train_share=0.8, seed=42)


def write_records(records: list[Raw]) -> None:
    """What stage resize leaves."""
    layout.records("ct").parent.mkdir(parents=True, exist_ok=True)
    for slug, literal in MODALITIES.items():
        mine = [record | {"image": f"data/images/{slug}/x.png"} for record in records if record["modality_type"] == literal]
        layout.records(slug).write_text(json.dumps(mine), encoding="utf-8")


def tree() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(layout.SPLITS.rglob("*.json"))}


def part_ids(axis: str, slug: str, part: str) -> list[str]:
    return [item["question_id"] for item in read_split(layout.split(axis, slug, part))]


@pytest.fixture
def records(project: Path, full_records: list[Raw]) -> list[Raw]:
    """The records of all modalities, as stage resize left them in the project."""
    write_records(full_records)
    return full_records


def test_each_question_is_in_one_part_of_each_axis(run: RunStage, records: list[Raw]) -> None:
    run(splits)
    for axis, slugs in AXES.items():
        parts = Counter(name for slug in slugs for part in ("train", "test") for name in part_ids(axis, slug, part))
        assert parts == Counter(record["question_id"] for record in records)


def test_an_item_is_in_the_published_form_with_what_it_is_sliced_by(run: RunStage, records: list[Raw]) -> None:
    run(splits)
    item = read_split(layout.split("task", "lesion-grading", "train"))[0]
    assert set(item) == set(FIELDS)
    assert item["question_type"] == "lesion-grading"
    assert item["modality"] in MODALITIES
    assert item["image"] == f"data/images/{item['modality']}/x.png"
    assert parse_problem(item["problem"]) == ("What is seen?", {"A": "Cyst", "B": "Nodule"})
    assert parse_solution(item["solution"]) == "B"


def test_one_file_beside_both_axes_says_where_the_splits_come_from(run: RunStage, records: list[Raw]) -> None:
    run(splits)
    facts = json.loads((layout.SPLITS / "provenance.json").read_text(encoding="utf-8"))
    assert facts == provenance({"splits": load_params().splits})
    assert {path.name for axis in AXES for path in (layout.SPLITS / axis).rglob("*.json")} == {"train.json", "test.json"}


def test_another_commit_changes_what_is_said_of_the_splits_and_not_the_splits(
    run: RunStage, records: list[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(splits)
    first = tree()
    monkeypatch.setattr(splits, "provenance", lambda params: {"git_commit": "another"})
    run(splits)
    assert {path for path, content in tree().items() if content != first[path]} == {"data/splits/provenance.json"}


@pytest.mark.parametrize("stage", ["train", "evaluate", "report"])
def test_no_stage_depends_on_what_is_said_of_the_splits(stage: str) -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    deps = stages[stage].get("do", stages[stage])["deps"]
    assert any(dep.startswith("data/splits/") for dep in deps)
    assert not {"data", "data/splits", "data/splits/provenance.json"} & set(deps)


def test_files_are_sorted_and_two_runs_give_the_same_bytes(run: RunStage, records: list[Raw], capsys: pytest.CaptureFixture[str]) -> None:
    run(splits)
    first = tree()
    assert len(first) == 26 + 1  # provenance.json
    names = part_ids("modality", "ct", "train")
    assert names == sorted(names)
    write_records(records[::-1])
    run(splits)
    assert tree() == first
    assert "splits: read 160 records, kept 160, quarantined 0" in capsys.readouterr().out


def test_new_data_of_one_modality_leaves_the_others_as_they_were(run: RunStage, records: list[Raw]) -> None:
    run(splits)
    first = tree()
    write_records([*records, *(records[0] | {"question_id": f"new_{number}"} for number in range(3))])
    run(splits)
    changed = {path for path, content in tree().items() if content != first[path]}
    kind = next(slug for slug, literal in QUESTION_TYPES.items() if literal == records[0]["question_type"])
    assert {path.rsplit("/", 1)[0] for path in changed} == {"data/splits/modality/ct", f"data/splits/task/{kind}"}


@pytest.mark.parametrize(("count", "train"), [(2, 1), (3, 2), (4, 3), (5, 4), (10, 8), (101, 81)])
def test_a_share_of_the_questions_is_for_training_and_neither_part_is_empty(count: int, train: int) -> None:
    items: list[Raw] = [{"question_id": f"{number:03d}"} for number in range(count)]
    first, second = splits.split(items, "modality", "ct", SETTINGS)
    assert (len(first), len(second)) == (train, count - train)
    assert sorted(item["question_id"] for item in first + second) == [item["question_id"] for item in items]


def test_seed_axis_and_slug_each_change_the_draw() -> None:
    items: list[Raw] = [{"question_id": f"{number:03d}"} for number in range(100)]
    draws = [
        splits.split(items, "modality", "ct", SETTINGS),
        splits.split(items, "modality", "mri", SETTINGS),
        splits.split(items, "task", "ct", SETTINGS),
        splits.split(items, "modality", "ct", Splits(train_share=0.8, seed=43)),
    ]
    tests = [tuple(item["question_id"] for item in test) for _, test in draws]
    assert len(set(tests)) == 4


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize(
    ("axis", "slug", "field", "literal"),
    [
        ("modality", "oct", "modality_type", MODALITIES["oct"]),
        ("task", "lesion-grading", "question_type", QUESTION_TYPES["lesion-grading"]),
    ],
)
def test_an_empty_split_is_refused_and_the_old_ones_stay(
    run: RunStage, records: list[Raw], axis: str, slug: str, field: str, literal: str, left: int
) -> None:
    run(splits)
    first = tree()
    of_slug = [record for record in records if record[field] == literal]
    write_records([record for record in records if record not in of_slug[left:]])
    with pytest.raises(InputError, match=rf"split {axis}/{slug} would be empty on one side: {left} usable.*add data of this {axis}"):
        run(splits)
    assert tree() == first


def test_a_question_id_of_two_modalities_is_refused_naming_both(run: RunStage, records: list[Raw]) -> None:
    double = next(record for record in records if record["modality_type"] == MODALITIES["mri"])
    write_records([*records, double | {"modality_type": MODALITIES["ct"]}])
    with pytest.raises(InputError, match=r"'mri_.*' stands twice: in data/records/ct\.json#20 .* and in data/records/mri\.json#0"):
        run(splits)


def test_a_modality_that_was_not_resized_is_named(run: RunStage, records: list[Raw]) -> None:
    layout.records("fundus").unlink()
    with pytest.raises(InputError, match=r"data/records/fundus\.json is missing: run `dvc repro resize@fundus`"):
        run(splits)
