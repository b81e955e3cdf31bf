"""Hostile inputs: each is refused or quarantined, and the good records beside it are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.core import layout
from stages.corpus.quarantine.reasons import RefusedDataError
from tests.hostile import images
from tests.hostile.archives import archives, make_zip
from tests.hostile.cases import Case
from tests.hostile.corpus import CORPUS, GOOD, GOOD_IDS, NAMED, QUESTIONS, record
from tests.hostile.dicoms import DICOMS
from tests.hostile.ingest import Outcome, ingest
from tests.hostile.records import RECORDS, SECRET, files

ARCHIVES = archives(CORPUS, NAMED, f"{QUESTIONS}/More.json")
FILES = files(record("in a bad file"))
FILE_NAMES = {name: f"{QUESTIONS}/{name.replace('/', ' of ')}.json" for name in FILES}
IMAGES = images.IMAGES | DICOMS


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
