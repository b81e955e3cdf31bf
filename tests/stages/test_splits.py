"""Stage splits: 13 train and test files in the published form, leak-free, drawn independently."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import chain, product
from pathlib import Path

import pytest

from stages import splits
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import read_json_lines, write_json, write_json_lines
from stages.core.params import Splits, load_params
from stages.core.provenance import collect_provenance
from stages.core.settings.data import ReleasedSplits
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.corpus.dataset.problems import (
    format_problem,
    format_solution,
    parse_problem,
    parse_solution,
)
from stages.corpus.dataset.split_files import DRAWN, FIELDS, read_split
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError
from stages.corpus.splitting.data_tests import RECORD_TESTS, read_results
from stages.corpus.splitting.drawing import random
from stages.corpus.splitting.leaks import read_leaks, total
from stages.corpus.splitting.released_join import NONE_RELEASED
from stages.profiles.proposals.propose import with_folds
from stages.taxonomy import fold_slug
from tests.conftest import ROOT, MakeRecord, Raw, RunStage, change_params
from tests.omnimedvqa import AXES, MODALITIES, QUESTION_TYPES

SETTINGS = Splits(
    kind="grouped",
    released=ReleasedSplits(folder="infra/released", max_lost=0.05),
    train_share=0.8,
    near_duplicates=10,
    patient_patterns=[],
    seed=42,
)
BITS = 256


def hashes_of(name: str, *flipped: int) -> Raw:
    """Hashes by name: random between names, `flipped` bits apart within one."""
    number = int(hashlib.sha256(name.encode()).hexdigest(), 16)
    for bit in flipped:
        number ^= 1 << bit
    return {
        "pixel_hash": hashlib.sha256(f"{name}{flipped}".encode()).hexdigest(),
        "perceptual_hash": f"{number:0{BITS // 4}x}",
    }


def facts_of(name: str) -> Raw:
    """What else stage resize says of the image of that name."""
    return {
        "source_size": [512, 400],
        "source_mode": "L",
        "brightness": [90.5, 40.25],
        **hashes_of(name),
    }


def write_records(records: list[Raw]) -> None:
    """What stage resize leaves."""
    for slug, literal in MODALITIES.items():
        mine = [
            {
                "image": f"data/images/{slug}/{record['image_path']}.png",
                **facts_of(record["image_path"]),
                **record,
            }
            for record in records
            if record["modality_type"] == literal
        ]
        write_json_lines(layout.records(slug), mine)


def tree() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(layout.SPLITS.rglob("*.json"))}


def part_ids(axis: str, slug: str, part: str, kind: str) -> list[str]:
    return [item["question_id"] for item in read_split(layout.split(axis, slug, part, kind))]


def use_random(**others: object) -> None:
    """Choose the random kind in the project's params.yaml."""
    change_params("splits", kind="random", **others)


@pytest.fixture
def records(project: Path, full_records: list[Raw]) -> list[Raw]:
    """The records of all modalities, as stage resize left them in the project."""
    write_records(full_records)
    return full_records


def test_a_question_has_its_context_and_others_are_written_as_without(
    run: RunStage, records: list[Raw]
) -> None:
    def parts() -> dict[str, list[Raw]]:
        return {
            str(path): json.loads(path.read_text(encoding="utf-8"))
            for path in layout.SPLITS.rglob("t*.json")
        }

    run(splits)
    before = parts()
    told = {each["question_id"]: at % 80 for at, each in enumerate(records) if at % 2}
    write_records(
        [
            each | ({"age": told[name], "sex": "f"} if name in told else {})
            for each in records
            for name in [each["question_id"]]
        ]
    )
    run(splits)
    after = parts()
    assert after.keys() == before.keys()
    seen = set()
    for path, items in after.items():
        for item, plain in zip(items, before[path], strict=True):
            name = item["question_id"]
            seen.add(name)
            if name in told:
                assert item == plain | {"context": f"Age: {told[name]}. Sex: female."}
            else:
                assert item == plain
                assert [*item] == [*FIELDS]
    assert seen == {each["question_id"] for each in records}


@pytest.mark.parametrize("kind", DRAWN)
def test_each_question_is_in_one_part_of_each_axis(
    run: RunStage, records: list[Raw], kind: str
) -> None:
    run(splits)
    for axis, slugs in AXES.items():
        parts = Counter(
            name
            for slug in slugs
            for part in ("train", "test")
            for name in part_ids(axis, slug, part, kind)
        )
        assert parts == Counter(record["question_id"] for record in records)


