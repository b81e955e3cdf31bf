"""Hostile inputs: each is refused or quarantined, and the good records beside it are kept."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages import download, resize
from stages.core import layout
from stages.core.outputs import read_json_lines
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.corpus.quarantine.ledger import Quarantine, Row, read_quarantine
from stages.corpus.quarantine.reasons import RefusedDataError
from tests.conftest import ROOT
from tests.hostile import images
from tests.hostile.archives import archives, make_zip
from tests.hostile.cases import Case
from tests.hostile.dicoms import DICOMS
from tests.hostile.images import encode, scene
from tests.hostile.records import RECORDS, SECRET, files
from tests.omnimedvqa import MODALITIES

QUESTIONS = "QA_information/Open-access"
NAMED = "Images/Good/named.png"


def record(name: str, **changes: Any) -> dict[str, Any]:
    """A valid record with changes; a field changed to None is left out."""
    fields = {
        "dataset": "Good",
        "question_id": name,
        "question_type": "Disease Diagnosis",
        "question": "What is seen?",
        "gt_answer": "Nodule",
        "image_path": "Images/Good/a.png",
        "option_A": "Cyst",
        "option_B": "Nodule",
        "modality_type": MODALITIES["ct"],
    } | changes
    return {field: value for field, value in fields.items() if value is not None}


GOOD = {f"good {number}": record(f"good {number}") for number in range(3)}
GOOD_IDS = {*GOOD, "more"}
IMAGE = encode(scene(), "PNG")
CORPUS = {
    f"{QUESTIONS}/Good.json": json.dumps(list(GOOD.values())).encode(),
    f"{QUESTIONS}/More.json": (
        json.dumps([record("more", image_path=NAMED, dataset="More")]).encode()
    ),
    "Images/Good/a.png": IMAGE,
    NAMED: IMAGE,
}
ARCHIVES = archives(CORPUS, NAMED, f"{QUESTIONS}/More.json")
FILES = files(record("in a bad file"))
FILE_NAMES = {name: f"{QUESTIONS}/{name.replace('/', ' of ')}.json" for name in FILES}
IMAGES = images.IMAGES | DICOMS


@dataclass(frozen=True)
class Outcome:
    """Outcome of a corpus: quarantine tables of both stages, and ids of the usable records."""

    download: Quarantine
    resize: Quarantine
    usable: set[str]

    @property
    def refused(self) -> dict[str, Row]:
        """Question id, or file if there is none -> its row in quarantine."""
        return {
            str(row.where.question_id or row.where.file): row
            for row in (*self.download.rows, *self.resize.rows)
        }


def run_stage(patch: pytest.MonkeyPatch, stage: ModuleType, *arguments: str) -> None:
    patch.setattr(sys, "argv", [stage.__name__, *arguments])
    stage.main()


def ingest(root: Path, content: bytes) -> Outcome:
    """Run download and resize of a corpus with the folder `root` as working directory."""
    params = read_yaml(ROOT / "params.yaml")
    # nearly everything is refused here, which must not stop the stages
    params["quarantine"] |= {"max_refused_share": 1.0, "max_refused_share_of_set": 1.0}
    (root / "data" / "raw").mkdir(parents=True)
    (root / "params.yaml").write_text(dump_yaml(params), encoding="utf-8")
    (root / "data" / "raw" / "corpus.zip").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_stage(patch, download)
        run_stage(patch, resize, "ct")
        return Outcome(
            download=read_quarantine(layout.QUARANTINE / "download.parquet"),
            resize=read_quarantine(layout.QUARANTINE / "resize/ct.parquet"),
            usable={each["question_id"] for each in read_json_lines(layout.records("ct"), "")},
        )


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive(tmp_path: Path, name: str) -> None:
    case = ARCHIVES[name]
    root = tmp_path / "project"
    root.mkdir()
    if case.end == "refused":
        check_refused_archive(root, case)
    else:
        check_usable_archive(root, case)
    assert [path.name for path in tmp_path.iterdir()] == ["project"], "nothing escapes the project"
    assert not list(tmp_path.rglob("*evil*"))


def check_refused_archive(root: Path, case: Case) -> None:
    with pytest.raises(RefusedDataError) as caught:
        ingest(root, case.content)
    assert caught.value.fault == case.code
    assert case.item in str(caught.value)
    assert "corpus.zip" in str(caught.value)
    assert not (root / layout.corpus("ct")).exists()


def check_usable_archive(root: Path, case: Case) -> None:
    outcome = ingest(root, case.content)
    if case.end == "kept":
        assert outcome.usable == GOOD_IDS
        return
    assert outcome.usable == set(GOOD)
    (row,) = outcome.refused.values()
    assert row.reason == case.code
    assert case.item in (row.what, row.where.file)


@pytest.fixture(scope="module")
def image_outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All hostile images in one corpus with good ones."""
    records = [
        record(name, image_path=f"Images/Hostile/{number}.png", dataset="Hostile")
        for number, name in enumerate(IMAGES)
    ]
    contents = {each["image_path"]: IMAGES[each["question_id"]].content for each in records}
    questions = {f"{QUESTIONS}/Hostile.json": json.dumps(records).encode()}
    corpus = make_zip({**CORPUS, **contents, **questions})
    return ingest(tmp_path_factory.mktemp("images"), corpus)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image(image_outcome: Outcome, name: str) -> None:
    case = IMAGES[name]
    if case.end == "kept":
        assert name in image_outcome.usable, image_outcome.refused.get(name)
    else:
        assert name not in image_outcome.usable
        assert image_outcome.refused[name].reason == case.code, image_outcome.refused[name]


