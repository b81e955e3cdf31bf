"""docs/own-data.md is literally true: its sheet gives its output; corrected, it is ready."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from stages.core.errors import ExitCode
from stages.core.yaml_files import load_yaml, read_yaml
from stages.corpus.records.context import MAX_CONTEXT
from stages.corpus.records.identifiers.find import find_identifier
from stages.corpus.records.records import read_record_files
from stages.corpus.records.table import COLUMNS
from stages.corpus.records.texts import MAX_TEXT_LENGTH
from tests.commands import med_r1
from tests.conftest import ROOT, speckled
from tests.omnimedvqa import MODALITIES, QUESTION_TYPES, TAXONOMY

DOC = (ROOT / "docs/own-data.md").read_text(encoding="utf-8")
SAMPLE = ROOT / "infra/sample/omnimedvqa-phantoms.zip"


def block(language: str, number: int = 0) -> str:
    """A code block of the document."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks: list[tuple[str, str]] = fence.findall(DOC)
    return [text for kind, text in blocks if kind == language][number]


def corrected(sheet: str) -> str:
    """The sheet with the corrections that the document describes."""
    return sheet.replace("CT scan", "ct").replace("Yes|No,no", "Yes|No,No")


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("scans/0017.png", "scans/0018.png", "skin/a.jpg"), start=5):
        assert name in block("", 1)
        path = tmp_path / "ward" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(speckled(number, "JPEG" if name.endswith("jpg") else "PNG"))
    (tmp_path / "ward/ward.csv").write_text(block("csv"), encoding="utf-8")
    return tmp_path / "ward"