def test_an_item_is_in_the_published_form_with_what_it_is_sliced_by(
    run: RunStage, records: list[Raw]
) -> None:
    run(splits)
    item = read_split(layout.split("task", "lesion-grading", "train", "grouped"))[0]
    assert set(item) == set(FIELDS)
    assert item["question_type"] == "lesion-grading"
    assert item["modality"] in MODALITIES
    assert item["image"].startswith(f"data/images/{item['modality']}/Images/{item['modality']}/")
    assert parse_problem(item["problem"]) == ("What is seen?", {"A": "Cyst", "B": "Nodule"})
    assert parse_solution(item["solution"]) == "B"
    assert item["options"] == ["Cyst", "Nodule"]


def test_one_file_beside_both_kinds_says_where_the_splits_come_from(
    run: RunStage, records: list[Raw]
) -> None:
    run(splits)
    facts = json.loads((layout.SPLITS / "provenance.json").read_text(encoding="utf-8"))
    assert facts == collect_provenance({"splits": load_params().splits})
    assert {path.name for kind in DRAWN for path in (layout.SPLITS / kind).rglob("*.json")} == {
        "train.json",
        "test.json",
    }


def test_another_commit_changes_what_is_said_of_the_splits_and_not_the_splits(
    run: RunStage, records: list[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(splits)
    first = tree()
    monkeypatch.setattr(splits, "collect_provenance", lambda params: {"git_commit": "another"})
    run(splits)
    assert {path for path, content in tree().items() if content != first[path]} == {
        "data/splits/provenance.json"
    }


@pytest.mark.parametrize("stage", ["train", "evaluate", "report"])
def test_no_stage_depends_on_what_is_said_of_the_splits(stage: str) -> None:
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    deps = stages[stage].get("do", stages[stage])["deps"]
    assert any(dep.startswith("data/splits/") for dep in deps)
    assert all(
        dep.startswith("data/splits/${splits.kind}/")
        for dep in deps
        if dep.startswith("data/splits/") and dep != str(layout.LEAKS)
    )
    assert not {"data", "data/splits", "data/splits/provenance.json"} & set(deps)


def test_files_are_sorted_and_two_runs_give_the_same_bytes(
    run: RunStage, records: list[Raw], capsys: pytest.CaptureFixture[str]
) -> None:
    run(splits)
    first = tree()
    assert len(first) == 2 * 26 + 4  # groups, leaks, what is left out, provenance
    names = part_ids("modality", "ct", "train", "grouped")
    assert names == sorted(names)
    write_records(records[::-1])
    run(splits)
    assert tree() == first
    assert "splits: read 160 records, kept 160, quarantined 0" in capsys.readouterr().out


def test_new_data_of_one_modality_leaves_the_others_as_they_were(
    run: RunStage, records: list[Raw]
) -> None:
    run(splits)
    first = tree()
    before = {
        name
        for slug in MODALITIES
        if slug != "ct"
        for name in part_ids("modality", slug, "test", "grouped")
    }
    write_records(
        [
            *records,
            *(
                records[0] | {"question_id": f"new_{number}", "image_path": f"Images/{number}"}
                for number in range(30)
            ),
        ]
    )
    run(splits)
    changed = {
        path.rsplit("/", 1)[0] for path, content in tree().items() if content != first[path]
    } - {"data/splits"}
    kind = next(
        slug for slug, literal in QUESTION_TYPES.items() if literal == records[0]["question_type"]
    )
    published = {f"data/splits/random/{name}" for name in ("modality/ct", f"task/{kind}")}
    assert {path for path in changed if "random" in path} == published
    assert {path for path in changed if "grouped/modality" in path} == {
        "data/splits/grouped/modality/ct"
    }
    tested = {name for slug in QUESTION_TYPES for name in part_ids("task", slug, "test", "grouped")}
    assert before == {name for name in tested if not name.startswith(("ct_", "new_"))}


@pytest.mark.parametrize(("count", "train"), [(2, 1), (3, 2), (4, 3), (5, 4), (10, 8), (101, 81)])
def test_a_published_share_of_the_questions_is_for_training_and_neither_part_is_empty(
    count: int, train: int
) -> None:
    items: list[Raw] = [
        {"question_id": f"{number:03d}", "modality": "ct", "question_type": "other"}
        for number in range(count)
    ]
    first, second = random(items, SETTINGS, AXES)["modality"]["ct"]
    assert (len(first), len(second)) == (train, count - train)
    assert sorted(item["question_id"] for item in [*first, *second]) == [
        item["question_id"] for item in items
    ]


def test_seed_axis_and_slug_each_change_the_random_draw() -> None:
    kind = "lesion-grading"
    items: list[Raw] = [
        {
            "question_id": f"{slug}{number:03d}",
            "modality": slug,
            "question_type": kind if slug == "ct" else "other",
        }
        for slug in ("ct", "mri")
        for number in range(100)
    ]
    draw, other = (
        random(items, SETTINGS, AXES),
        random(items, SETTINGS.model_copy(update={"seed": 43}), AXES),
    )
    drawn = [
        draw["modality"]["ct"],
        draw["modality"]["mri"],
        draw["task"][kind],
        other["modality"]["ct"],
    ]
    tests = [tuple(item["question_id"][-3:] for item in test) for _, test in drawn]
    assert len(set(tests)) == 4


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize(
    ("axis", "slug", "field", "literal"),
    [
        ("modality", "oct", "modality_type", MODALITIES["oct"]),
        ("task", "lesion-grading", "question_type", QUESTION_TYPES["lesion-grading"]),
    ],
)
def test_a_split_without_data_is_left_out_or_refused_if_strict(
    run: RunStage,
    records: list[Raw],
    capsys: pytest.CaptureFixture[str],
    axis: str,
    slug: str,
    field: str,
    literal: str,
    left: int,
) -> None:
    run(splits)
    first = tree()
    change_params("matrix", strict=True)
    of_slug = [record for record in records if record[field] == literal]
    write_records([record for record in records if record not in of_slug[left:]])
    with pytest.raises(
        InputError,
        match=(
            rf"1 splits have too little data, and matrix.strict is set: {axis}/{slug}: \d to train,"
            r" \d to test, .*add data"
        ),
    ):
        run(splits)
    assert tree() == first
    change_params("matrix", strict=False)
    run(splits)
    assert f"left out, as matrix in params.yaml asks for more data: {axis}/{slug}" in (
        capsys.readouterr().out
    )
    assert part_ids(axis, slug, "train", "grouped") == part_ids(axis, slug, "test", "grouped")
    assert not part_ids(axis, slug, "train", "grouped")
    kinds = json.loads(layout.LEFT_OUT.read_text(encoding="utf-8"))
    assert [*kinds["grouped"]] == [axis]
    assert kinds["grouped"][axis][slug]["train"] + kinds["grouped"][axis][slug]["test"] == left
    other = "task" if axis == "modality" else "modality"
    kept = [*AXES[other]]
    trained = [name for name in kept if part_ids(other, name, "train", "grouped")]
    assert trained == kept, "its questions stay in the splits of the other axis"


def test_a_joint_split_is_the_union_of_its_parts_and_changes_no_other(
    run: RunStage, records: list[Raw]
) -> None:
    run(splits)
    before = tree()
    change_params(
        "splits",
        joint={
            "cross-sectional": {"axis": "modality", "of": ["ct", "mri"]},
            "all-types": {"axis": "task", "of": "all"},
        },
    )
    run(splits)
    for kind, part in product(("grouped", "random"), ("train", "test")):
        for axis, name, slugs in (
            ("modality", "cross-sectional", ("ct", "mri")),
            ("task", "all-types", AXES["task"]),
        ):
            ids = [part_ids(axis, slug, part, kind) for slug in slugs]
            assert part_ids(axis, name, part, kind) == sorted(chain.from_iterable(ids))
    after = tree()
    provenance = str(layout.SPLITS / "provenance.json")
    assert {name: after[name] for name in before if name != provenance} == {
        name: content for name, content in before.items() if name != provenance
    }


def test_limits_of_the_matrix_leave_out_what_has_less(run: RunStage, records: list[Raw]) -> None:
    run(splits)
    sizes = {slug: len(part_ids("modality", slug, "train", "grouped")) for slug in AXES["modality"]}
    limit = sorted(sizes.values())[3]
    change_params("matrix", min_train=limit)
    run(splits)
    for slug, size in sizes.items():
        left = part_ids("modality", slug, "train", "grouped")
        assert len(left) == (size if size >= limit else 0)


def test_a_corpus_without_any_split_is_refused(run: RunStage, records: list[Raw]) -> None:
    change_params("matrix", min_test=10_000)
    with pytest.raises(InputError, match=r"no split has enough data .*modality/ct: \d+ to train"):
        run(splits)


def test_no_image_no_copy_and_no_patient_of_a_test_is_in_any_train_split_of_either_axis(
    run: RunStage, project: Path, make_record: MakeRecord
) -> None:
    records = corpus_with_copies_and_patients(make_record)
    write_records(records)
    run(splits)
    by_id = {record["question_id"]: record for record in records}
    sides: dict[str, set[str]] = {"train": set(), "test": set()}
    for axis, slugs in AXES.items():
        for slug in slugs:
            for part, names in sides.items():
                names |= set(part_ids(axis, slug, part, "grouped"))
    assert not sides["train"] & sides["test"]
    assert sides["train"] | sides["test"] == set(by_id)
    for key in ("image_path", "scene", "patient"):
        seen, tested = ({by_id[name][key] for name in names} - {None} for names in sides.values())
        assert not seen & tested, key
        assert tested
    leaks = read_leaks(layout.LEAKS)
    assert all(
        (leak.image, leak.group, leak.other_axis) == (0, 0, 0)
        for slugs in leaks["grouped"].values()
        for leak in slugs.values()
    )
    for axis in AXES:
        published = total(leaks["random"][axis].values())
        assert published.image < published.group
        assert published.other_axis > 0
    assert total(leaks["random"]["modality"].values()).image > 0


def test_shares_are_within_a_point_by_modality_and_type(
    run: RunStage, project: Path, make_record: MakeRecord
) -> None:
    write_records(corpus_with_copies_and_patients(make_record))
    run(splits)
    for axis, slugs in AXES.items():
        for slug in slugs:
            train, test = (len(part_ids(axis, slug, part, "grouped")) for part in ("train", "test"))
            assert abs(train / (train + test) - 0.8) <= 0.01, slug


def test_images_that_belong_together_are_listed(
    run: RunStage, project: Path, make_record: MakeRecord
) -> None:
    records = corpus_with_copies_and_patients(make_record)
    write_records(records)
    run(splits)
    listed = json.loads((layout.SPLITS / "groups.json").read_text(encoding="utf-8"))
    assert listed == sorted(sorted(images) for images in listed)
    assert {len(images) for images in listed} == {
        2,
        4,
    }  # a copy, and a patient of two images with a copy of each
    assert all("/patient" in image for images in listed if len(images) == 4 for image in images)


def corpus_with_copies_and_patients(make_record: MakeRecord) -> list[Raw]:
    """60 images per modality, half of them in pairs of a patient, each with a near-duplicate."""
    records = []
    for slug, literal in MODALITIES.items():
        for number in range(60):
            patient = f"patient{number // 2}" if number < 30 else None
            for copy in range(2):
                folder = f"Images/{slug}/{patient}" if patient else f"Images/{slug}"
                name = f"{slug}{number}"
                for asked in range(2):
                    kind = list(QUESTION_TYPES)[(number + copy + 2 * asked) % 5]
                    record = make_record(
                        question_id=f"{name}_{copy}_{asked}",
                        modality_type=literal,
                        question_type=QUESTION_TYPES[kind],
                        image_path=f"{folder}/{number}_{copy}.png",
                    )
                    facts = {"scene": name, "patient": f"{slug}/{patient}" if patient else None}
                    records.append(record | hashes_of(name, *range(10 * copy)) | facts)
    return records


def test_one_group_of_images_alone_is_refused_with_what_to_loosen_unless_the_random_kind_is_used(
    run: RunStage, records: list[Raw]
) -> None:
    write_records(
        [
            (
                record | hashes_of("all alike")
                if record["modality_type"] == MODALITIES["oct"]
                else record
            )
            for record in records
        ]
    )
    change_params("matrix", strict=True)
    with pytest.raises(
        InputError,
        match=(
            r"modality/oct: .* of 1 groups of images.*; splits.near_duplicates and"
            r" splits.patient_patterns decide"
        ),
    ):
        run(splits)
    use_random()
    run(splits)
    assert len(part_ids("modality", "oct", "test", "random")) == 4


def test_groups_too_large_for_the_share_are_told(
    run: RunStage, records: list[Raw], capsys: pytest.CaptureFixture[str]
) -> None:
    run(splits)
    out = capsys.readouterr().out
    assert (
        out.count("groups too large for the share") >= 8
    )  # four images a modality: three of them are 75%
    assert "splits: 32 images in 32 groups, the largest of 1" in out
    assert "splits: training and tests use grouped" in out


def test_records_without_hashes_are_refused_with_the_stage_that_makes_them(
    run: RunStage, records: list[Raw]
) -> None:
    found = list(read_json_lines(layout.records("ct"), ""))
    del found[3]["perceptual_hash"]
    write_json_lines(layout.records("ct"), found)
    with pytest.raises(
        InputError,
        match=(
            r"facts 1 .*data/records/ct\.jsonl, line 4 .*perceptual_hash is missing: run `dvc repro"
            r" resize`"
        ),
    ):
        run(splits)


def test_a_question_id_of_two_modalities_is_refused_naming_both(
    run: RunStage, records: list[Raw]
) -> None:
    double = next(record for record in records if record["modality_type"] == MODALITIES["mri"])
    write_records([*records, double | {"modality_type": MODALITIES["ct"]}])
    named = (
        r"data/records/mri\.jsonl, line 1 .*duplicate question_id; kept: data/records/ct\.jsonl,"
        r" line 21 "
    )
    with pytest.raises(InputError, match=named):
        run(splits)


def test_what_the_tests_of_the_corpus_found_is_written_beside_the_splits(
    run: RunStage, records: list[Raw], capsys: pytest.CaptureFixture[str]
) -> None:
    run(splits)
    found = {each.test: each.outcome for each in read_results(layout.DATA_TESTS).tests}
    assert found["schema"] == "passed"
    assert found["single_answer_tests"] == "failed"  # the right answer is always Nodule
    assert (
        "warning: data test single_answer_tests 26 (limit 0): test splits in which"
        in capsys.readouterr().out
    )
    facts = json.loads(layout.DATA_TESTS.read_text(encoding="utf-8"))["provenance"]
    params = load_params()
    assert facts == collect_provenance(
        {
            "splits": params.splits,
            "matrix": params.matrix,
            "data_tests": params.data_tests,
            "resize.size": "384",
        }
    )


def test_a_failed_error_stops_before_splits_are_written_and_what_was_found_can_be_read(
    run: RunStage, records: list[Raw]
) -> None:
    run(splits)
    first = tree()
    write_records([record | {"brightness": [7.0, 0.0]} for record in records])
    with pytest.raises(
        InputError,
        match=(
            r"1 data test failed: blank_images 1 \(limit 0\.05\), as"
            r" data/images/.*data/data-tests\.json holds all"
        ),
    ):
        run(splits)
    assert tree() == first
    assert [each.test for each in read_results(layout.DATA_TESTS).tests if each.stops] == [
        "blank_images"
    ]
    change_params("data_tests", blank_images={"severity": "warning", "limit": 0.05})
    run(splits)


def test_records_that_were_changed_by_hand_stop_with_all_of_them_counted(
    run: RunStage, records: list[Raw]
) -> None:
    write_records(
        [
            record | ({"gt_answer": "x"} if number < 3 else {})
            for number, record in enumerate(records)
        ]
    )
    with pytest.raises(
        InputError,
        match=(
            r"gold 3 \(limit 0\), as data/records/ct\.jsonl, line 1 .*gt_answer is none of the"
            r" options"
        ),
    ):
        run(splits)
    assert not layout.SPLITS.exists()
    assert {each.test for each in read_results(layout.DATA_TESTS).tests} == set(RECORD_TESTS)


@pytest.mark.parametrize("stage", ["prior", "train", "evaluate"])
def test_nothing_but_the_report_depends_on_what_the_tests_found(stage: str) -> None:
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    assert str(layout.DATA_TESTS) not in stages[stage].get("do", stages[stage])["deps"]
    assert str(layout.DATA_TESTS) in stages["report"]["deps"]


def test_a_modality_that_was_not_resized_is_named(run: RunStage, records: list[Raw]) -> None:
    layout.records("fundus").unlink()
    with pytest.raises(
        InputError, match=r"data/records/fundus\.jsonl is missing: run `dvc repro resize`"
    ):
        run(splits)


@pytest.mark.parametrize("options", [None, ["Cyst"], ["Cyst", 3], "AB"])
def test_a_split_file_without_usable_options_is_refused_with_the_stage_that_makes_it(
    run: RunStage, records: list[Raw], options: object
) -> None:
    run(splits)
    path = layout.split("modality", "ct", "train", "grouped")
    items = read_split(path)
    items[1]["options"] = options
    write_json(path, items)
    with pytest.raises(
        InputError, match=r"ct/train\.json, item 1: options is .*run `dvc repro splits`"
    ):
        read_split(path)
    del items[1]["options"]
    write_json(path, items)
    with pytest.raises(InputError, match=r"ct/train\.json, item 1: options missing"):
        read_split(path)


def release(folder: Path, records: list[Raw], **by_name: list[int]) -> None:
    """Split files in Med-R1's form: name of a file -> indices of the records in it."""
    for name, indices in by_name.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        items = [
            {
                "image": records[index]["image_path"],
                "problem": format_problem(records[index]["question"], ["Cyst", "Nodule"]),
                "solution": format_solution("B"),
            }
            for index in indices
        ]
        write_json(path, items)


def test_released_splits_are_taken_as_they_are_beside_the_drawn_ones(
    run: RunStage, project: Path, records: list[Raw], capsys: pytest.CaptureFixture[str]
) -> None:
    records = [each | {"question": f"Of {each['question_type']}?"} for each in records]
    write_records(records)
    change_params("splits", kind="released", released={"folder": "theirs", "max_lost": 0.5})
    ct = [at for at, each in enumerate(records) if each["modality_type"] == MODALITIES["ct"]]
    grading = [at for at, each in enumerate(records) if each["question_type"] == "Lesion Grading"]
    release(
        project / "theirs",
        records,
        modality__train__ct_train=ct[:8],
        modality__test__ct_test=ct[7:],
        task__lesion_grading=[],
        **{
            "question_type__train__Lesion Grading_train": grading[:9],
            "question_type__test__Lesion Grading_test": grading[9:],
            "modality__train__unknown_train": [0],
        },
    )
    run(splits)
    shown = capsys.readouterr().out
    assert part_ids("modality", "ct", "test", "released") == [
        records[at]["question_id"] for at in ct[7:]
    ]
    assert part_ids("modality", "mri", "test", "released") == []
    leaks = read_leaks(layout.LEAKS)
    assert set(leaks) == {"grouped", "random", "released"}
    own = leaks["released"]["modality"]["ct"]
    assert own.test == len(ct) - 7
    assert own.image >= 1
    assert own.other_axis == len({*ct[7:]} & {*grading[:9]})
    content = json.loads(layout.RELEASED.read_text(encoding="utf-8"))
    assert content["in_train_and_test"] == {"modality": {"ct": [records[ct[7]]["question_id"]]}}
    assert [each["path"] for each in content["unused"]] == [
        "modality/train/unknown_train.json",
        "task/lesion_grading.json",
    ]
    assert content["records_unused"] == len(records) - len({*ct, *grading})
    assert "unknown_train.json" in shown
    assert "training and tests use released" in shown


def test_released_files_of_another_corpus_are_refused_with_what_does_not_join(
    run: RunStage, project: Path, records: list[Raw]
) -> None:
    change_params("splits", kind="released", released={"folder": "theirs", "max_lost": 0.05})
    strangers = [
        {**each, "image_path": f"Images/elsewhere/{at}"} for at, each in enumerate(records)
    ]
    release(project / "theirs", strangers, ct_test=[0, 1])
    with pytest.raises(RefusedDataError, match="image-missing 2") as error:
        run(splits)
    assert error.value.fault == CorpusFault.RELEASED_SPLITS
    content = json.loads(layout.RELEASED.read_text(encoding="utf-8"))
    assert [each["image"] for each in content["not_joined"]] == [
        "Images/elsewhere/0",
        "Images/elsewhere/1",
    ]
    assert not layout.SPLITS.exists()


def test_no_file_is_read_for_splits_that_are_drawn(
    run: RunStage, project: Path, records: list[Raw]
) -> None:
    (project / "infra/released").mkdir(parents=True)
    (project / "infra/released/ct_test.json").write_text("broken", encoding="utf-8")
    run(splits)
    assert json.loads(layout.RELEASED.read_text(encoding="utf-8")) == NONE_RELEASED
    assert not (layout.SPLITS / "released").exists()


def cross_validate(folds: int) -> None:
    """Set splits.folds, and the checkpoints that go with it."""
    path = Path("params.yaml")
    tree = read_yaml(path)
    tree["splits"]["folds"] = folds
    groups = with_folds({"checkpoints": tree["checkpoints"]}, folds)
    path.write_text(dump_yaml(tree | groups), encoding="utf-8")


@pytest.mark.parametrize("folds", [2, 3, 4])
def test_every_question_is_tested_in_one_fold_and_trained_on_in_the_others(
    run: RunStage, records: list[Raw], folds: int
) -> None:
    cross_validate(folds)
    run(splits)
    for axis, slugs in AXES.items():
        for slug in slugs:
            everything = part_ids(axis, slug, "test", "grouped")
            assert part_ids(axis, slug, "train", "grouped") == []
            tested: list[str] = []
            for number in range(1, folds + 1):
                name = fold_slug(slug, number)
                train, test = (part_ids(axis, name, part, "grouped") for part in ("train", "test"))
                assert sorted([*train, *test]) == everything
                assert test
                tested += test
            assert sorted(tested) == everything
    leaks = read_leaks(layout.LEAKS)
    for axis in AXES:
        counts = total(leaks["grouped"][axis].values())
        assert (counts.test, counts.image, counts.group) == (len(records), 0, 0)
        assert counts.other_axis == 0, "the folds of both axes are the same groups"
    assert not list((layout.SPLITS / "random").rglob("*-fold-*"))


def test_images_of_a_patient_are_in_one_fold(run: RunStage, project: Path) -> None:
    records = [
        {
            "dataset": "Set",
            "question_id": f"q{number:02}",
            "question_type": QUESTION_TYPES["lesion-grading"],
            "question": "What is seen?",
            "gt_answer": "Cyst",
            "image_path": f"Images/Set/{number}.png",
            "option_A": "Cyst",
            "option_B": "Nodule",
            "modality_type": MODALITIES["ct"],
            "patient": f"Images/Set/{number // 3}.png",
        }
        for number in range(18)
    ]
    write_records(records)
    cross_validate(3)
    run(splits)
    fold_of = {
        name: number
        for number in range(1, 4)
        for name in part_ids("modality", fold_slug("ct", number), "test", "grouped")
    }
    assert len(fold_of) == 18
    for patient in range(6):
        assert len({fold_of[f"q{patient * 3 + each:02}"] for each in range(3)}) == 1


def test_a_split_that_lacks_data_in_a_fold_is_left_out_in_all(
    run: RunStage, records: list[Raw]
) -> None:
    few = [each for each in records if each["modality_type"] != MODALITIES["oct"]]
    few += [each for each in records if each["modality_type"] == MODALITIES["oct"]][:1]
    write_records(few)
    cross_validate(3)
    run(splits)
    left_out = json.loads(layout.LEFT_OUT.read_text(encoding="utf-8"))["grouped"]
    assert set(left_out["modality"]) == {"oct", *(fold_slug("oct", each) for each in (1, 2, 3))}
    for number in range(1, 4):
        assert part_ids("modality", fold_slug("oct", number), "test", "grouped") == []
    assert part_ids("modality", "oct", "test", "grouped") == []


def test_unions_have_folds_too(run: RunStage, records: list[Raw]) -> None:
    change_params("splits", joint={"cross-sectional": {"axis": "modality", "of": ["ct", "mri"]}})
    cross_validate(2)
    run(splits)
    for number in (1, 2):
        union = part_ids("modality", fold_slug("cross-sectional", number), "train", "grouped")
        parts = [
            part_ids("modality", fold_slug(slug, number), "train", "grouped")
            for slug in ("ct", "mri")
        ]
        assert union == sorted(chain.from_iterable(parts))


def test_data_tests_judge_every_fold(run: RunStage, records: list[Raw]) -> None:
    cross_validate(3)
    change_params("data_tests", single_answer_tests={"severity": "warning", "limit": 0})
    run(splits)
    results = {each.test: each for each in read_results(layout.DATA_TESTS).tests}
    assert results["single_answer_tests"].outcome == "failed", "all answers are the same here"
    assert results["single_answer_tests"].checked == 3 * sum(map(len, AXES.values()))
    assert results["questions_of_modality"].value == len(records) / len(MODALITIES)
