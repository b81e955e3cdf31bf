"""The table of hostile input: each case is refused or quarantined, its neighbours unharmed."""

from __future__ import annotations

import json
import os
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
from stages.taxonomy import MODALITIES
from tests.conftest import ROOT
from tests.hostile import images
from tests.hostile.archives import archives, zipped
from tests.hostile.cases import Case
from tests.hostile.dicoms import DICOMS
from tests.hostile.images import saved, scene
from tests.hostile.records import RECORDS, files

QUESTIONS = "QA_information/Open-access"
NAMED = "Images/Good/named.png"


def record(name: str, **changes: Any) -> dict[str, Any]:
    made = {
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
    return {field: value for field, value in made.items() if value is not None}


GOOD = {f"good {number}": record(f"good {number}") for number in range(3)}
IMAGE = saved(scene(), "PNG")
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
IMAGES = images.IMAGES | DICOMS


@dataclass(frozen=True)
class Outcome:
    """What came of a corpus: accounts of both stages, ids that are left."""

    download: Quarantine
    resize: Quarantine
    left: set[str]

    @property
    def refused(self) -> dict[str, Row]:
        """Question id, or file where there is none, -> its row in quarantine."""
        return {
            str(row.where.question_id or row.where.file): row
            for row in (*self.download.rows, *self.resize.rows)
        }


def start(module: ModuleType, *arguments: str) -> None:
    before, sys.argv = sys.argv, [module.__name__, *arguments]
    try:
        module.main()
    finally:
        sys.argv = before


def ingest(root: Path, content: bytes) -> Outcome:
    """Run download and resize of a corpus in the folder `root`, as working directory."""
    params = read_yaml(ROOT / "params.yaml")
    # here nearly everything is refused, and is to be seen
    params["quarantine"] |= {"max_refused_share": 1.0, "max_refused_share_of_set": 1.0}
    (root / "data" / "raw").mkdir(parents=True)
    (root / "params.yaml").write_text(dump_yaml(params), encoding="utf-8")
    (root / "data" / "raw" / "corpus.zip").write_bytes(content)
    before = Path.cwd()
    os.chdir(root)
    try:
        start(download)
        start(resize, "ct")
        left = {each["question_id"] for each in read_json_lines(layout.records("ct"), "")}
        downloaded, resized = (
            read_quarantine(layout.QUARANTINE / name)
            for name in ("download.parquet", "resize/ct.parquet")
        )
        return Outcome(downloaded, resized, left)
    finally:
        os.chdir(before)


def check(outcome: Outcome, name: str, case: Case) -> None:
    """The named question ended as the case says, and nothing is lost between the stages."""
    assert outcome.download.kept == outcome.resize.read
    assert outcome.resize.kept == len(outcome.left)
    if case.end == "kept":
        assert name in outcome.left, outcome.refused.get(name)
    else:
        assert name not in outcome.left
        assert outcome.refused[name].reason == case.code, outcome.refused[name]


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive(tmp_path: Path, name: str) -> None:
    case, root = ARCHIVES[name], tmp_path / "project"
    root.mkdir()
    if case.end == "refused":
        with pytest.raises(RefusedDataError) as caught:
            ingest(root, case.content)
        assert caught.value.fault == case.code
        assert case.named in str(caught.value)
        assert "corpus.zip" in str(caught.value)
        assert not (root / layout.corpus("ct")).exists()
    else:
        outcome = ingest(root, case.content)
        assert set(GOOD) <= outcome.left
        if case.end == "kept":
            assert outcome.left == {*GOOD, "more"}
        else:
            assert outcome.left == set(GOOD)
            (row,) = outcome.refused.values()
            assert row.reason == case.code
            assert case.named in (row.what, row.where.file)
    assert [path.name for path in tmp_path.iterdir()] == ["project"], (
        "nothing is written beside the project"
    )
    assert not list(tmp_path.rglob("*evil*"))


@pytest.fixture(scope="module")
def imaged(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All hostile images in one corpus with good ones."""
    asked = [
        record(name, image_path=f"Images/Hostile/{number}.png", dataset="Hostile")
        for number, name in enumerate(IMAGES)
    ]
    content = {each["image_path"]: IMAGES[each["question_id"]].content for each in asked}
    return ingest(
        tmp_path_factory.mktemp("images"),
        zipped({**CORPUS, **content, f"{QUESTIONS}/Hostile.json": json.dumps(asked).encode()}),
    )


@pytest.mark.parametrize("name", IMAGES)
def test_an_image(imaged: Outcome, name: str) -> None:
    check(imaged, name, IMAGES[name])


def test_good_images_beside_hostile_ones_are_kept(imaged: Outcome) -> None:
    assert {*GOOD, "more"} <= imaged.left
    assert imaged.resize.read == len(IMAGES) + len(GOOD) + 1


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All hostile records in one file, and each hostile file, in one corpus with good ones."""
    hostile = [
        (
            record(name, **({"question_id": name} | change))
            if isinstance(change, dict) and change
            else change
        )
        for name, (change, _) in RECORDS.items()
    ]
    content = {f"{QUESTIONS}/Hostile.json": json.dumps(hostile).encode()}
    content |= {
        f"{QUESTIONS}/{name.replace('/', ' of ')}.json": case.content
        for name, case in FILES.items()
    }
    return ingest(tmp_path_factory.mktemp("records"), zipped({**CORPUS, **content}))


@pytest.mark.parametrize("number", range(len(RECORDS)), ids=list(RECORDS))
def test_a_record(asked: Outcome, number: int) -> None:
    name, (_, reason) = list(RECORDS.items())[number]
    found = [
        row.reason
        for row in asked.download.rows
        if row.where.file.endswith("/Hostile.json") and row.where.record == number
    ]
    assert found == [reason], name


@pytest.mark.parametrize("name", FILES)
def test_a_question_file(asked: Outcome, name: str) -> None:
    file = f"{QUESTIONS}/{name.replace('/', ' of ')}.json"
    found = [row for row in asked.download.rows if row.where.file == file]
    assert len(found) == 1
    assert found[0].reason == FILES[name].code


def test_good_records_beside_hostile_ones_are_kept(asked: Outcome) -> None:
    assert asked.left == {*GOOD, "more"}
    assert asked.download.read == len(RECORDS) + len(FILES) + len(GOOD) + 1
