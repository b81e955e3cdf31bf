"""Where trainings begin, written into params.yaml without touching the rest of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.retraining.initial_checkpoints import write_starts
from stages.core.errors import InputError
from stages.core.params import load_params
from tests.flows.tiny import REPOSITORY


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return Path(shutil.copy(REPOSITORY / "params.yaml", tmp_path))


def test_only_the_starts_that_differ_are_written(params: Path) -> None:
    before = params.read_text(encoding="utf-8")
    starts = {"ct": Path("models/champion/ct"), "mri": Path("models/base")}
    assert write_starts(params.parent, starts) == ["ct"]
    after = params.read_text(encoding="utf-8")
    changed = [(old, new) for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert changed == [
        (
            "  ct: {axis: modality, split: ct, method: grpo, images: data/images/ct, start: models/base}",
            "  ct: {axis: modality, split: ct, method: grpo, images: data/images/ct, start: models/champion/ct}",
        )
    ]
    assert load_params(params).checkpoints["ct"].start == "models/champion/ct"
    assert write_starts(params.parent, starts) == []
    assert write_starts(params.parent, {"ct": Path("models/base")}) == ["ct"]
    assert params.read_text(encoding="utf-8") == before


def test_an_entry_in_another_form_is_left_to_its_author(params: Path) -> None:
    text = params.read_text(encoding="utf-8")
    line = "  ct: {axis: modality, split: ct, method: grpo, images: data/images/ct, start: models/base}"
    long = "  ct:\n    axis: modality\n    split: ct\n    method: grpo\n    images: data/images/ct\n    start: models/base"
    params.write_text(text.replace(line, long), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"checkpoints.ct is not one line with `start: ...`: write `start: models/champion/ct` there yourself"
    ):
        write_starts(params.parent, {"mri": Path("models/champion/mri"), "ct": Path("models/champion/ct")})
    assert load_params(params).checkpoints["mri"].start == "models/base"
