"""DICOM through the stages: series and frames, modality from the header, and that nothing that
names a patient gets out.
"""

from __future__ import annotations

import json
import logging
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
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
from stages.corpus.dataset.image_store import open_image
from stages.corpus.dicom import header as dicom_header
from stages.corpus.dicom import syntaxes
from stages.corpus.dicom.headers import elements as dicom_elements
from stages.corpus.quarantine.ledger import read_quarantine
from stages.taxonomy import MODALITIES
from tests.conftest import ROOT, MakeCorpus, MakeRecord, Raw, RunStage, change_params
from tests.dicoms import SECONDARY_CAPTURE, compressed, dataset, deflated, file, ramp, written

CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}


def resized(slug: str = "ct") -> list[Raw]:
    return list(read_json_lines(layout.records(slug), ""))


def refusals(slug: str) -> list[str]:
    return [
        row.why for row in read_quarantine(layout.QUARANTINE / "resize" / f"{slug}.parquet").rows
    ]


def a_slice(level: int, **elements: Any) -> bytes:
    return file(np.full((6, 8), level, dtype=np.uint8), InstanceNumber=level, **elements)


def test_a_folder_is_one_image_with_frames(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    record = make_record(image_path="Images/ct 1", modality_type=MODALITIES["mri"])
    make_corpus(
        [record],
        {"Images/ct 1": None}
        | {f"Images/ct 1/{9 - level}.dcm": a_slice(level) for level in (1, 2, 3)},
    )
    run(download)
    run(resize, "mri")
    (found,) = resized("mri")
    assert found["image"] == "data/images/mri/ct 1.png"
    assert found["frames"] == [f"data/frames/mri/ct 1/000{number}.png" for number in (1, 2, 3)]
    assert [np.asarray(open_image(path)).max() for path in found["frames"]] == [1, 2, 3]
    assert np.asarray(open_image(found["image"])).max() == 2
    assert (found["source_size"], found["source_mode"], found["dicom"]["NumberOfFrames"]) == (
        [8, 6],
        "MONOCHROME2",
        3,
    )


def test_a_file_of_several_frames_has_frames_and_one_of_one_has_none(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = [
        make_record(
            question_id=name, image_path=f"Images/{name}.dcm", modality_type=MODALITIES["mri"]
        )
        for name in ("a", "b")
    ]
    make_corpus(
        records,
        {
            "Images/a.dcm": file(np.stack([ramp(), ramp() // 2])),
            "Images/b.dcm": file(ramp(), BurnedInAnnotation="NO"),
        },
    )
    run(download)
    run(resize, "mri")
    several, one = resized("mri")
    assert several["frames"] == [f"data/frames/mri/a.dcm/000{number}.png" for number in (1, 2)]
    assert several["image"] == "data/images/mri/a.dcm.png"
    assert "frames" not in one
    assert (
        "1 of these images are DICOM and do not say whether text is burned into them"
        in capsys.readouterr().out
    )


def test_frames_of_many_files_are_there_under_every_name_whether_made_or_remembered(
    run: RunStage,
    make_corpus: MakeCorpus,
    make_record: MakeRecord,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Several are made at once, and some are made of the same bytes."""
    names = [f"{number}-{twin}" for number in range(40) for twin in "ab"]
    files = {
        f"Images/{name}.dcm": file(
            np.stack([np.full((6, 8), 255 - int(name[:-2]), np.uint8), np.zeros((6, 8), np.uint8)])
        )
        for name in names
    }
    make_corpus(
        [
            make_record(
                question_id=name, image_path=f"Images/{name}.dcm", modality_type=MODALITIES["mri"]
            )
            for name in names
        ],
        files,
    )
    run(download)
    for made_anew in (80, 0):
        run(resize, "mri")
        said = capsys.readouterr()
        assert f"({made_anew} of them made anew), kept 80" in said.out
        assert "cannot be used" not in said.err
        for record in resized("mri"):
            top = 255 - int(record["question_id"][:-2])
            assert [np.asarray(open_image(path)).max() for path in record["frames"]] == [top, 0]


def test_frames_of_which_one_is_damaged_are_all_refused(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    record = make_record(image_path="Images/a.dcm", modality_type=MODALITIES["mri"])
    content = bytearray(compressed(np.stack([ramp()] * 3), syntaxes.JPEG_LS))
    content[content.rindex(b"\xff\xf7") + 5] ^= 0x40
    make_corpus(
        [record, record | {"question_id": "x", "image_path": "Images/ok.png"}],
        {"Images/a.dcm": bytes(content)},
    )
    run(download)
    run(resize, "mri")
    assert refusals("mri") == [
        "the image cannot be used: the compressed image has another size than the DICOM header says"
    ]
    assert not [path for path in layout.frames("mri").rglob("*") if path.is_file()]


def test_a_record_without_modality_takes_that_of_the_header(
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
    assert [
        record["question_id"] for record in read_json_lines(layout.corpus_records("mri"), "")
    ] == ["mr.dcm"]
    (kept,) = read_json_lines(layout.corpus_records("x-ray"), "")
    assert kept["modality_type"] == MODALITIES["x-ray"]
    assert [entry["file"] for entry in read_json_lines(layout.corpus_images("ct"), "")] == [
        "Images/s/1"
    ]
    (row,) = read_quarantine(layout.QUARANTINE / "download.parquet").rows
    assert (row.where.question_id, row.why) == ("pt.dcm", "modality_type is missing")


def test_a_header_that_contradicts_the_record_is_refused_with_both(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus(
        [make_record(image_path="Images/a.dcm")], {"Images/a.dcm": file(ramp(), Modality="MR")}
    )
    run(download)
    run(resize, "ct")
    wanted = (
        "the image cannot be used: modality_type is 'CT(Computed Tomography)', but the DICOM header"
        " says 'MR'"
    )
    assert refusals("ct") == [wanted]


def test_a_folder_of_other_images_is_no_series(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    good = make_record(question_id="good")
    make_corpus(
        [good, make_record(image_path="Images/Chest CT Scan")], {"Images/Chest CT Scan": None}
    )
    run(download)
    run(resize, "ct")
    assert refusals("ct") == ["the image cannot be used: not a DICOM file"]


def test_two_runs_give_the_same_bytes(
    run: RunStage, make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    record = make_record(image_path="Images/s", modality_type=MODALITIES["mri"])
    make_corpus(
        [record],
        {"Images/s": None} | {f"Images/s/{level}": a_slice(level) for level in range(1, 6)},
    )
    run(download)
    first: dict[str, bytes] = {}
    for made_anew in (True, False, True):
        if made_anew:
            shutil.rmtree(resize.CACHE, ignore_errors=True)
        run(resize, "mri")
        found = {
            str(path): path.read_bytes()
            for path in layout.DATA.rglob("*")
            if path.is_file() and "raw" not in path.parts
        }
        assert found == (first or found)
        first = found


# --- privacy
# -----------------------------------------------------------------------------------------------------------

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
    *(
        "Zworykin",
        "Quenby",
        "Thessaly",
        "PID-7741-XQ",
        "19530517",
        "Wulfric",
        "ACC90210Q",
        "Oblomov",
        "Xerxes",
        "Vellichor",
        "20190823",
    ),
    *("1953-05-17", "2.25.77119911"),
)
"""Each of these in no output, in any case and in no encoding. The last is the beginning of all
UIDs.
"""


def secret(pixels: Any = None, **elements: Any) -> Dataset:
    """A data set full of what names a patient: in their own elements, in private ones, in overlays,
    in UIDs.
    """
    name = SECRETS["PatientName"]
    uids = {
        "SeriesInstanceUID": "2.25.771199110",
        "StudyInstanceUID": "2.25.771199111",
        "SOPInstanceUID": "2.25.771199112",
    }
    found = dataset(ramp() if pixels is None else pixels, **SECRETS | uids | CT | elements)
    found.add_new(0x00091001, "LO", name)
    found.private_block(0x0011, "Zworykin Systems", create=True).add_new(0x01, "PN", name)
    found.add_new(0x60000022, "LO", name)
    found.add_new(0x60001500, "LO", name)
    found.add_new(0x60003000, "OW", name.encode() + b"\0" * (len(name) % 2))
    item = Dataset()
    item.PatientName, item.PatientID = name, SECRETS["PatientID"]
    found.OtherPatientIDsSequence = [item]
    found.OriginalAttributesSequence = [item]
    return found


def replaced(
    content: bytes, tag: tuple[int, int], vr: bytes, value: bytes, length: int | None = None
) -> bytes:
    """The same explicit little endian file with one short element replaced."""
    head = struct.pack("<HH", *tag)
    at = content.index(head, 132)
    (old,) = struct.unpack_from("<H", content, at + 6)
    return (
        content[:at]
        + head
        + vr
        + struct.pack("<H", len(value) if length is None else length)
        + value
        + content[at + 8 + old :]
    )


def secret_files() -> dict[str, bytes]:
    """Good files and broken ones, each with the secrets, some where other values belong."""
    name = SECRETS["PatientName"].encode()
    good = written(secret())
    found = {
        "good": good,
        "deflated": deflated(good),
        "implicit": written(secret(), dicom_elements.IMPLICIT),
        "two frames": written(secret(np.stack([ramp(), ramp()]))),
        "burned in": written(secret(BurnedInAnnotation="YES")),
        "capture": written(secret(SOPClassUID=SECONDARY_CAPTURE)),
        "character set": replaced(
            written(secret(SpecificCharacterSet="ISO_IR 100")), (8, 5), b"CS", name
        ),
        "cut in half": good[: len(good) // 2],
        "cut in the name": good[: good.index(name) + 9],
        "no pixels": written(secret(PixelData=None)),
        "not registered": good.replace(b"1.2.840.10008.1.2.1\0", b"2.25.77119911.9.1.1\0"),
        "lossless jpeg": compressed(ramp(), syntaxes.JPEG_LOSSLESS_SV1, **SECRETS)[:-40] + name,
        "comment in a jpeg": _commented(
            compressed(ramp(), syntaxes.JPEG_BASELINE, **SECRETS | CT), name
        ),
        "sequence without end": (
            good[:-1300] + struct.pack("<HH2sHI", 0x0028, 0x3010, b"SQ", 0, 0xFFFFFFFF) + name * 40
        ),
    }
    for keyword, tag, vr in (
        *(
            ("Rows", (0x28, 0x10), b"US"),
            ("Rows", (0x28, 0x10), b"PN"),
            ("Modality", (8, 0x60), b"CS"),
            ("Modality", (8, 0x60), b"PN"),
        ),
        *(
            ("SamplesPerPixel", (0x28, 2), b"US"),
            ("PhotometricInterpretation", (0x28, 4), b"CS"),
            ("BitsStored", (0x28, 0x101), b"US"),
        ),
        *(
            ("RescaleSlope", (0x28, 0x1053), b"DS"),
            ("RescaleIntercept", (0x28, 0x1052), b"DS"),
            ("SeriesInstanceUID", (0x20, 0xE), b"UI"),
        ),
    ):
        found[f"name in {keyword} {vr.decode()}"] = replaced(good, tag, vr, name)
    for keyword in (
        "NumberOfFrames",
        "WindowCenter",
        "InstanceNumber",
        "ImagePositionPatient",
        "PixelSpacing",
        "SliceThickness",
    ):
        number = {
            "NumberOfFrames": 1,
            "InstanceNumber": 1,
            "ImagePositionPatient": [1, 2, 3],
            "PixelSpacing": [1, 1],
        }.get(keyword, 1)
        with_it = secret(**{keyword: number})
        tag = (with_it[keyword].tag.group, with_it[keyword].tag.element)
        found[f"name in {keyword}"] = replaced(written(with_it), tag, b"DS", name)
        found[f"birth date in {keyword}"] = replaced(
            written(with_it), tag, with_it[keyword].VR.encode(), b"19530517"
        )
        found[f"wrong length of {keyword}"] = replaced(
            written(with_it), tag, with_it[keyword].VR.encode(), name, length=60_000
        )
    for keyword, tag in (
        ("BodyPartExamined", (0x18, 0x15)),
        ("BurnedInAnnotation", (0x28, 0x301)),
        ("VOILUTFunction", (0x28, 0x1056)),
    ):
        found[f"name in {keyword}"] = replaced(written(secret(**{keyword: "NO"})), tag, b"CS", name)
    return found


def _commented(content: bytes, name: bytes) -> bytes:
    """A JPEG with a comment that has the name, and damage behind it."""
    at = content.index(b"\xff\xd8") + 2
    comment = b"\xff\xfe" + struct.pack(">H", len(name) + 2) + name
    size = at - 6
    (length,) = struct.unpack_from("<I", content, size)
    spoilt = (
        content[:size]
        + struct.pack("<I", length + len(comment))
        + content[size + 4 : at]
        + comment
        + content[at:]
    )
    return spoilt[:-60] + b"\xff\xd9" * 30


def leaks(text: bytes) -> set[str]:
    """The parts of the secrets that are in some bytes, plain or as UTF-16 or UTF-32 of either
    order.
    """
    text = text.lower()
    encodings = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
    return {
        part for part in PARTS for encoding in encodings if part.lower().encode(encoding) in text
    }


def all_outputs(project: Path) -> bytes:
    """Every file that the stages wrote, caches too, what is packed in it unpacked, and the names of
    all.
    """
    found = [unpacked(path) for path in sorted(project.rglob("*")) if path.is_file()]
    return b"\n".join(found) + str([path.name for path in project.rglob("*")]).encode()


def unpacked(path: Path) -> bytes:
    """The bytes of a file; of one that compresses, what is in it as well."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return b"\n".join(
            [
                content,
                str(table.schema.metadata).encode(),
                json.dumps(table.to_pylist(), ensure_ascii=False).encode(),
            ]
        )
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
        assert leaks(content) or name == "deflated", name  # they are planted
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
    change_params(
        "quarantine", max_refused_share=1.0, max_refused_share_of_set=1.0
    )  # most is refused, and is to be seen
    return files


def _saying(
    say: Callable[[str], None], name: str, then: Callable[[Any], dict[str, Any]]
) -> Callable[[Any], dict[str, Any]]:
    """The same function, which says a name before."""

    def leaking(tags: Any) -> dict[str, Any]:
        say(name)
        return then(tags)

    return leaking


def _without_raw(project: Path) -> None:
    """Take away the corpus, which is the secrets themselves."""
    shutil.rmtree(project / "data/raw")


@pytest.mark.parametrize("accepted", [False, True])
def test_nothing_that_names_a_patient_gets_out(
    run: RunStage,
    project: Path,
    secret_corpus: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    accepted: bool,
) -> None:
    tree = read_yaml(project / "params.yaml")
    tree["splits"]["kind"] = "published"  # the images of these records are all the same
    tree["data_tests"]["blank_images"]["severity"] = "warning"  # and grey
    if accepted:
        tree["dicom"] |= {"accept_burned_in": True, "accept_unflagged": True, "ct_window": None}
    (project / "params.yaml").write_text(dump_yaml(tree))
    caplog.set_level(logging.DEBUG)
    recwarn.clear()
    run(download)
    for slug in MODALITIES:
        run(resize, slug)
    run(splits)
    _without_raw(project)
    said = capfd.readouterr()
    told = " ".join([said.out, said.err, caplog.text, *(str(each.message) for each in recwarn)])
    assert not leaks(told.encode("utf-8", "backslashreplace"))
    assert not leaks(all_outputs(project))
    account = read_quarantine(layout.QUARANTINE / "resize" / "ct.parquet")
    assert account.kept > 5
    assert len(account.rows) > 10
    assert any("burned into" in row.why for row in account.rows) != accepted
    kept = next(record for record in resized() if record["question_id"] == "q0")
    assert kept["dicom"] == {
        "Modality": "CT",
        "Rows": 32,
        "Columns": 40,
        "NumberOfFrames": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsStored": 8,
    }


@pytest.mark.parametrize("leak", ["tags", "reason", "log", "warning"])
def test_a_reader_that_leaked_would_be_found_out(
    run: RunStage,
    project: Path,
    secret_corpus: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
    leak: str,
) -> None:
    """The same search, with a leak planted in the reader."""
    name = SECRETS["PatientName"]
    as_fields = dicom_header.Tags.as_fields
    if leak == "tags":
        monkeypatch.setattr(
            dicom_header.Tags, "as_fields", lambda self: as_fields(self) | {"PatientName": name}
        )
    elif leak == "reason":
        monkeypatch.setattr(dicom_elements, "syntax_name", lambda uid: name)
        monkeypatch.setattr(dicom_header, "PHOTOMETRIC", (name,))
    elif leak == "log":
        monkeypatch.setattr(
            dicom_header.Tags, "as_fields", _saying(logging.getLogger("x").warning, name, as_fields)
        )
    else:
        monkeypatch.setattr(dicom_header.Tags, "as_fields", _saying(warnings.warn, name, as_fields))
    run(download)
    run(resize, "ct")
    _without_raw(project)
    said = capfd.readouterr()
    told = " ".join([said.out, said.err, caplog.text, *(str(each.message) for each in recwarn)])
    assert leaks(all_outputs(project) + told.encode()) >= {"Zworykin", "Quenby", "Thessaly"}


def test_the_stage_as_a_process_prints_nothing_that_names_a_patient(
    run: RunStage, project: Path, secret_corpus: dict[str, bytes]
) -> None:
    """With all warnings on, and with what libraries in C print."""
    run(download)
    command = [sys.executable, "-W", "always", "-X", "dev", "-m", "stages.resize", "ct"]
    done = subprocess.run(
        command,
        capture_output=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert not leaks(done.stdout + done.stderr)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("name", sorted(secret_files()))
def test_no_exception_carries_what_names_a_patient(
    name: str, secret_corpus: dict[str, bytes]
) -> None:
    from stages.corpus.dicom.reader import read_dicom
    from stages.corpus.images.decoding import ImageError
    from tests.dicoms import settings

    try:
        list(read_dicom(secret_corpus[name], settings()).frames)
    except ImageError as error:
        chain = [error, error.__context__, error.__cause__]
        text = " ".join(f"{each!r} {getattr(each, '__notes__', '')}" for each in chain)
    else:
        text = ""
    assert not leaks(text.encode())
