"""New questions that released splits lack: counted, and refused beyond the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.registry.manifest import Manifest
from flows.retraining.validate import UnusedQuestions, refused_for, unused_questions
from stages.core import layout
from stages.core.outputs import write_json
from stages.core.params import Params, check_params, parse_settings
from stages.profiles.schema import merge
from tests.conftest import ROOT


def params(**changes: Any) -> Params:
    path = ROOT / "params.yaml"
    tree = parse_settings(path.read_text(encoding="utf-8"), path)
    return check_params(merge(tree, changes), path)


RELEASED = params(splits={"kind": "released"})


def manifest(**questions: str) -> Manifest:
    """Modality -> ids, one letter each."""
    return Manifest(
        {}, {slug: dict.fromkeys(ids, "hash") for slug, ids in questions.items()}, 9, 0, {}
    )


def write_split(root: Path, axis: str, slug: str, part: str, ids: str) -> None:
    item = {
        "image": "a",
        "problem": "b",
        "solution": "c",
        "options": ["d", "e"],
        "dataset": "f",
        "modality": slug,
        "question_type": "g",
    }
    path = root / layout.split(axis, slug, part, "released")
    write_json(path, [item | {"question_id": each} for each in ids])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path, "modality", "ct", "train", "ab")
    write_split(tmp_path, "modality", "ct", "test", "c")
    write_split(tmp_path, "task", "disease-diagnosis", "train", "x")
    return tmp_path


def test_new_questions_in_no_file_are_counted_by_modality(root: Path) -> None:
    old = manifest(ct="ad")
    new = manifest(ct="abcdef", mri="xyz")
    found = unused_questions(root, RELEASED, new, old)
    assert found == UnusedQuestions({"ct": 2, "mri": 2}, 7, RELEASED.splits.released.folder)
    assert found.share == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("settings", "new", "old"),
    [
        (RELEASED, manifest(ct="abc"), manifest(ct="a")),
        # d was not used before either
        (RELEASED, manifest(ct="abcd"), manifest(ct="abd")),
        (RELEASED, manifest(ct="abcd"), None),
        (params(), manifest(ct="abcd"), manifest(ct="abc")),
    ],
)
def test_nothing_is_said_where_no_new_question_is_left_out(
    root: Path, settings: Params, new: Manifest, old: Manifest | None
) -> None:
    assert unused_questions(root, settings, new, old) is None
    assert refused_for(None, settings.retrain) == []


@pytest.mark.parametrize(("limit", "is_refused"), [(0.0, True), (0.49, True), (0.5, False)])
def test_the_limit_decides_between_refusal_and_warning(limit: float, is_refused: bool) -> None:
    unused = UnusedQuestions({"ct": 3, "mri": 1}, 8, "infra/released")
    reasons = refused_for(unused, params(retrain={"max_unused": limit}).retrain)
    assert len(reasons) == is_refused
    for reason in reasons:
        assert "4 of 8 new questions (ct 3, mri 1)" in reason
        assert "infra/released" in reason
        assert "retrain.max_unused" in reason
