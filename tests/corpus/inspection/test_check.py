"""The corpus check: counts, problems with location and remedy, exit code, nothing written."""

from __future__ import annotations

import functools
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.corpus.inspection import command as check
from stages.corpus.inspection import images as inspection_images
from stages.corpus.quarantine.advice import advise
from stages.corpus.quarantine.reasons import Reason
from tests.commands import med_r1
from tests.conftest import MakeRecord, Raw, image, speckled
from tests.dicoms import file as dicom_file
from tests.dicoms import ramp
from tests.omnimedvqa import MODALITIES, QUESTION_TYPES, TAXONOMY

Check = Callable[..., int]
HEADER = "image,question,options,answer,modality,type\n"
ROWS = """\
a.png,What?,Cyst|Nodule,A,ct,disease-diagnosis
sub/b.png,What?,Cyst|Nodule,B,x-ray,disease-diagnosis
"""


@pytest.fixture
def run_check() -> Check:
    """`run_check(path, *arguments)`: the exit code of `med-r1 check`."""
    return functools.partial(med_r1, "check")


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """A valid folder with a spreadsheet and its images."""
    return write(
        tmp_path / "ward",
        {"ward.csv": HEADER + ROWS, "a.png": speckled(1), "sub/b.png": speckled(2)},
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inspect(run_check: Check, path: Path, *arguments: str) -> dict[str, Any]:
    """The --json report of `med-r1 check`, with its findings by kind."""
    target = path.parent / "out.json"
    code = run_check(path, "--json", target, *arguments)
    report: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    assert report["read"] == report["kept"] + report["refused"]
    assert code == check.EXIT_CODES[report["status"]]
    report["by kind"] = {finding["kind"]: finding for finding in report["findings"]}
    return report


def test_a_good_folder_is_counted_and_ready(
    run_check: Check, ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(ward)
    assert run_check(ward) == 0
    assert tree(ward) == before
    out = capsys.readouterr().out
    assert "CSV layout, 1 question file(s): ward.csv" in out
    assert "read 2 records: 2 usable, 0 refused: ready" in out
    report = inspect(run_check, ward)
    assert (report["layout"], report["question_files"], report["read"]) == ("CSV", ["ward.csv"], 2)
    assert report["questions"]["ct"] == report["questions"]["x-ray"] == {"disease-diagnosis": 1}
    assert report["images"] == {slug: int(slug in ("ct", "x-ray")) for slug in MODALITIES}


def test_splits_without_data_are_reported_and_count_if_strict(run_check: Check, ward: Path) -> None:
    report = inspect(run_check, ward)
    assert (
        report["by kind"]["splits without data"]["count"]
        == len(MODALITIES) + len(QUESTION_TYPES) - 1
    )
    assert (run_check(ward), run_check(ward, "--strict")) == (0, 1)


def test_a_complete_corpus_is_ready_from_folder_and_archive(
    run_check: Check, tmp_path: Path, full_records: list[Raw]
) -> None:
    images = {record["image_path"] for record in full_records}
    files: dict[str, str | bytes] = {
        name: speckled(number) for number, name in enumerate(sorted(images))
    }
    folder = write(
        tmp_path / "full", files | {"QA_information/Open-access/Set.json": json.dumps(full_records)}
    )
    assert run_check(folder) == 0
    with zipfile.ZipFile(tmp_path / "full.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder).as_posix())
    assert run_check(tmp_path / "full.zip") == 0
    kinds = [inspect(run_check, each) for each in (folder, tmp_path / "full.zip")]
    assert kinds[0] | {"corpus": ""} == kinds[1] | {"corpus": ""}
    assert {kind.partition(" test ")[0] for kind in kinds[0]["by kind"]} <= {"data"}


def test_what_a_data_test_would_stop_is_found(run_check: Check, tmp_path: Path) -> None:
    rows = [f"{number}.png,What?,Cyst|Nodule,A,mri,disease-diagnosis" for number in range(20)]
    files: dict[str, str | bytes] = {
        f"{number}.png": image(size=(400, 400 + number)) if number < 4 else speckled(number)
        for number in range(20)
    }
    folder = write(tmp_path / "ward", files | {"ward.csv": HEADER + "\n".join(rows) + "\n"})
    report = inspect(run_check, folder)
    blank = report["by kind"]["data test blank_images"]
    assert (report["status"], blank["level"]) == ("problems", "stops")
    assert "questions_of_modality" not in str(report["by kind"].keys())


def test_a_data_test_of_several_places_is_one_finding_with_all_their_numbers(
    run_check: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{number}.png,What?,Cyst|Nodule,A,mri,disease-diagnosis" for number in range(9)]
    files: dict[str, str | bytes] = {f"{number}.png": speckled(number) for number in range(9)}
    folder = write(tmp_path / "ward", files | {"ward.csv": HEADER + "\n".join(rows) + "\n"})
    finding = inspect(run_check, folder)["by kind"]["data test letter_bias"]
    assert finding["count"] == len(finding["examples"]) == 1
    (example,) = finding["examples"]
    assert example["where"] == "A"
    assert example["what"].split("; ") == [
        "A: right in 9, by chance 4",
        "B: right in 0, by chance 4",
    ]
    printed = capsys.readouterr().out.partition("data test letter_bias")[2].partition("\n\n")[0]
    assert "more" not in printed


def test_conflicting_labels_are_listed_even_within_their_limit(
    run_check: Check, tmp_path: Path
) -> None:
    rows = [f"{number}.png,What?,Cyst|Nodule,A,mri,disease-diagnosis" for number in range(99)]
    rows.append("98.png,What?,Cyst|Nodule,B,mri,disease-diagnosis")
    files: dict[str, str | bytes] = {
        f"{number}.png": speckled(number, size=(384, 384)) for number in range(99)
    }
    folder = write(tmp_path / "ward", files | {"ward.csv": HEADER + "\n".join(rows) + "\n"})
    report = inspect(run_check, folder)
    conflict = report["by kind"]["data test contradictions"]
    assert (report["status"], conflict["level"]) == ("ready", "note")
    assert "'Cyst'" in conflict["examples"][0]["what"]


def test_each_problem_is_reported_with_location_and_remedy(
    run_check: Check, ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        ward,
        {
            "broken.png": image()[:40],
            "twin.png": speckled(1),
            "unused.jpg": b"",
            ".DS_Store": b"",
            "B.PNG": image(size=(3, 3)),
        },
    )
    bad = [
        "broken.png,What?,x|y,x,ct,lesion-grading",
        "twin.png,What?,x|y,x,ct,lesion-grading",
        "nowhere.png,What?,x|y,x,ct,lesion-grading",
        "TWIN.png,What?,x|y,x,ct,lesion-grading",
        "a.png,What?,x|y,x,CT scan,lesion-grading",
        "a.png,Where?,x|y,z,ct,lesion-grading",
    ]
    header, *rows = [*(HEADER + ROWS).splitlines(), *bad]
    lines = [f"{header},ward", *(f"{row},P" for row in rows)]
    write(ward, {"ward.csv": "\n".join(lines)})
    report = inspect(run_check, ward, "--examples", "1")
    kinds = report["by kind"]
    assert (report["status"], report["read"], report["kept"]) == ("problems", 8, 3)

    def example(kind: str) -> str:
        row = kinds[kind]["examples"][0]
        return f"{row['where'].partition(' (')[0]}: {row['what']}: {row['why']}"

    assert example("images that cannot be decoded").startswith(
        "ward.csv, line 4: Images/broken.png: the image cannot be used: "
    )
    assert (
        example("images that are missing")
        == "ward.csv, line 6: Images/nowhere.png: the image is not in the corpus"
    )
    assert kinds["images that are missing"]["count"] == 2
    assert example("unknown modalities").startswith(
        "ward.csv, line 8: CT scan: unknown modality_type; did you mean ct?"
    )
    assert (
        example("answers that are none of the options")
        == "ward.csv, line 9: z: gt_answer is none of the options ['x', 'y']"
    )
    assert (
        example("duplicate images") == "Images/twin.png: Images/a.png: the same bytes as this one"
    )
    assert kinds["images that no question names"]["count"] == 2
    assert example("ignored columns") == "ward.csv: ward: not a known column"
    capsys.readouterr()
    assert run_check(ward) == 1
    out = capsys.readouterr().out
    for kind, finding in kinds.items():
        assert f"{kind}: {finding['count']} ({finding['level']})" in out
        assert " ".join(finding["remedy"].split()[:4]) in out
    assert "ward.csv, line 7" in out
    assert "the image is not in the corpus; there is 'Images/twin.png'" in out
    assert "read 8 records: 3 usable, 5 refused: problems" in out


def test_without_images_no_image_is_opened(
    run_check: Check, ward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ward, {"a.png": b"no image"})
    assert run_check(ward) == 1
    monkeypatch.setattr(inspection_images, "decode_files", None)
    assert run_check(ward, "--no-images") == 0
    assert not inspect(run_check, ward, "--no-images")["images_decoded"]


def test_examples_are_limited_and_counts_are_not(
    run_check: Check, ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{number}.png,What?,x|y,x,ct,lesion-grading\n" for number in range(9))
    write(ward, {"ward.csv": HEADER + ROWS + rows})
    (finding,) = [
        each
        for each in inspect(run_check, ward, "--examples", "2")["findings"]
        if each["level"] == "refused"
    ]
    assert (finding["count"], len(finding["examples"])) == (9, 2)
    assert "  - and 7 more" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", ["", HEADER, "image;words\n", HEADER + "a.png,What?,x|y,z,ct,lesion-grading"]
)
def test_a_corpus_without_a_usable_record_is_unusable(
    run_check: Check, ward: Path, content: str
) -> None:
    write(ward, {"ward.csv": content})
    assert run_check(ward) == 2


def test_a_path_without_a_corpus_is_unusable(
    run_check: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, {"x.zip": b"PK"})
    for path, why in {
        "none": "neither a file nor a folder",
        "empty": "expected one folder with QA_information/Open-access/ and Images/",
        "x.zip": "is not a complete zip",
    }.items():
        assert run_check(tmp_path / path) == 2
        assert why in capsys.readouterr().err


def test_control_characters_of_a_corpus_are_escaped(
    run_check: Check, ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = "a.png,\x1b[2JGone\u202e,[red]x|y,[red]x,ct,lesion-grading\n"
    write(ward, {"ward.csv": HEADER + ROWS + row, "\x1b[31m.png": b""})
    assert run_check(ward) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\x1b[2JGone" in out
    assert "\\x1b[31m.png" in out


def test_a_misspelt_modality_in_json_gets_a_suggestion(
    run_check: Check, tmp_path: Path, make_record: MakeRecord
) -> None:
    records = [
        make_record(),
        make_record(question_id="b", modality_type="CT"),
        make_record(question_id="c", question_type="diagnosis"),
    ]
    folder = write(
        tmp_path / "c",
        {
            "QA_information/Open-access/S.json": json.dumps(records),
            "Images/Chest CT Scan/a.png": image(),
        },
    )
    kinds = inspect(run_check, folder)["by kind"]
    assert kinds["unknown modalities"]["examples"][0]["why"].endswith(
        "did you mean 'CT(Computed Tomography)' (slug ct)?"
    )
    assert kinds["unknown question types"]["examples"][0]["why"].endswith(
        "did you mean 'Disease Diagnosis' (slug disease-diagnosis)?"
    )


@pytest.mark.parametrize(
    ("value", "slug"),
    [
        ("CT", "ct"),
        ("CT scan", "ct"),
        ("MR", "mri"),
        ("Magnetic Resonance", "mri"),
        ("US", "ultrasound"),
        ("X ray", "x-ray"),
        ("OCT (Optical Coherence Tomography)", "oct"),
        ("fundus photo", "fundus"),
        ("dermoscpy", "dermoscopy"),
        ("Crystal ball", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_suggested_if_one_is_similar(value: str, slug: str | None) -> None:
    assert TAXONOMY.modalities.nearest(value) == slug


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_advice(reason: Reason) -> None:
    assert advise(reason).kind
    assert advise(reason).remedy.endswith(".")


def test_refusals_with_the_same_remedy_are_counted_together() -> None:
    kinds = Counter(advise(reason).kind for reason in Reason)
    assert {kind: count for kind, count in kinds.items() if count > 1} == {
        "fields that are missing, empty or not text": 3,
        "texts with invisible characters": 2,
    }


@pytest.mark.parametrize(
    ("elements", "reason", "setting"),
    [
        ({"Modality": "US"}, Reason.IMAGE_UNFLAGGED, "dicom.accept_unflagged"),
        (
            {"Modality": "US", "BurnedInAnnotation": "YES"},
            Reason.IMAGE_ANNOTATION,
            "dicom.accept_burned_in",
        ),
    ],
)
def test_advice_on_a_dicom_image_that_may_name_a_patient_keeps_its_header(
    run_check: Check, ward: Path, elements: dict[str, str], reason: Reason, setting: str
) -> None:
    write(
        ward,
        {
            "us.dcm": dicom_file(ramp(), **elements),
            "ward.csv": HEADER + ROWS + "us.dcm,What?,x|y,x,ultrasound,lesion-grading\n",
        },
    )
    report = inspect(run_check, ward)
    assert (report["status"], report["refused"]) == ("problems", 1)
    (finding,) = [each for each in report["findings"] if each["level"] == "refused"]
    assert (finding["kind"], finding["remedy"]) == advise(reason)
    assert setting in finding["remedy"]
    assert "Do not export them as PNG" in finding["remedy"]
    assert "Images/us.dcm" in finding["examples"][0]["what"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", Reason.IMAGE_EMPTY),
        ("text.png", b"no image", Reason.IMAGE_FORMAT),
        ("cut.png", image()[:40], Reason.IMAGE_DAMAGED),
    ],
)
def test_each_kind_of_unusable_image_has_its_own_advice(
    run_check: Check, ward: Path, name: str, content: bytes, reason: Reason
) -> None:
    write(
        ward, {name: content, "ward.csv": HEADER + ROWS + f"{name},What?,x|y,x,ct,lesion-grading\n"}
    )
    refused = [
        each["kind"] for each in inspect(run_check, ward)["findings"] if each["level"] == "refused"
    ]
    assert refused == [advise(reason).kind]
