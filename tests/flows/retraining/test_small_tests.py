"""A test too small for a promotion is a reason against training, and known before it.

A checkpoint without any is left out and not trained.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.retraining.validate import small_tests
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import write_json
from stages.core.params import load_params
from tests.conftest import ROOT

PARAMS = load_params(ROOT / "params.yaml")
MINIMUM = PARAMS.retrain.min_test_questions


def write_test(root: Path, name: str, count: int) -> None:
    checkpoint = PARAMS.checkpoints[name]
    path = root / layout.split(checkpoint.axis, checkpoint.split, "test", PARAMS.splits.kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, [{"question_id": str(number)} for number in range(count)])


@pytest.mark.parametrize(
    ("count", "refused"), [(0, False), (1, True), (MINIMUM - 1, True), (MINIMUM, False)]
)
@pytest.mark.parametrize("name", ["ct", "lesion-grading"])
def test_a_stale_training_needs_enough_test_questions(
    tmp_path: Path, name: str, count: int, refused: bool
) -> None:
    write_test(tmp_path, name, count)
    reasons = small_tests(tmp_path, PARAMS, [f"train@{name}", "report"])
    assert bool(reasons) is refused
    assert all(name in each and f"has {count} test questions" in each for each in reasons)


def test_trainings_that_are_up_to_date_are_not_asked(tmp_path: Path) -> None:
    write_test(tmp_path, "ct", 1)
    assert small_tests(tmp_path, PARAMS, ["evaluate@ct", "report"]) == []


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ct/test\.json is missing: run `dvc repro splits`"):
        small_tests(tmp_path, PARAMS, ["train@ct"])
