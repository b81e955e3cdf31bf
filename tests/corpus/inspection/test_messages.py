"""The check names what was read, what was expected, and a remedy that works."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.corpus.inspection.command import run
from tests.conftest import image
from tests.dicoms import file

ROWS = "image,question,options,answer,modality,type\n"


def ward(folder: Path, files: dict[str, bytes], *rows: str) -> Path:
    """A folder with these files and a CSV that asks about `rows`' images."""
    lines = [f"{row},What?,Cyst|Nodule,A,mri,disease-diagnosis" for row in rows]
    (folder / "ward").mkdir()
    (folder / "ward" / "ward.csv").write_text(ROWS + "\n".join(lines) + "\n", encoding="utf-8")
    for name, content in files.items():
        path = folder / "ward" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "ward"


def findings(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    run(corpus, json_file=tmp_path / "found.json")
    tree = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    return {each["kind"]: each for each in tree["findings"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "HTML"),
        (b"  <HTML>404</HTML>", "HTML"),
        (b"<?xml version='1.0'?><Error/>", "XML"),
        (b"%PDF-1.7", "PDF"),
        (file(np.zeros((4, 4), np.uint8))[132:], "without DICM at byte 128"),
    ],
)
def test_a_file_that_is_no_image_is_called_what_it_is(
    content: bytes, words: str, tmp_path: Path
) -> None:
    corpus = ward(tmp_path, {"a.png": content, "b.png": image()}, "a.png", "b.png")
    found = findings(corpus, tmp_path)
    (example,) = found["files in an unknown image format"]["examples"]
    assert words in example["why"]


@pytest.mark.parametrize("name", ["more.xlsx", "more.jsonl", "more.tsv", "more.parquet"])
def test_a_table_in_another_form_is_noted(name: str, tmp_path: Path) -> None:
    corpus = ward(tmp_path, {"a.png": image(), name: b"x", "README.md": b"x"}, "a.png")
    found = findings(corpus, tmp_path)
    assert found["tables that are not read"]["count"] == 1
    assert "images that no question names" not in found


@pytest.mark.parametrize(
    ("written", "present"),
    [
        ("a.jpg", "a.jpeg"),
        ("A.PNG", "a.png"),
        ("scan.tif", "scan.TIFF"),
        (unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")),
    ],
)
def test_a_missing_image_with_a_similar_name_is_suggested(
    written: str, present: str, tmp_path: Path
) -> None:
    corpus = ward(tmp_path, {present: image(), "b.png": image()}, written, "b.png")
    (example,) = findings(corpus, tmp_path)["images that are missing"]["examples"]
    assert present in example["why"]


def test_a_header_of_another_modality_and_a_corrupt_frame_are_found(tmp_path: Path) -> None:
    frames = np.zeros((3, 8, 8), np.uint8)
    flat = file(frames, BurnedInAnnotation="NO", Modality="MR")
    files = {
        "ct.dcm": file(frames[0], BurnedInAnnotation="NO", Modality="CT"),
        "mr.dcm": flat,
        "b.png": image(),
    }
    found = findings(ward(tmp_path, files, "ct.dcm", "mr.dcm", "b.png"), tmp_path)
    mismatch = found["images whose modality differs from their record's"]
    assert [each["what"] for each in mismatch["examples"]] == ["Images/ct.dcm"]


@pytest.mark.parametrize("name", ["ward.csv", "questions.json"])
def test_a_question_file_is_not_a_corpus(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text("x", encoding="utf-8")
    assert run(path) == 2
    assert f"pass the folder {tmp_path}" in capsys.readouterr().err


def test_a_folder_for_the_findings_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = ward(tmp_path, {"a.png": image()}, "a.png")
    assert run(corpus, json_file=tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err
