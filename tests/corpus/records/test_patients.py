"""Patients are known from tables and DICOM headers; their ids are compared and kept nowhere."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import download, resize, splits
from stages.core import layout
from stages.core.outputs import read_json, read_json_lines
from stages.corpus.records.patients import hashed_id, link_patients
from stages.corpus.records.records import Record, read_record_files
from tests.conftest import MakeCorpus, MakeRecord, Raw, RunStage
from tests.dicoms import file
from tests.omnimedvqa import MODALITIES, TAXONOMY

SECRET = "Doe-1970-4711"


def noise(seed: str) -> bytes:
    """An image unlike that of any other seed."""
    pixels = np.random.default_rng(list(seed.encode())).integers(0, 255, (32, 32), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def records(make_record: MakeRecord, *patients: str | None, dataset: str = "Ward") -> list[Record]:
    rows = [
        make_record(
            question_id=f"{dataset}{number}",
            image_path=f"Images/{dataset}/{number}.png",
            dataset=dataset,
            patient=patient,
        )
        for number, patient in enumerate(patients)
    ]
    return read_record_files([("a.json", json.dumps(rows).encode())], TAXONOMY).records


def linked(found: list[Record], ids: dict[str, str] | None = None) -> dict[str, str]:
    files = {record.image_path: [record.image_path] for record in found}
    hashed = {name: each for name, text in (ids or {}).items() if (each := hashed_id(text))}
    return link_patients(found, files, hashed)


def test_images_of_one_id_are_linked_to_the_first_of_them(make_record: MakeRecord) -> None:
    assert linked(records(make_record, "7", "8", " 7 ", None)) == {
        "Images/Ward/0.png": "Images/Ward/0.png",
        "Images/Ward/1.png": "Images/Ward/1.png",
        "Images/Ward/2.png": "Images/Ward/0.png",
    }


def test_an_id_counts_within_its_data_set(make_record: MakeRecord) -> None:
    both = [*records(make_record, "7"), *records(make_record, "7", dataset="Clinic")]
    assert len(set(linked(both).values())) == 2


def test_table_and_header_link_together(make_record: MakeRecord) -> None:
    found = records(make_record, "7", "7", None, None)
    ids = {"Images/Ward/1.png": "H1", "Images/Ward/2.png": "h1", "Images/Ward/3.png": "H2"}
    first = linked(found, ids)
    assert first["Images/Ward/2.png"] == "Images/Ward/0.png"
    assert first["Images/Ward/3.png"] == "Images/Ward/3.png"


@pytest.mark.parametrize(
    "text", ["", " ", "0", "Anonymous", "N/A", "UNKNOWN", "de-identified", None]
)
def test_a_placeholder_is_no_patient(text: str | None, make_record: MakeRecord) -> None:
    assert hashed_id(text) is None
    assert linked(records(make_record, text or None, "7")).keys() == {"Images/Ward/1.png"}


@pytest.mark.parametrize("name", ["patient", "Patient ID", "subject_id"])
def test_a_column_names_the_patient(name: str) -> None:
    header = f"image,question,options,answer,modality,type,{name}"
    text = f"{header}\na.png,What?,x|y,A,ct,lesion-grading,7\n"
    (record,) = read_record_files([("ward.csv", text.encode())], TAXONOMY).records
    assert record.fields["patient"] == "7"
    assert not record.question_id.endswith("7")


def corpus_of_patients(make_record: MakeRecord) -> tuple[list[Raw], dict[str, bytes | None]]:
    """Ten MRI files of five patients by header, and a question of a table's patient per slug."""
    rows: list[Raw] = []
    files: dict[str, bytes | None] = {}
    for number in range(10):
        path = f"Images/mri/{number}.dcm"
        rows.append(
            make_record(
                question_id=f"mri{number}", image_path=path, modality_type=MODALITIES["mri"]
            )
        )
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16), dtype=np.uint8)
        files[path] = file(pixels, PatientID=f"{SECRET}-{number % 5}", BurnedInAnnotation="NO")
    return rows, files


def test_images_of_a_patient_stay_together_and_no_output_has_an_id(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    full_records: list[Raw],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows, files = corpus_of_patients(make_record)
    known = [each | {"patient": f"{SECRET} {each['image_path']}"} for each in full_records]
    others = {each["image_path"]: noise(each["image_path"]) for each in known}
    make_corpus([*known, *rows], others | files)
    run(download)
    for slug in MODALITIES:
        run(resize, slug)
    run(splits)
    output = capsys.readouterr()
    hashed = hashed_id(f"{SECRET}-1") or b""
    assert SECRET not in output.out + output.err
    assert "splits: the patient is known for" in output.out
    for path in sorted([*Path("data").rglob("*"), *Path(".scratch").rglob("*")]):
        if path.is_file() and "raw" not in path.parts:
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert hashed not in content, path
    side = {}
    for part in ("train", "test"):
        for item in read_json(layout.split("modality", "mri", part, "grouped"), ""):
            if item["question_id"].startswith("mri") and item["question_id"][3:].isdigit():
                side[int(item["question_id"][3:])] = part
    assert len(side) == 10
    assert all(side[number] == side[number + 5] for number in range(5))
    first = {
        row["question_id"]: row.get("patient") for row in read_json_lines(layout.records("mri"), "")
    }
    assert first["mri7"] == "Images/mri/2.dcm"
    patients = read_json(layout.LEAKS, "")["patients"]
    assert all(each["known"] == each["images"] for each in patients.values())


def test_a_second_run_knows_the_patients_too(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    rows, files = corpus_of_patients(make_record)
    make_corpus(rows, files)
    run(download)
    once = layout.corpus_records("mri").read_bytes()
    run(download)
    assert layout.corpus_records("mri").read_bytes() == once
    assert b'"patient"' in once


def test_unknown_patients_are_counted_and_warned_of(
    run: RunStage,
    make_corpus: MakeCorpus,
    full_records: list[Raw],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_corpus(
        full_records, {each["image_path"]: noise(each["image_path"]) for each in full_records}
    )
    run(download)
    for slug in MODALITIES:
        run(resize, slug)
    run(splits)
    assert "warning: no patient is known for any data set" in capsys.readouterr().out
    patients = read_json(layout.LEAKS, "")["patients"]
    assert all(each["known"] == 0 < each["images"] for each in patients.values())
