"""NIfTI volumes of a source are found, named by what they are, and copied."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import InputError
from stages.corpus.formats.convert import detect
from stages.corpus.formats.images import image_suffix
from tests.corpus.formats.sources import (
    ROW,
    digest,
    image_paths,
    png,
    records,
    refusals,
    run,
    write_csv,
)

WORDS = {"modality": "CT", "question_type": "Disease Diagnosis"}


def nifti(number: int = 0, *, version: Any = nibabel.Nifti1Image) -> bytes:
    """A small volume that no other number gives."""
    voxels = np.full((3, 4, 5), number, dtype=np.int16)
    return bytes(version(voxels, np.eye(4)).to_bytes())


def row(image: bytes, question: str = "What is seen?") -> dict[str, Any]:
    return {
        "image": {"bytes": image, "path": None},
        "question": question,
        "options": ["Cyst", "Nodule"],
        "answer": "B",
    }


def write(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_embedded_volumes_are_named_by_their_bytes(tmp_path: Path) -> None:
    contents = [
        nifti(1),
        nifti(2, version=nibabel.Nifti2Image),
        gzip.compress(nifti(3), mtime=0),
        gzip.compress(nifti(4, version=nibabel.Nifti2Image), mtime=0),
    ]
    run(write(tmp_path / "a.parquet", *map(row, contents)), tmp_path / "out", **WORDS)
    paths = [image_paths(each)[0] for each in records(tmp_path / "out")]
    assert [image_suffix(path) for path in paths] == [".nii", ".nii", ".nii.gz", ".nii.gz"]
    assert [(tmp_path / "out" / path).read_bytes() for path in paths] == contents


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(png(), mtime=0),
        gzip.compress(b"", mtime=0),
        gzip.compress(nifti(), mtime=0)[:30],
        b"\x1f\x8b damaged" * 50,
        nifti().replace(b"n+1\0", b"ni1\0"),
        nifti()[:300],
    ],
    ids=["packed png", "packed nothing", "cut", "damaged", "header of a pair", "cut header"],
)
def test_other_packed_files_and_headers_are_no_images(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.parquet", row(nifti()), row(content, "Else?"))
    (text,) = refusals(run(path, tmp_path / "out", **WORDS))
    assert text.startswith("a.parquet, row 2: ")
    assert "none of PNG" in text


def test_volumes_are_found_by_path_with_near_matches(tmp_path: Path) -> None:
    ward = tmp_path / "ward"
    ward.mkdir()
    (ward / "head.nii.gz").write_bytes(gzip.compress(nifti(1)))
    (ward / "chest.nii").write_bytes(nifti(2))
    (ward / "notes.nii.gz").write_bytes(gzip.compress(b"no volume"))
    (ward / "notes.gz").write_bytes(b"not even packed")
    names = ("head.nii.gz", "chest.nii", "head.nii", "HEAD.NII.GZ", "notes.nii.gz", "notes.gz")
    rows = [ROW | {"image": name, "question": name} for name in names]
    conversion = run(write_csv(ward / "w.csv", rows), tmp_path / "out")
    found = digest(tmp_path / "out")
    assert {"Images/head.nii.gz", "Images/chest.nii"} == {name for name in found if "nii" in name}
    texts = refusals(conversion)
    assert "did you mean 'head.nii.gz'" in texts[0]
    assert "did you mean 'head.nii.gz'" in texts[1]
    assert all("no NIfTI" in text for text in texts[2:])
    assert len(texts) == 4


def test_class_folders_may_hold_volumes(tmp_path: Path) -> None:
    for label in ("cyst", "nodule"):
        for number in range(3):
            path = tmp_path / f"lungs/ct/{label}/{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(nifti(number)))
    assert detect(tmp_path / "lungs") == "class-folders"
    conversion = run(tmp_path / "lungs", tmp_path / "out", accept_blind=True)
    assert (conversion.questions, conversion.images) == (6, 6)


def test_packed_files_that_are_no_volumes_are_no_class_folders(tmp_path: Path) -> None:
    path = tmp_path / "d/ct/cyst/archive.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b"x"))
    with pytest.raises(InputError, match="no known format"):
        detect(tmp_path / "d")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a/b.NII.GZ", ".nii.gz"),
        ("a.b/c", ""),
        ("a.tar.gz", ".tar.gz"),
        ("a.gz", ".gz"),
        ("A.PNG", ".png"),
        ("a.v2.nii.gz", ".nii.gz"),
    ],
)
def test_a_suffix_of_two_parts_is_one(name: str, suffix: str) -> None:
    assert image_suffix(name) == suffix


def test_an_image_in_the_folder_of_a_volume_is_of_another_origin(tmp_path: Path) -> None:
    (tmp_path / "d/series").mkdir(parents=True)
    (tmp_path / "d/series/1.dcm").write_bytes(png(1))
    volume = row(b"") | {"image": {"bytes": None, "path": "series"}}
    inside = row(png(2), "Else?") | {"dataset": "series"}
    for name, rows in {"first": [volume, inside], "last": [inside, volume]}.items():
        rows = [{"dataset": "d"} | each for each in rows]
        write(tmp_path / "d/a.parquet", *rows)
        (text,) = refusals(run(tmp_path / "d", tmp_path / name, **WORDS))
        assert text.startswith("a.parquet, row 2: ")
        assert "another origin" in text