def test_the_sheet_gives_the_printed_output(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = block("", 3).split()
    assert command[0] == "med-r1"
    assert med_r1(*command[1:]) == 1
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == block("text").splitlines()


def proposed(source: Path, *options: str, code: int = 0) -> str:
    """What `med-r1 use` prints of a source, and its exit code; nothing is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, check=True)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert med_r1("use", source, *options) == code
        after = subprocess.run(["git", "status", "--porcelain"], capture_output=True, check=True)
        assert status.stdout == after.stdout
    return out.getvalue()


def test_the_sheet_as_json_lines_and_as_a_workbook_is_read(ward: Path) -> None:
    (ward / "ward.csv").unlink()
    (ward / "ward.jsonl").write_text(block("jsonl"), encoding="utf-8")
    printed = proposed(ward / "ward.jsonl")
    assert "2 entries, 2 of them questions about 2 images, 0 refused" in printed
    book = Workbook()
    sheet = book.active
    assert sheet is not None
    for row in csv.reader(corrected(block("csv")).splitlines()):
        sheet.append(row)
    book.save(ward / "ward.xlsx")
    (ward / "ward.jsonl").unlink()
    printed = proposed(ward / "ward.xlsx")
    assert "4 entries, 4 of them questions about 3 images, 0 refused" in printed


def test_med_r1s_published_form_is_read(ward: Path) -> None:
    (ward / "ward.csv").unlink()
    (ward / "train.json").write_text(block("json"), encoding="utf-8")
    options = ("--modality", "ct", "--question-type", "Disease Diagnosis")
    printed = proposed(ward, *options)
    assert "med-r1; 2 entries, 2 of them questions about 2 images, 0 refused" in printed


def test_vlmevalkits_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "bench.tsv").write_text(block("tsv"), encoding="utf-8")
    # questions about one image have no two sides
    printed = proposed(tmp_path / "bench.tsv", "--modality", "ct", code=ExitCode.INPUT)
    assert "vlmevalkit; 2 entries, 2 of them questions about 1 images, 0 refused" in printed


def test_a_hugging_face_data_set_is_read(ward: Path, tmp_path: Path) -> None:
    (ward / "hub").mkdir()
    with contextlib.chdir(ward):
        exec(compile(block("python"), "own-data.md", "exec"), {})
    (command,) = re.findall(r"`med-r1 use hub (.*)`", DOC)
    printed = proposed(ward / "hub", *shlex.split(command))
    assert "huggingface; 2 entries, 2 of them questions about 2 images, 0 refused" in printed


def test_folders_of_classes_become_questions(tmp_path: Path) -> None:
    labels = {line.rpartition("/")[0] for line in block("", 2).splitlines()}
    assert len(labels) == 2
    for number in range(20):
        for at, folder in enumerate(sorted(labels)):
            path = tmp_path / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(speckled(2 * number + at, "PNG"))
    printed = proposed(tmp_path / "lungs")
    assert "class-folders; 40 entries, 40 of them questions about 40 images" in printed
    assert "chance is 50.0%" in printed


def test_a_sheet_of_labels_becomes_questions(ward: Path) -> None:
    (ward / "ward.csv").unlink()
    (ward / "labels.csv").write_text(block("csv", 1), encoding="utf-8")
    (command,) = re.findall(r"`med-r1 use labels.csv (.*)` asks two", DOC)
    printed = proposed(ward / "labels.csv", *command.split(), "--accept-blind")
    assert "label-sheet; 6 entries, 6 of them questions about 3 images, 0 refused" in printed


def test_a_corrected_copy_of_the_sheet_lists_its_changes(
    ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = re.findall(r"`med-r1 (check ward.csv --fix fixed.csv)`", DOC)
    with contextlib.chdir(ward):
        assert med_r1(*command.split()) == 0
    assert "'no' -> 'No'" in capsys.readouterr().out
    assert "No,dermoscopy" in (ward / "fixed.csv").read_text(encoding="utf-8")


def test_the_corrected_sheet_is_ready(ward: Path) -> None:
    (ward / "ward.csv").write_text(corrected(block("csv")), encoding="utf-8")
    assert med_r1("check", "ward") == 0
    reading = read_record_files([("ward.csv", (ward / "ward.csv").read_bytes())], TAXONOMY)
    assert [(record.modality, record.question_type, record.gold) for record in reading.records] == [
        ("ct", "disease-diagnosis", "A"),
        ("ct", "anatomy-identification", "B"),
        ("ct", "modality-recognition", "A"),
        ("dermoscopy", "disease-diagnosis", "B"),
    ]
    assert reading.records[0].options[0] == "Nodule, solid"


def test_with_a_corpus_that_has_the_other_splits_none_is_without_data(
    ward: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(SAMPLE) as archive:
        archive.extractall(tmp_path)
    (corpus,) = [path.parent for path in tmp_path.glob("**/QA_information")]
    usable_before = check(corpus)["kept"]
    (ward / "scans").parent.rename(corpus / "Images/ward")
    sheet = re.sub(
        "^(scans|skin)/", r"Images/ward/\1/", corrected(block("csv")), flags=re.MULTILINE
    )
    (corpus / "Images/ward/ward.csv").rename(corpus / "ward.csv").write_text(
        sheet, encoding="utf-8"
    )
    report = check(corpus)
    assert report["kept"] == usable_before + 4
    assert "splits without data" not in [finding["kind"] for finding in report["findings"]]


def check(corpus: Path) -> dict[str, Any]:
    assert med_r1("check", str(corpus), "--no-images", "--json", "out.json") == 1, (
        "the sample has records that are refused"
    )
    report: dict[str, Any] = json.loads(Path("out.json").read_text(encoding="utf-8"))
    return report


def test_the_contexts_in_the_text_are_those_of_its_sheet() -> None:
    reading = read_record_files([("ward.csv", block("csv", 2).encode())], TAXONOMY)
    assert [record.context for record in reading.records] == block("text", 1).splitlines()
    assert f"at most {MAX_CONTEXT:,} characters" in DOC


def test_what_the_text_says_of_identifiers_is_so() -> None:
    _, _, section = DOC.partition("| refused | write instead |\n")
    table, _, rest = section.partition("\n\n")
    rows = [line.split("|") for line in table.splitlines()[1:]]
    assert len(rows) == 4
    for row in rows:
        for phrase in re.findall(r"`([^`]+)`", row[1]):
            assert find_identifier(phrase), phrase
        assert find_identifier(row[2]) is None, row[2]
    harmless, _, _ = rest.partition("If an ordinary phrase")
    phrases = re.findall(r"`([^`]+)`", harmless)
    assert len(phrases) > 5
    assert [phrase for phrase in phrases if find_identifier(phrase)] == []


def test_all_names_and_limits_in_the_text_are_those_of_the_code() -> None:
    for role, names in COLUMNS.items():
        (row,) = [line for line in DOC.splitlines() if line.startswith(f"| `{role}` |")]
        assert row.split("|")[2].strip() == ", ".join(name for name in names if name != role)
    for slug in (*MODALITIES, *QUESTION_TYPES):
        assert f"`{slug}`" in DOC
    assert f"{MAX_TEXT_LENGTH:,} characters" in DOC


def test_the_settings_in_the_text_fit_their_files() -> None:
    pinned = load_yaml(block("yaml", 0), Path("page"))
    params = load_yaml(block("yaml", 1), Path("page"))
    assert pinned["outs"][0]["path"] == params["corpus"]["archive"]
    known = read_yaml(ROOT / "params.yaml")
    assert set(params["corpus"]) <= set(known["corpus"])
    for name in re.findall(r"`((?:base|splits)\.\w+)`", DOC):
        group, key = name.split(".")
        assert key in known[group], name
