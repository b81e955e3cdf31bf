"""Answers of a plan's evaluations: counted from split files, expected, or unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.planning.answers import answers_of, as_json, describe
from stages.core import layout
from stages.core.outputs import write_json
from stages.core.params import Params, check_params, parse_settings
from stages.profiles.splice import set_values
from stages.profiles.variants import Answers
from tests.conftest import ROOT
from tests.profiles.test_variants import item

EVALUATIONS = ("evaluate@base", "evaluate@ct", "evaluate@lesion-grading", "report")


def full(number: int, **fields: Any) -> dict[str, Any]:
    known = {
        "solution": "<answer> A </answer>",
        "options": ["Cyst", "Nodule"],
        "dataset": "Set",
        "question_type": "lesion-grading",
    }
    return item(number, **fields) | known


@pytest.fixture
def params() -> Params:
    path = ROOT / "params.yaml"
    return check_params(parse_settings(path.read_text(encoding="utf-8"), path), path)


def write_splits(root: Path) -> None:
    """Two questions by modality, one about 3 images, and one more by type."""
    questions = [full(1), full(2, images=3, context="cough"), full(3)]
    write_json(root / layout.split("modality", "ct", "test", "grouped"), questions[:2])
    write_json(root / layout.split("task", "lesion-grading", "test", "grouped"), questions)


def test_each_evaluation_counts_the_questions_of_its_axis(tmp_path: Path, params: Params) -> None:
    write_splits(tmp_path)
    answers = answers_of(tmp_path, params, EVALUATIONS, [])
    assert answers is not None
    assert {name: counts["as_asked"] for name, counts in answers.items()} == {
        "base": Answers(3, 5),
        "ct": Answers(2, 4),
        "lesion-grading": Answers(3, 5),
    }
    plain = as_json(answers)
    assert plain is not None
    assert plain["ct"]["middle"] == {"answers": 1, "images": 1}
    (note,) = describe(tmp_path, params, EVALUATIONS, answers)
    assert note.startswith("3 evaluations take ")
    assert "as asked 8 (1.75 images each)" in note
    assert "without context 3 (3)" in note
    assert "context exchanged" not in note


def test_evaluations_that_are_left_out_or_not_to_run_count_nothing(
    tmp_path: Path, params: Params
) -> None:
    write_splits(tmp_path)
    answers = answers_of(tmp_path, params, ["evaluate@ct", "evaluate@mri"], ["mri"])
    assert answers is not None
    assert list(answers) == ["ct"]
    assert answers_of(tmp_path, params, ["train@ct", "report"], []) == {}
    assert describe(tmp_path, params, ["train@ct"], {}) == []
    assert describe(tmp_path, params, ["train@ct"], None) == []


@pytest.mark.parametrize("content", [None, "{}", "[{}]"])
def test_without_split_files_the_number_is_unknown(
    tmp_path: Path, params: Params, content: str | None
) -> None:
    write_splits(tmp_path)
    path = tmp_path / layout.split("task", "lesion-grading", "test", "grouped")
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert answers_of(tmp_path, params, EVALUATIONS, []) is None
    assert answers_of(tmp_path / "other", params, EVALUATIONS, []) is None


def test_stale_splits_are_not_counted(tmp_path: Path, params: Params) -> None:
    write_splits(tmp_path)
    names = ("splits", *EVALUATIONS)
    assert answers_of(tmp_path, params, names, []) is None
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    (note,) = describe(tmp_path, params, names, None)
    assert "unknown until stage splits has run" in note
    assert "as asked" not in note
    # a profile that says how large its corpus is
    folder = tmp_path / "infra/profiles"
    folder.mkdir(parents=True)
    (folder / "sample.yaml").write_text("about: a\n", encoding="utf-8")
    scale = {"questions": 10, "images": 9, "volume_share": 0.5}
    write_json(folder / "own.yaml", {"scale": scale, "params": {"volume": {"frames": 4}}})
    path = Path("params.yaml")
    own = set_values(text, {"volume": {"frames": 4}}, "own", path)
    (tmp_path / "params.yaml").write_text(own, encoding="utf-8")
    four = check_params(parse_settings(own, path), path)
    (note,) = describe(tmp_path, four, names, None)
    assert "unknown" in note
    assert "by the size in profile own" in note
    assert "as asked 1.00 (2.5 images each)" in note
    assert "middle image alone 0.50 (1)" in note
