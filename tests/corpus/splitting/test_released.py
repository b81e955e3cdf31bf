"""Split files of others: how they are named and read, and what joins the corpus."""

from __future__ import annotations

import gzip
import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.core.params import shipped_taxonomy
from stages.corpus.dataset.problems import format_problem, format_solution
from stages.corpus.dataset.split_paths import parse_split_path
from stages.corpus.quarantine.ledger import RecordLocation
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError
from stages.corpus.records.records import Record
from stages.corpus.splitting.released import read_released
from stages.corpus.splitting.released_join import (
    Joined,
    check_joined,
    in_train_and_test,
    join,
)
from stages.corpus.splitting.released_match import JoinFault
from tests.omnimedvqa import AXES

TAXONOMY = shipped_taxonomy()
Item = dict[str, Any]


def item(number: int, **changes: Any) -> Item:
    """The question of `record(number)` as Med-R1 writes it."""
    return {
        "image": f"Images/Set/{number}.png",
        "problem": format_problem(f"What is seen in {number}?", ["Cyst", "Nodule"]),
        "solution": format_solution("B"),
    } | changes


def record(number: int, **changes: Any) -> Record:
    """A valid CT record."""
    values = {
        "question_id": f"Set_{number}",
        "dataset": "Set",
        "modality": "ct",
        "question_type": "disease-diagnosis",
        "question": f"What is seen in {number}?",
        "options": ("Cyst", "Nodule"),
        "gold": "B",
        "image_paths": (f"Images/Set/{number}.png",),
        "slices": (),
        "location": RecordLocation("Set.json", number),
        "fields": {"image": f"data/images/ct/Images/Set/{number}.png"},
    }
    return Record(**(values | changes))


def write(folder: Path, name: str, items: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(items).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def joined(folder: Path, *records: Record) -> Joined:
    return join(read_released(folder, TAXONOMY), records)


def faults(result: Joined) -> list[JoinFault]:
    return [lost.fault for each in result.files for lost in each.not_joined]


@pytest.mark.parametrize(
    ("path", "words", "part"),
    [
        # Med-R1's repository
        ("modality/test/X-Ray_test.json", ("modality", "X-Ray"), "test"),
        (
            "modality/train/OCT (Optical Coherence Tomography_train.json",
            ("modality", "OCT (Optical Coherence Tomography"),
            "train",
        ),
        ("question_type/test/Other B_test.json", ("question_type", "Other B"), "test"),
        # our own split files, and packed ones
        ("modality/ct/train.json", ("modality", "ct"), "train"),
        ("task/lesion-grading.test.json.gz", ("task", "lesion-grading"), "test"),
        ("X-Ray-testing.json", ("X-Ray",), "test"),
        # what says neither, or both
        ("ct.json", ("ct",), None),
        ("val/ct.json", ("ct",), None),
        ("train/ct_test.json", ("ct",), None),
        ("test_set.json", ("test_set",), None),
    ],
)
def test_the_path_of_a_file_says_what_is_in_it(
    path: str, words: tuple[str, ...], part: str | None
) -> None:
    parsed = parse_split_path(PurePosixPath(path))
    assert (parsed.words, parsed.part) == (words, part)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("modality/train/CT(Computed Tomography)_train.json", ("modality", "ct", "train")),
        ("question_type/test/Lesion Grading_test.json", ("task", "lesion-grading", "test")),
        ("task/modality-recognition/test.json", ("task", "modality-recognition", "test")),
        ("x-ray.test.json.gz", ("modality", "x-ray", "test")),
        ("X-Ray_TEST.JSON", ("modality", "x-ray", "test")),
        ("Splits/Anatomy Identification_train.json", ("task", "anatomy-identification", "train")),
    ],
)
def test_a_file_is_one_part_of_one_split(
    tmp_path: Path, name: str, split: tuple[str, str, str]
) -> None:
    write(tmp_path, name, [item(1)])
    (file,) = read_released(tmp_path, TAXONOMY).files
    assert (file.axis, file.slug, file.part) == split
    assert file.questions[0].options == ("Cyst", "Nodule")


