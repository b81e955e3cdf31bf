"""DICOM through the stages: series, frames, modality, and no output that names a patient."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom.dataset import Dataset

from stages import download, resize, splits
from stages.core import layout
from stages.core.outputs import read_json_lines
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.corpus.dataset.image_store import list_shard, open_image
from stages.corpus.dicom import header as dicom_header
from stages.corpus.dicom import syntaxes
from stages.corpus.dicom.headers import elements as dicom_elements
from stages.corpus.dicom.reader import read_dicom
from stages.corpus.images.decoding import ImageError
from stages.corpus.quarantine.ledger import Row, read_quarantine
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import ROOT, MakeCorpus, MakeRecord, Raw, RunStage, change_params
from tests.dicoms import (
    SECONDARY_CAPTURE,
    compressed,
    dataset,
    deflated,
    file,
    ramp,
    settings,
    written,
)
from tests.omnimedvqa import MODALITIES

CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def resized(slug: str = "ct") -> list[Raw]:
    return list(read_json_lines(layout.records(slug), ""))


def refusals(slug: str) -> list[Row]:
    return list(read_quarantine(layout.QUARANTINE / "resize" / f"{slug}.parquet").rows)


def mri(name: str, make_record: MakeRecord) -> Raw:
    """A record of an MRI whose question_id and image have a name in common."""
    return make_record(
        question_id=name, image_path=f"Images/{name}.dcm", modality_type=MODALITIES["mri"]
    )


def a_slice(level: int, **elements: Any) -> bytes:
    return file(np.full((6, 8), level, dtype=np.uint8), InstanceNumber=level, **elements)


def test_a_folder_is_one_image_with_frames(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    record = make_record(image_path="Images/ct 1", modality_type=MODALITIES["mri"])
    slices = {f"Images/ct 1/{9 - level}.dcm": a_slice(level) for level in (1, 2, 3)}
    make_corpus([record], {"Images/ct 1": None} | slices)
    run(download)
    change_params("volume", selection="all")
    run(resize, "mri")
    (row,) = resized("mri")
    assert row["image"] == "data/images/mri/ct 1.png"
    assert row["frames"] == 3
    assert row["shown"] == [f"data/images/mri/@frames/ct 1/000{number}.png" for number in (1, 2, 3)]
    assert [np.asarray(open_image(path)).max() for path in row["shown"]] == [1, 2, 3]
    assert np.asarray(open_image(row["image"])).max() == 2
    assert (row["source_size"], row["source_mode"]) == ([8, 6], "MONOCHROME2")
    assert row["dicom"]["NumberOfFrames"] == 3


def test_only_a_file_of_several_frames_has_frames_in_its_record(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_corpus(
        [mri(name, make_record) for name in ("a", "b")],
        {
            "Images/a.dcm": file(np.stack([ramp(), ramp() // 2])),
            "Images/b.dcm": file(ramp(), BurnedInAnnotation="NO"),
        },
    )
    run(download)
    run(resize, "mri")
    several, one = resized("mri")
    assert several["frames"] == 2
    assert "shown" not in several, "by default a question shows the middle frame"
    assert several["image"] == "data/images/mri/a.dcm.png"
    assert "frames" not in one
    unflagged = [line for line in capsys.readouterr().out.splitlines() if "burned" in line]
    assert len(unflagged) == 1
    assert " 1 " in unflagged[0]


def test_frames_of_many_files_are_complete_whether_decoded_or_cached(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Several files are decoded at once, and each has a twin of the same bytes."""
    records: list[Raw] = []
    files: dict[str, bytes | None] = {}
    for number in range(40):
        frames = np.zeros((2, 6, 8), np.uint8)
        frames[0] = 255 - number
        for twin in "ab":
            record = mri(f"{number}-{twin}", make_record)
            records.append(record)
            files[record["image_path"]] = file(frames)
    make_corpus(records, files)
    run(download)
    change_params("volume", frames=2)
    for decoded_count in (80, 0):
        run(resize, "mri")
        printed = capsys.readouterr()
        assert f"({decoded_count} " in printed.out
        assert "cannot be used" not in printed.err
        rows = resized("mri")
        assert len(rows) == 80
        for row in rows:
            brightest = 255 - int(row["question_id"][:-2])
            assert [np.asarray(open_image(path)).max() for path in row["shown"]] == [brightest, 0]


