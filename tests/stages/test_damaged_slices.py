"""One damaged slice of forty is named: its file in the corpus, and its place in the volume."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages import download, resize
from stages.core import layout
from stages.core.outputs import read_json_lines
from stages.corpus.dicom import syntaxes
from stages.corpus.quarantine.ledger import Row, read_quarantine
from stages.corpus.quarantine.reasons import Reason
from tests.commands import med_r1
from tests.conftest import MakeCorpus, MakeRecord, RunStage, change_params
from tests.corpus.images.test_decoders import saved
from tests.dicoms import compressed, file
from tests.omnimedvqa import MODALITIES
from tests.volumes import nifti

SIZE = (12, 14)
COUNT = 40
AT = 16
"""Index of the damaged one."""
AXIAL = [1, 0, 0, 0, 1, 0]

Files = dict[str, bytes]


def levels() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 255, (COUNT, *SIZE), dtype=np.uint8)


def dicom_slices() -> list[bytes]:
    """Numbered and placed from the last file to the first."""
    return [
        compressed(
            pixels,
            syntaxes.RLE,
            InstanceNumber=COUNT - index,
            ImagePositionPatient=[0, 0, COUNT - index],
            ImageOrientationPatient=AXIAL,
        )
        for index, pixels in enumerate(levels())
    ]


def folder(contents: list[bytes], suffix: str) -> Files:
    return {f"Images/v/{index + 1}.{suffix}": each for index, each in enumerate(contents)}


def dicom_pixels() -> Files:
    contents = dicom_slices()
    start = contents[AT].rindex(b"\xfe\xff\x00\xe0") + 8
    contents[AT] = contents[AT][:start] + b"\x09" + contents[AT][start + 1 :]
    return folder(contents, "dcm")


def dicom_truncated() -> Files:
    contents = dicom_slices()
    contents[AT] = contents[AT][: contents[AT].index(b"\xe0\x7f\x10\x00")]
    return folder(contents, "dcm")


def dicom_emptied() -> Files:
    contents = dicom_slices()
    contents[AT] = b""
    return folder(contents, "dcm")


def png() -> Files:
    contents = [saved_png(pixels) for pixels in levels()]
    contents[AT] = contents[AT][:-30]
    return folder(contents, "png")


def saved_png(pixels: NDArray[np.uint8]) -> bytes:
    return saved(Image.fromarray(pixels), "PNG")


def volume(dtype: type) -> NDArray[np.generic]:
    return levels().transpose(2, 1, 0).astype(dtype)


def nifti_not_finite() -> Files:
    voxels = volume(np.float32)
    voxels[3, 4, AT] = np.nan
    return {"Images/v": nifti(voxels)}


def nifti_truncated() -> Files:
    content = nifti(volume(np.int16))
    return {"Images/v": content[: 352 + 2 * SIZE[0] * SIZE[1] * AT + 10]}


def nifti_packed() -> Files:
    # stored without compression, so that the place of the damage is known
    content = gzip.compress(nifti(volume(np.int16)), compresslevel=0)
    return {"Images/v": content[: 352 + 2 * SIZE[0] * SIZE[1] * AT + 100]}


def clip() -> Files:
    content = compressed(levels(), syntaxes.RLE, Modality="MR")
    starts = [at for at in range(len(content)) if content.startswith(b"\xfe\xff\x00\xe0", at)]
    start = starts[AT + 1] + 8  # the first item is the offset table
    return {"Images/v": content[:start] + b"\x09" + content[start + 1 :]}


CASES: dict[str, tuple[Callable[[], Files], list[str], Reason]] = {
    "pixels of a DICOM file": (
        dicom_pixels,
        ["Images/v/17.dcm", "file 17 of 40", "InstanceNumber 24"],
        Reason.IMAGE_DAMAGED,
    ),
    "a DICOM file without pixels": (
        dicom_truncated,
        ["Images/v/17.dcm", "file 17 of 40", "InstanceNumber 24"],
        Reason.IMAGE_DAMAGED,
    ),
    "an empty file of a series": (
        dicom_emptied,
        ["Images/v/17.dcm", "file 17 of 40"],
        Reason.IMAGE_FORMAT,
    ),
    "a PNG file": (png, ["Images/v/17.png", "file 17 of 40"], Reason.IMAGE_DAMAGED),
    "a voxel of NIfTI": (nifti_not_finite, ["slice 17"], Reason.IMAGE_DAMAGED),
    "truncated NIfTI": (nifti_truncated, ["slice 17", "of 40"], Reason.IMAGE_DAMAGED),
    "truncated NIfTI that is packed": (
        nifti_packed,
        ["slice 17", "of 40"],
        Reason.IMAGE_DAMAGED,
    ),
    "a frame of a clip": (clip, ["frame 17 of 40"], Reason.IMAGE_DAMAGED),
}


@pytest.fixture(autouse=True)
def _lenient(project: object) -> None:
    change_params("quarantine", max_refused_share=1.0, max_refused_share_of_set=1.0)


@pytest.fixture
def corpus(make_corpus: MakeCorpus, make_record: MakeRecord) -> Callable[[Files], Path]:
    """Makes a corpus of a question about these files, and one about another image."""

    def make(files: Files) -> Path:
        mri = {"modality_type": MODALITIES["mri"]}
        records = [
            make_record(question_id="bad", image_path="Images/v", **mri),
            make_record(question_id="good", image_path="Images/a.png", **mri),
        ]
        return make_corpus(records, {"Images/v": None} | files)

    return make


def refused(stage: str) -> Row:
    (row,) = read_quarantine(layout.QUARANTINE / f"{stage}.parquet").rows
    assert (row.where.question_id, row.what) == ("bad", "Images/v")
    return row


def checked(path: Path) -> str:
    """Why `med-r1 check` would refuse the question."""
    assert med_r1("check", path, "--json", "found.json") == 1
    report = json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert (report["kept"], report["refused"]) == (1, 1)
    (finding,) = [each for each in report["findings"] if each["level"] == "refused"]
    return str(finding["examples"][0]["why"])


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_slice_of_forty_is_named(
    corpus: Callable[[Files], Path], run: RunStage, case: str, frames: int
) -> None:
    make, items, reason = CASES[case]
    change_params("volume", frames=frames)
    path = corpus(make())
    run(download)
    run(resize, "mri")
    row = refused("resize/mri")
    assert row.reason == reason
    assert [item for item in items if item not in row.why] == []
    why = checked(path)
    assert [item for item in items if item not in why] == []
    (record,) = read_json_lines(layout.records("mri"), "")
    assert record["question_id"] == "good"


@pytest.mark.parametrize("suffix", ["dcm", "png"])
def test_a_damaged_member_of_an_archive_is_named(
    corpus: Callable[[Files], Path], run: RunStage, suffix: str
) -> None:
    contents = dicom_slices() if suffix == "dcm" else [saved_png(each) for each in levels()]
    path = corpus(folder(contents, suffix))
    name = f"Images/v/17.{suffix}"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"OmniMedVQA/{name}")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + 200] ^= 0xFF
    path.write_bytes(content)
    run(download)
    row = refused("download")
    assert row.reason == Reason.IMAGE_DAMAGED
    assert name in row.why
    assert name in checked(path)


def test_the_cache_does_not_name_files_by_names_that_they_had_before(
    corpus: Callable[[Files], Path], run: RunStage
) -> None:
    files = png()
    for prefix in ("", "renamed-", ""):
        renamed = {name.replace("v/", f"v/{prefix}"): each for name, each in files.items()}
        corpus(renamed)
        run(download)
        run(resize, "mri")
        assert f"Images/v/{prefix}17.png" in refused("resize/mri").why


def test_a_number_that_may_be_a_date_is_not_quoted(
    corpus: Callable[[Files], Path], run: RunStage
) -> None:
    contents = [file(pixels, InstanceNumber=19540312) for pixels in levels()]
    contents[AT] = contents[AT][:-10]
    corpus(folder(contents, "dcm"))
    run(download)
    run(resize, "mri")
    why = refused("resize/mri").why
    assert "Images/v/17.dcm" in why
    assert "1954" not in why