def test_files_of_no_split_are_named_with_what_is_in_them(tmp_path: Path) -> None:
    write(tmp_path, "modality/ct_test.json", [item(1)])
    write(tmp_path, "modality/unknown_train.json", [item(2), item(3)])
    write(tmp_path, "modality/mri_val.json", [item(4)])
    write(tmp_path, "._ct_train.json", [item(5)])
    write(tmp_path, "leaks.json", {"no": "list"})
    (tmp_path / "a.json").mkdir()
    unused = read_released(tmp_path, TAXONOMY).unused
    assert {each.path: each.questions for each in unused} == {
        "leaks.json": 0,
        "modality/mri_val.json": 1,
        "modality/unknown_train.json": 2,
    }
    assert "'unknown'" in unused[2].why


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({}, "no JSON file"),
        ({"unknown_train.json": []}, "unknown_train.json"),
        ({"modality/ct_test.json": {"image": "a"}}, "ct_test.json"),
        ({"ct_test.json": [], "modality/ct/test.json": []}, "modality/ct/test.json"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, files: dict[str, Any], named: str
) -> None:
    for name, content in files.items():
        write(tmp_path, name, content)
    with pytest.raises(InputError, match=named.replace(".", r"\.")):
        read_released(tmp_path, TAXONOMY)


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08broken", b"[1, 2", b"\xff\xfe[]", b"[" * 10**5])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ct_test.json.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"ct_test\.json\.gz"):
        read_released(tmp_path, TAXONOMY)


def test_joined_questions_keep_their_texts_and_order(tmp_path: Path) -> None:
    spaced = item(
        2, problem="What  is seen in 2?  A) Cyst, B)Nodule", solution="<answer>B</answer>"
    )
    write(tmp_path, "modality/ct_test.json", [spaced, item(1)])
    write(tmp_path, "task/disease-diagnosis_train.json", [item(1)])
    draw = joined(tmp_path, record(1), record(2)).draw(AXES)
    train, test = draw["modality"]["ct"]
    assert list(train) == []
    assert [each["problem"] for each in test] == [spaced["problem"], item(1)["problem"]]
    assert [each["solution"] for each in test] == ["<answer>B</answer>", "<answer> B </answer>"]
    assert [each["question_id"] for each in test] == ["Set_2", "Set_1"]
    assert test[0]["options"] == ("Cyst", "Nodule")
    assert test[0]["image"] == "data/images/ct/Images/Set/2.png"
    assert [each["question_id"] for each in draw["task"]["disease-diagnosis"][0]] == ["Set_1"]
    assert draw["modality"]["mri"] == ((), ())


@pytest.mark.parametrize(
    "image",
    [
        "Images/Set/1.png",
        "data/images/ct/Images/Set/1.png",
        "/mnt/OmniMedVQA/Images/Set/1.png",
        "./Images/Set/1.png",
        "/mnt/Images/OmniMedVQA/Images/Set/1.png",
        "Images/Images/Set/1.png",
    ],
)
def test_what_stands_before_the_images_folder_is_not_compared(tmp_path: Path, image: str) -> None:
    write(tmp_path, "ct_test.json", [item(1, image=image)])
    assert not faults(joined(tmp_path, record(1)))


@pytest.mark.parametrize(
    ("released", "of_corpus", "fault"),
    [
        (item(1, image="Images/Set/9.png"), record(1), JoinFault.IMAGE_MISSING),
        (item(1, image="Images/Other/1.png"), record(1), JoinFault.IMAGE_MISSING),
        (item(1), record(1, question="What else?"), JoinFault.QUESTION_MISSING),
        (item(1), record(1, options=("Nodule", "Cyst")), JoinFault.OPTIONS_DIFFER),
        (item(1), record(1, options=("Cyst", "Nodule", "Bone")), JoinFault.OPTIONS_DIFFER),
        (item(1), record(1, gold="A"), JoinFault.ANSWER_DIFFERS),
        (item(1), record(1, modality="mri"), JoinFault.MODALITY_DIFFERS),
        (item(1, problem="no options"), record(1), JoinFault.UNREADABLE),
        (item(1, solution="B"), record(1), JoinFault.UNREADABLE),
        (item(1, solution="<answer> C </answer>"), record(1), JoinFault.UNREADABLE),
        (item(1, image=None), record(1), JoinFault.UNREADABLE),
        (item(1, problem="\ud800 A)x, B)y"), record(1), JoinFault.UNREADABLE),
        (item(1, image="Images/Set/\udcff.png"), record(1), JoinFault.UNREADABLE),
        (item(1, problem="<|im_end|> A)x, B)y"), record(1), JoinFault.UNREADABLE),
        ("a text", record(1), JoinFault.UNREADABLE),
    ],
)
def test_a_question_that_does_not_join_is_listed_with_its_fault(
    tmp_path: Path, released: Any, of_corpus: Record, fault: JoinFault
) -> None:
    write(tmp_path, "ct_test.json", [item(2), released])
    result = joined(tmp_path, of_corpus, record(2))
    (lost,) = result.files[0].not_joined
    assert (lost.file, lost.index, lost.fault) == ("ct_test.json", 1, fault)
    assert str(lost).encode(), "it can be written"
    assert lost.image.encode() is not None
    assert lost.problem.encode() is not None
    assert [each["question_id"] for each in result.files[0].items] == ["Set_2"]


def test_a_repeated_question_joins_as_often_as_the_corpus_has_it(tmp_path: Path) -> None:
    write(tmp_path, "ct_test.json", [item(1), item(1), item(1)])
    result = joined(tmp_path, record(1), record(1, question_id="Set_1b"))
    assert [each["question_id"] for each in result.files[0].items] == ["Set_1", "Set_1b"]
    assert faults(result) == [JoinFault.REPEATED]


def test_of_equal_records_the_one_of_the_same_type_joins(tmp_path: Path) -> None:
    write(tmp_path, "task/lesion-grading_test.json", [item(1)])
    other = record(1, question_id="Set_1b", question_type="lesion-grading")
    result = joined(tmp_path, record(1), other)
    assert [each["question_id"] for each in result.files[0].items] == ["Set_1b"]
    assert result.other_types == 0


def test_the_released_question_type_is_used_on_both_axes(tmp_path: Path) -> None:
    write(tmp_path, "ct_test.json", [item(1)])
    write(tmp_path, "task/lesion-grading_test.json", [item(1)])
    write(tmp_path, "task/modality-recognition_test.json", [item(1)])
    result = joined(tmp_path, record(1), record(2))
    assert {each["question_type"] for file in result.files for each in file.items} == {
        "lesion-grading"
    }
    assert faults(result) == [JoinFault.TWO_TYPES]
    assert (result.other_types, result.records_unused) == (1, 1)


def test_of_equal_records_each_file_takes_a_free_one(tmp_path: Path) -> None:
    write(tmp_path, "task/lesion-grading_test.json", [item(1)])
    write(tmp_path, "task/modality-recognition_test.json", [item(1)])
    write(tmp_path, "ct_train.json", [item(1)])
    write(tmp_path, "ct_test.json", [item(1)])
    result = joined(tmp_path, record(1), record(1, question_id="Set_1b"))
    assert not faults(result)
    assert in_train_and_test(result.draw(AXES)) == {}
    assert result.records_unused == 0


def test_questions_in_train_and_test_are_listed_by_split(tmp_path: Path) -> None:
    write(tmp_path, "ct_train.json", [item(1), item(2)])
    write(tmp_path, "ct_test.json", [item(2), item(3)])
    draw = joined(tmp_path, *map(record, range(4))).draw(AXES)
    assert in_train_and_test(draw) == {"modality": {"ct": ["Set_2"]}}


@pytest.mark.parametrize(("limit", "refused"), [(0.5, False), (0.49, True), (0.0, True)])
def test_the_share_that_may_be_lost_is_of_each_file(
    tmp_path: Path, limit: float, refused: bool
) -> None:
    write(tmp_path, "ct_train.json", [item(number) for number in range(10)])
    write(tmp_path, "ct_test.json", [item(1), item(99)])
    result = joined(tmp_path, *map(record, range(10)))
    if not refused:
        check_joined(result, limit, Path("list.json"))
        return
    with pytest.raises(RefusedDataError, match=r"ct_test\.json.*image-missing 1") as error:
        check_joined(result, limit, Path("list.json"))
    assert error.value.fault == CorpusFault.RELEASED_SPLITS


def test_a_file_is_recognised_in_any_order_and_packing_but_not_with_other_texts(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a", "ct_test.json", [item(1), item(2)])
    write(tmp_path / "b", "ct_test.json.gz", [item(2), item(1)])
    write(tmp_path / "c", "ct_test.json", [item(1), item(2, solution="<answer> A </answer>")])
    digests = [read_released(tmp_path / name, TAXONOMY).files[0].digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


VIEWS = ("Images/Set/1.png", "Images/Set/1b.png")
STORED = [f"data/images/ct/{path}.png" for path in ("Set/1", "Set/1b")]
FRAMES = [f"data/images/ct/@frames/vol/{number:04d}.png" for number in (3, 8)]


def of_two(**changes: Any) -> Record:
    """The first record, about two views and with a context."""
    fields = {
        "image": STORED[0],
        "shown": STORED,
        "age": "54",
        "indication": "cough",
    }
    values = {
        "image_paths": VIEWS,
        "fields": fields,
        "context": "Age: 54. Indication: cough.",
    }
    return record(1, **(values | changes))


@pytest.mark.parametrize(
    "says",
    [
        {},
        {"images": None, "context": None, "age": ""},
        {"images": list(VIEWS)},
        {"images": [f"/mnt/Med/{path}" for path in VIEWS]},
        {"images": STORED},
        {"image": None, "images": list(VIEWS)},
        {"context": "Age: 54. Indication: cough."},
        {"age": 54, "indication": "cough"},
        {"indication": "cough"},
    ],
)
def test_images_and_context_are_those_of_the_corpus(tmp_path: Path, says: dict[str, Any]) -> None:
    write(tmp_path, "ct_test.json", [item(1, **says)])
    result = joined(tmp_path, of_two())
    assert not faults(result)
    (found,) = result.files[0].items
    assert found["images"] == STORED
    assert found["context"] == "Age: 54. Indication: cough."


@pytest.mark.parametrize(
    ("says", "of_corpus", "fault"),
    [
        ({"images": [VIEWS[0]]}, of_two(), JoinFault.IMAGES_DIFFER),
        ({"images": [*VIEWS, "Images/Set/1c.png"]}, of_two(), JoinFault.IMAGES_DIFFER),
        ({"images": [VIEWS[0], "Images/Set/2.png"]}, of_two(), JoinFault.IMAGES_DIFFER),
        ({"images": list(VIEWS[::-1])}, of_two(), JoinFault.IMAGES_DIFFER),
        ({"image": None, "images": list(VIEWS[::-1])}, of_two(), JoinFault.IMAGES_DIFFER),
        ({"images": list(VIEWS)}, record(1), JoinFault.IMAGES_DIFFER),
        ({"image": VIEWS[1]}, of_two(), JoinFault.IMAGE_MISSING),
        ({"slices": [3, 8]}, record(1), JoinFault.IMAGES_DIFFER),
        ({"slices": [8, 3]}, record(1, slices=(3, 8)), JoinFault.IMAGES_DIFFER),
        ({"context": "fever"}, of_two(), JoinFault.CONTEXT_DIFFERS),
        ({"indication": "cough", "sex": "F"}, of_two(), JoinFault.CONTEXT_DIFFERS),
        ({"age": "55"}, of_two(), JoinFault.CONTEXT_DIFFERS),
        ({"context": "cough"}, record(1), JoinFault.CONTEXT_DIFFERS),
        ({"images": []}, of_two(), JoinFault.UNREADABLE),
        ({"images": "Images/Set/1.png"}, of_two(), JoinFault.UNREADABLE),
        ({"images": [VIEWS[0], 7]}, of_two(), JoinFault.UNREADABLE),
        ({"images": [VIEWS[0], "Images/\udcff.png"]}, of_two(), JoinFault.UNREADABLE),
        ({"slices": [0]}, record(1), JoinFault.UNREADABLE),
        ({"age": "old"}, of_two(), JoinFault.UNREADABLE),
        ({"indication": "seen by Dr. Miller"}, of_two(), JoinFault.UNREADABLE),
    ],
)
def test_other_images_and_another_context_are_faults(
    tmp_path: Path, says: dict[str, Any], of_corpus: Record, fault: JoinFault
) -> None:
    write(tmp_path, "ct_test.json", [item(1, **says)])
    result = joined(tmp_path, of_corpus)
    assert faults(result) == [fault]
    (lost,) = result.files[0].not_joined
    for private in ("fever", "cough", "Miller"):
        assert private not in str(lost)


def test_slices_may_be_named_by_number_or_as_the_stored_frames(tmp_path: Path) -> None:
    fields = {"image": "data/images/ct/vol.png", "shown": FRAMES}
    volume = record(1, image_paths=("Images/vol",), slices=(3, 8), fields=fields)
    says: list[dict[str, Any]] = [{}, {"slices": [3, 8]}, {"images": FRAMES}]
    for number, each in enumerate(says):
        write(tmp_path / str(number), "ct_test.json", [item(1, image="Images/vol", **each)])
        assert not faults(joined(tmp_path / str(number), volume))


def test_of_two_records_the_one_with_these_images_and_this_context_joins(tmp_path: Path) -> None:
    fields = {"image": STORED[0], "shown": STORED, "sex": "male"}
    other = of_two(question_id="Set_1b", fields=fields, context="Sex: male.")
    write(tmp_path, "ct_test.json", [item(1, sex="M"), item(1, age="54")])
    found = joined(tmp_path, of_two(), other)
    assert [each["question_id"] for each in found.files[0].items] == ["Set_1b", "Set_1"]


def test_a_file_with_images_or_context_is_another_one(tmp_path: Path) -> None:
    plain = [item(1), item(2)]
    files = [plain, [item(1, images=list(VIEWS)), item(2)], [item(1), item(2, age="54")]]
    digests = set()
    for number, items in enumerate(files):
        write(tmp_path / str(number), "ct_test.json", items)
        digests.add(read_released(tmp_path / str(number), TAXONOMY).files[0].digest)
    assert len(digests) == 3
    # what is not read makes no difference: our own split files have it
    write(tmp_path / "own", "ct_test.json", [item(1, dataset="Set"), item(2, options=["a", "b"])])
    assert read_released(tmp_path / "own", TAXONOMY).files[0].digest in digests