def test_a_damaged_frame_refuses_all_frames_of_its_file(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    record = mri("a", make_record)
    content = bytearray(compressed(np.stack([ramp()] * 3), syntaxes.JPEG_LS))
    content[content.rindex(b"\xff\xf7") + 5] ^= 0x40
    make_corpus(
        [record, record | {"question_id": "x", "image_path": "Images/ok.png"}],
        {"Images/a.dcm": bytes(content)},
    )
    run(download)
    run(resize, "mri")
    (row,) = refusals("mri")
    assert row.reason == Reason.IMAGE_DAMAGED
    assert "another size than the DICOM header" in row.why
    assert not [path for path in layout.images("mri").iterdir() if "a.dcm" in str(list_shard(path))]


def test_a_record_without_modality_has_that_of_the_header(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    images = {"mr.dcm": "MR", "mg.dcm": "MG", "pt.dcm": "PT"}
    records = [
        make_record(question_id=name, image_path=f"Images/{name}", modality_type=None)
        for name in images
    ]
    series = make_record(question_id="series", image_path="Images/s", modality_type=None)
    files: dict[str, bytes | None] = {
        f"Images/{name}": file(ramp(), Modality=modality) for name, modality in images.items()
    }
    make_corpus(
        [*records, series], files | {"Images/s": None, "Images/s/1": a_slice(1, Modality="CT")}
    )
    run(download)
    (mri_record,) = read_json_lines(layout.corpus_records("mri"), "")
    assert mri_record["question_id"] == "mr.dcm"
    (x_ray_record,) = read_json_lines(layout.corpus_records("x-ray"), "")
    assert x_ray_record["modality_type"] == MODALITIES["x-ray"]
    (ct_image,) = read_json_lines(layout.corpus_images("ct"), "")
    assert ct_image["file"] == "Images/s/1"
    (row,) = read_quarantine(layout.QUARANTINE / "download.parquet").rows
    assert (row.where.question_id, row.reason) == ("pt.dcm", Reason.UNKNOWN_MODALITY)
    assert row.what == "PT"
    assert "modality_type is missing" in row.why


def test_a_header_that_contradicts_its_record_is_refused_with_both_modalities(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus(
        [make_record(image_path="Images/a.dcm")], {"Images/a.dcm": file(ramp(), Modality="MR")}
    )
    run(download)
    run(resize, "ct")
    (row,) = refusals("ct")
    assert row.reason == Reason.MODALITY_MISMATCH
    assert MODALITIES["ct"] in row.why
    assert "'MR'" in row.why


def test_a_folder_of_dicom_and_other_images_is_no_volume(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    good = make_record(question_id="good")
    make_corpus(
        [good, make_record(image_path="Images/Chest CT Scan")],
        {"Images/Chest CT Scan": None, "Images/Chest CT Scan/b.dcm": file(ramp(), Modality="CT")},
    )
    run(download)
    run(resize, "ct")
    assert [row.reason for row in refusals("ct")] == [Reason.IMAGE_SERIES]


def test_two_runs_give_the_same_bytes(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    record = make_record(image_path="Images/s", modality_type=MODALITIES["mri"])
    slices = {f"Images/s/{level}": a_slice(level) for level in range(1, 6)}
    make_corpus([record], {"Images/s": None} | slices)
    run(download)
    outputs: list[dict[str, bytes]] = []
    for cached in (False, True, False):
        if not cached:
            shutil.rmtree(resize.CACHE, ignore_errors=True)
        run(resize, "mri")
        paths = [path for path in layout.DATA.rglob("*") if "raw" not in path.parts]
        outputs.append({str(path): path.read_bytes() for path in paths if path.is_file()})
    assert outputs[0] == outputs[1] == outputs[2]


# --- privacy

SECRETS = {
    "PatientName": "Zworykin^Quenby^Thessaly",
    "PatientID": "PID-7741-XQ",
    "PatientBirthDate": "19530517",
    "InstitutionName": "Saint Wulfric Infirmary",
    "AccessionNumber": "ACC90210Q",
    "ReferringPhysicianName": "Oblomov^Xerxes",
    "StudyDescription": "Follow up of Zworykin",
    "PatientComments": "lives at Vellichor Lane",
    "StudyDate": "20190823",
}
PARTS = (
    "Zworykin",
    "Quenby",
    "Thessaly",
    "PID-7741-XQ",
    "19530517",
    "1953-05-17",
    "Wulfric",
    "ACC90210Q",
    "Oblomov",
    "Xerxes",
    "Vellichor",
    "20190823",
    "2.25.77119911",
)
"""Must be in no output, in any case or encoding. The last is the prefix of all UIDs."""
ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


def secret(pixels: Any = None, **elements: Any) -> Dataset:
    """A data set with patient data in standard and private elements, overlays and UIDs."""
    name = SECRETS["PatientName"]
    uids = {
        "SeriesInstanceUID": "2.25.771199110",
        "StudyInstanceUID": "2.25.771199111",
        "SOPInstanceUID": "2.25.771199112",
    }
    data_set = dataset(ramp() if pixels is None else pixels, **SECRETS | uids | CT | elements)
    data_set.add_new(0x00091001, "LO", name)
    data_set.private_block(0x0011, "Zworykin Systems", create=True).add_new(0x01, "PN", name)
    data_set.add_new(0x60000022, "LO", name)
    data_set.add_new(0x60001500, "LO", name)
    data_set.add_new(0x60003000, "OW", name.encode() + b"\0" * (len(name) % 2))
    item = Dataset()
    item.PatientName = name
    item.PatientID = SECRETS["PatientID"]
    data_set.OtherPatientIDsSequence = [item]
    data_set.OriginalAttributesSequence = [item]
    return data_set


def replaced(
    content: bytes, tag: tuple[int, int], vr: bytes, value: bytes, length: int | None = None
) -> bytes:
    """The same explicit little endian file with one short element replaced."""
    head = struct.pack("<HH", *tag)
    start = content.index(head, 132)
    (old_length,) = struct.unpack_from("<H", content, start + 6)
    end = start + 8 + old_length
    size = struct.pack("<H", len(value) if length is None else length)
    return content[:start] + head + vr + size + value + content[end:]


def secret_files() -> dict[str, bytes]:
    """Good files and broken ones, each with the secrets, some in place of other values."""
    name = SECRETS["PatientName"].encode()
    good = written(secret())
    sequence = struct.pack("<HH2sHI", 0x0028, 0x3010, b"SQ", 0, 0xFFFFFFFF)
    latin = written(secret(SpecificCharacterSet="ISO_IR 100"))
    jpeg = compressed(ramp(), syntaxes.JPEG_BASELINE, **SECRETS | CT)
    files = {
        "good": good,
        "deflated": deflated(good),
        "implicit": written(secret(), dicom_elements.IMPLICIT),
        "two frames": written(secret(np.stack([ramp(), ramp()]))),
        "burned in": written(secret(BurnedInAnnotation="YES")),
        "capture": written(secret(SOPClassUID=SECONDARY_CAPTURE)),
        "character set": replaced(latin, (8, 5), b"CS", name),
        "cut in half": good[: len(good) // 2],
        "cut in the name": good[: good.index(name) + 9],
        "no pixels": written(secret(PixelData=None)),
        "not registered": good.replace(b"1.2.840.10008.1.2.1\0", b"2.25.77119911.9.1.1\0"),
        "lossless jpeg": compressed(ramp(), syntaxes.JPEG_LOSSLESS_SV1, **SECRETS)[:-40] + name,
        "comment in a jpeg": _commented(jpeg, name),
        "sequence without end": good[:-1300] + sequence + name * 40,
    }
    for keyword, tag, vr in (
        ("Rows", (0x28, 0x10), b"US"),
        ("Rows", (0x28, 0x10), b"PN"),
        ("Modality", (8, 0x60), b"CS"),
        ("Modality", (8, 0x60), b"PN"),
        ("SamplesPerPixel", (0x28, 2), b"US"),
        ("PhotometricInterpretation", (0x28, 4), b"CS"),
        ("BitsStored", (0x28, 0x101), b"US"),
        ("RescaleSlope", (0x28, 0x1053), b"DS"),
        ("RescaleIntercept", (0x28, 0x1052), b"DS"),
        ("SeriesInstanceUID", (0x20, 0xE), b"UI"),
    ):
        files[f"name in {keyword} {vr.decode()}"] = replaced(good, tag, vr, name)
    for keyword, number in (
        ("NumberOfFrames", 1),
        ("WindowCenter", 1),
        ("InstanceNumber", 1),
        ("ImagePositionPatient", [1, 2, 3]),
        ("PixelSpacing", [1, 1]),
        ("SliceThickness", 1),
    ):
        data_set = secret(**{keyword: number})
        element = data_set[keyword]
        tag = (element.tag.group, element.tag.element)
        vr = element.VR.encode()
        content = written(data_set)
        files[f"name in {keyword}"] = replaced(content, tag, b"DS", name)
        files[f"birth date in {keyword}"] = replaced(content, tag, vr, b"19530517")
        files[f"wrong length of {keyword}"] = replaced(content, tag, vr, name, length=60_000)
    for keyword, tag in (
        ("BodyPartExamined", (0x18, 0x15)),
        ("BurnedInAnnotation", (0x28, 0x301)),
        ("VOILUTFunction", (0x28, 0x1056)),
    ):
        files[f"name in {keyword}"] = replaced(written(secret(**{keyword: "NO"})), tag, b"CS", name)
    return files


def _commented(content: bytes, name: bytes) -> bytes:
    """A file whose JPEG frame has a comment with the name, and damage behind it."""
    start = content.index(b"\xff\xd8") + 2
    comment = b"\xff\xfe" + struct.pack(">H", len(name) + 2) + name
    length_at = start - 6
    (length,) = struct.unpack_from("<I", content, length_at)
    commented = (
        content[:length_at]
        + struct.pack("<I", length + len(comment))
        + content[length_at + 4 : start]
        + comment
        + content[start:]
    )
    return commented[:-60] + b"\xff\xd9" * 30


def leaks(content: bytes) -> set[str]:
    """Parts of the secrets that some bytes contain, in any of the encodings."""
    content = content.lower()
    return {
        part
        for part, encoding in product(PARTS, ENCODINGS)
        if part.lower().encode(encoding) in content
    }


def all_outputs(project: Path) -> bytes:
    """Contents of all files that the stages wrote, unpacked, caches too, and their names."""
    paths = sorted(project.rglob("*"))
    contents = [unpacked(path) for path in paths if path.is_file()]
    return b"\n".join(contents) + str([path.name for path in paths]).encode()


def all_messages(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> bytes:
    """All that was printed, logged or warned of."""
    printed = capfd.readouterr()
    warned = [str(warning.message) for warning in recwarn]
    text = " ".join([printed.out, printed.err, caplog.text, *warned])
    return text.encode("utf-8", "backslashreplace")


def unpacked(path: Path) -> bytes:
    """Content of a file, and of what it compresses."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        metadata = str(table.schema.metadata)
        rows = json.dumps(table.to_pylist(), ensure_ascii=False)
        return b"\n".join([content, metadata.encode(), rows.encode()])
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return b"\n".join([content, *(archive.read(name) for name in archive.namelist())])
    return content


@pytest.fixture
def secret_corpus(
    make_corpus: MakeCorpus, make_record: MakeRecord, full_records: list[Raw]
) -> dict[str, bytes]:
    files = secret_files()
    for name, content in files.items():
        assert leaks(content) or name == "deflated", f"no secrets in {name}"
    records = [
        make_record(question_id=f"q{number}", image_path=f"Images/s/{number}.dcm")
        for number in range(len(files))
    ]
    records += [
        make_record(
            question_id=f"n{number}", image_path=f"Images/s/{number}.dcm", modality_type=None
        )
        for number in range(6)
    ]
    records += [
        make_record(question_id="folder", image_path="Images/series"),
        make_record(question_id="mixed", image_path="Images/mixed"),
    ]
    records += full_records
    images: dict[str, bytes | None] = {
        f"Images/s/{number}.dcm": content for number, content in enumerate(files.values())
    }
    images |= {"Images/series": None, "Images/mixed": None, "Images/mixed/1": files["good"]}
    images |= {
        f"Images/series/{number}": written(secret(InstanceNumber=number)) for number in (1, 2)
    }
    images |= {"Images/mixed/2": files["name in SeriesInstanceUID UI"]}
    make_corpus(records, images)
    # most records are refused
    change_params("quarantine", max_refused_share=1.0, max_refused_share_of_set=1.0)
    return files


def _delete_corpus(project: Path) -> None:
    """Delete the corpus, which contains the secrets themselves."""
    shutil.rmtree(project / "data/raw")


@pytest.mark.parametrize("accepted", [False, True])
def test_no_output_names_a_patient(
    run: RunStage,
    project: Path,
    secret_corpus: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    accepted: bool,
) -> None:
    tree = read_yaml(project / "params.yaml")
    tree["splits"]["kind"] = "random"  # all images are copies of one another
    tree["data_tests"]["blank_images"]["severity"] = "warning"
    if accepted:
        tree["dicom"] |= {"accept_burned_in": True, "accept_unflagged": True, "ct_window": None}
    (project / "params.yaml").write_text(dump_yaml(tree))
    caplog.set_level(logging.DEBUG)
    recwarn.clear()
    run(download)
    for slug in MODALITIES:
        run(resize, slug)
    run(splits)
    _delete_corpus(project)
    assert not leaks(all_messages(capfd, caplog, recwarn))
    assert not leaks(all_outputs(project))
    quarantine = read_quarantine(layout.QUARANTINE / "resize" / "ct.parquet")
    assert quarantine.kept > 5
    assert len(quarantine.rows) > 10
    assert any(row.reason == Reason.IMAGE_ANNOTATION for row in quarantine.rows) != accepted
    record = next(record for record in resized() if record["question_id"] == "q0")
    assert record["dicom"] == {
        "Modality": "CT",
        "Rows": 32,
        "Columns": 40,
        "NumberOfFrames": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsStored": 8,
    }


@pytest.mark.parametrize("leak", ["tags", "reason", "log", "warning"])
def test_a_leak_planted_in_the_reader_is_detected(
    run: RunStage,
    project: Path,
    secret_corpus: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
    leak: str,
) -> None:
    name = SECRETS["PatientName"]
    as_fields = dicom_header.Tags.as_fields

    def leaking(tags: dicom_header.Tags) -> dict[str, Any]:
        if leak == "log":
            logging.getLogger("x").warning(name)
        elif leak == "warning":
            warnings.warn(name, stacklevel=1)
        return as_fields(tags) | ({"PatientName": name} if leak == "tags" else {})

    if leak == "reason":
        monkeypatch.setattr(dicom_header, "PHOTOMETRIC", (name,))
    else:
        monkeypatch.setattr(dicom_header.Tags, "as_fields", leaking)
    run(download)
    run(resize, "ct")
    _delete_corpus(project)
    content = all_outputs(project) + all_messages(capfd, caplog, recwarn)
    assert leaks(content) >= {"Zworykin", "Quenby", "Thessaly"}


def test_the_stage_as_a_process_prints_nothing_that_names_a_patient(
    run: RunStage, project: Path, secret_corpus: dict[str, bytes]
) -> None:
    """With all warnings on, and including what C libraries print."""
    run(download)
    command = [sys.executable, "-W", "always", "-X", "dev", "-m", "stages.resize", "ct"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    process = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert not leaks(process.stdout + process.stderr)
    assert b"Traceback" not in process.stderr


@pytest.mark.parametrize("name", sorted(secret_files()))
def test_no_exception_names_a_patient(name: str, secret_corpus: dict[str, bytes]) -> None:
    try:
        list(read_dicom(secret_corpus[name], settings()).frames)
    except ImageError as error:
        chain = [error, error.__context__, error.__cause__]
        text = " ".join(f"{each!r} {getattr(each, '__notes__', '')}" for each in chain)
    else:
        text = ""
    assert not leaks(text.encode())
