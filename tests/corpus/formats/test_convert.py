"""Formats are detected or named, and a target is written whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch

import pytest

from stages.core.errors import InputError
from stages.core.params import load_params
from stages.corpus.archives.source import open_corpus
from stages.corpus.formats import convert as module
from stages.corpus.formats.convert import READERS, convert, detect
from stages.corpus.formats.questions import ConversionOptions, path_words
from stages.corpus.records.reading import find_images, read_questions
from tests.conftest import ROOT
from tests.corpus.formats.sources import ROW, run, write_csv, write_images
from tests.omnimedvqa import TAXONOMY


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    write_images(tmp_path / "ward", "scans/a.png")
    return write_csv(tmp_path / "ward/ward.csv", [ROW])


def test_a_corpus_needs_no_conversion(sheet: Path, tmp_path: Path) -> None:
    assert detect(sheet.parent) == "corpus"
    assert detect(sheet) == "sheet"
    run(sheet, tmp_path / "out/Med")
    assert detect(tmp_path / "out/Med") == "corpus"
    assert detect(tmp_path / "out") == "corpus"
    for folder in (sheet.parent, tmp_path / "out"):
        with pytest.raises(InputError, match="a corpus already"):
            run(folder, tmp_path / "again")


def test_a_csv_that_the_pipeline_cannot_read_is_a_sheet(sheet: Path) -> None:
    write_csv(sheet, [ROW | {"question": "Größe?"}], encoding="cp1252")
    assert detect(sheet.parent) == "sheet"
    write_csv(sheet, [ROW], "|")
    assert detect(sheet.parent) == "sheet"


def test_the_pipeline_reads_what_is_written(sheet: Path, tmp_path: Path) -> None:
    row = ROW | {"modality": "CT(Computed Tomography)"}
    run(write_csv(sheet, [row, row | {"question": "Else?"}]), tmp_path / "out")
    limits = load_params(ROOT / "params.yaml").corpus.limits
    with open_corpus(tmp_path / "out", limits, tmp_path / "scratch") as corpus:
        reading, files = find_images(corpus, read_questions(corpus, TAXONOMY))
    assert (len(reading.records), reading.rows) == (2, [])
    assert files == {"Images/scans/a.png": ["Images/scans/a.png"]}


@pytest.mark.parametrize("name", ["notes.docx", "corpus.zip", "table.csv", "empty"])
def test_what_is_unknown_is_listed_with_what_is_supported(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if name != "empty":
        (folder / name).write_text("a,b\n1,2\n")
    found = "an empty folder" if name == "empty" else f"1 {Path(name).suffix}"
    with pytest.raises(InputError) as caught:
        detect(folder)
    assert f"Found: {found}" in str(caught.value)
    for reader in READERS:
        assert reader.description in str(caught.value)


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        detect(tmp_path / "nowhere")
    with pytest.raises(InputError, match="format='excel' is unknown"):
        convert(tmp_path, tmp_path / "x/y", ConversionOptions(format="excel"))


def test_existing_files_are_never_replaced(sheet: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(sheet.parent)
    (tmp_path / "other").symlink_to(tmp_path / "empty")
    for target in ("full", "full/thesis.tex", "ward", "ward/out", ".", "link", "link/out", "other"):
        with pytest.raises(InputError, match=r"exists|contain each other"):
            run(sheet.parent, tmp_path / target, format="sheet")
    assert (tmp_path / "full/thesis.tex").exists()
    run(sheet.parent, tmp_path / "empty", format="sheet")


def test_a_failure_leaves_nothing(sheet: Path, tmp_path: Path) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError("disk full")

    with patch.object(module, "write_json", fail), pytest.raises(OSError, match="disk full"):
        run(sheet, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ward"]


def test_images_are_copied_where_links_are_impossible(sheet: Path, tmp_path: Path) -> None:
    with patch("os.link", side_effect=PermissionError):
        run(sheet, tmp_path / "copy")
    run(sheet, tmp_path / "link")
    name = "Images/scans/a.png"
    assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "link" / name).read_bytes()
    assert (tmp_path / "copy" / name).stat().st_nlink == 1
    shutil.rmtree(sheet.parent)
    assert (tmp_path / "link" / name).exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("modality/ct/test.json", ("ct", None)),
        ("modality/train/Endoscopy_train.json", ("Endoscopy", None)),
        ("task/lesion-grading/train.json", (None, "lesion-grading")),
        ("X-Ray-test.json", ("X-Ray", None)),
        ("a/Disease Diagnosis/mri.json", ("mri", "Disease Diagnosis")),
        ("test.json", (None, None)),
    ],
)
def test_words_are_read_from_paths(path: str, words: tuple[str | None, str | None]) -> None:
    assert path_words(PurePosixPath(path)) == words