def test_good_images_beside_hostile_ones_are_kept(image_outcome: Outcome) -> None:
    assert image_outcome.usable >= GOOD_IDS
    assert image_outcome.resize.read == len(IMAGES) + len(GOOD_IDS)
    assert image_outcome.resize.read == image_outcome.download.kept
    assert image_outcome.resize.kept == len(image_outcome.usable)


@pytest.fixture(scope="module")
def record_outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All hostile records in one file, and each hostile file, in one corpus with good ones."""
    hostile = []
    for name, (change, _) in RECORDS.items():
        is_change = isinstance(change, dict) and change
        hostile.append(record(name, **({"question_id": name} | change)) if is_change else change)
    contents = {FILE_NAMES[name]: case.content for name, case in FILES.items()}
    contents[f"{QUESTIONS}/Hostile.json"] = json.dumps(hostile).encode()
    return ingest(tmp_path_factory.mktemp("records"), make_zip({**CORPUS, **contents}))


@pytest.mark.parametrize("number", range(len(RECORDS)), ids=list(RECORDS))
def test_a_record(record_outcome: Outcome, number: int) -> None:
    _, expected = list(RECORDS.values())[number]
    reasons = [
        row.reason
        for row in record_outcome.download.rows
        if row.where.file.endswith("/Hostile.json") and row.where.record == number
    ]
    assert reasons == [expected]


@pytest.mark.parametrize("name", FILES)
def test_a_question_file(record_outcome: Outcome, name: str) -> None:
    rows = [row for row in record_outcome.download.rows if row.where.file == FILE_NAMES[name]]
    assert [row.reason for row in rows] == [FILES[name].code]


def test_no_refusal_quotes_a_context(record_outcome: Outcome) -> None:
    assert sum(SECRET in str(change) for change, _ in RECORDS.values()) > 5
    assert [row for row in record_outcome.download.rows if SECRET in repr(row)] == []


def test_good_records_beside_hostile_ones_are_kept(record_outcome: Outcome) -> None:
    assert record_outcome.usable == GOOD_IDS
    assert record_outcome.download.read == len(RECORDS) + len(FILES) + len(GOOD_IDS)
