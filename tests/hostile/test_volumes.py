"""Hostile volumes: each costs its own question alone, within bounded memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hostile.archives import make_zip
from tests.hostile.corpus import CORPUS, GOOD_IDS, QUESTIONS, record
from tests.hostile.file_pages import PAGES
from tests.hostile.ingest import Outcome, ingest_within
from tests.hostile.volumes import MAX_INFLATED_MB, VOLUMES

MEMORY = 2**30
"""Bytes that a stage may allocate: several cases declare or unpack to more."""
SETTINGS = {"volume": {"frames": 4}, "dicom": {"max_inflated_mb": MAX_INFLATED_MB}}
CASES = VOLUMES | PAGES
FOLDERS = {name: f"Images/Hostile/{number}" for number, name in enumerate(CASES)}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All hostile volumes in one corpus with good images."""
    records = []
    contents: dict[str, bytes] = {}
    for name, case in CASES.items():
        folder = FOLDERS[name]
        changes: dict[str, Any] = {"image_path": folder, "slices": list(case.slices) or None}
        if case.images:
            changes = {"image_path": None, "images": [f"{folder}/{path}" for path in case.images]}
        records.append(record(name, dataset="Hostile", **changes))
        contents |= {f"{folder}/{path}".rstrip("/"): each for path, each in case.files.items()}
    questions = {f"{QUESTIONS}/Hostile.json": json.dumps(records).encode()}
    corpus = make_zip({**CORPUS, **contents, **questions})
    return ingest_within(MEMORY, tmp_path_factory.mktemp("volumes"), corpus, SETTINGS)


@pytest.mark.parametrize("name", CASES)
def test_a_volume(outcome: Outcome, name: str) -> None:
    case = CASES[name]
    if case.reason is None:
        assert name in outcome.usable, outcome.refused.get(name)
        assert len(outcome.records[name].get("shown", [""])) == case.shown
        return
    assert name not in outcome.usable
    row = outcome.refused[name]
    assert row.reason == case.reason, row
    items = [item.replace("{}", FOLDERS[name]) for item in case.items]
    assert [item for item in items if item not in row.why] == [], row.why


def test_good_images_beside_hostile_volumes_are_kept(outcome: Outcome) -> None:
    assert outcome.usable >= GOOD_IDS
    assert outcome.download.read == len(CASES) + len(GOOD_IDS)
    assert outcome.resize.read == outcome.download.kept
