"""Initial checkpoints are set in params.yaml without changing anything else in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.retraining.initial_checkpoints import set_initial_checkpoints
from stages.core.errors import InputError
from stages.core.params import load_params
from tests.flows.tiny import REPOSITORY

LINE = "  ct: {axis: modality, split: ct, method: grpo, images: data/images/ct, start: models/base}"
BLOCK = """  ct:
    axis: modality
    split: ct  # computed tomography
    method: grpo
    images: data/images/ct
    start: models/base  # or a champion"""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return Path(shutil.copy(REPOSITORY / "params.yaml", tmp_path))


def test_only_different_initial_checkpoints_are_written(params: Path) -> None:
    before = params.read_text(encoding="utf-8")
    starts = {"ct": Path("models/champion/ct"), "mri": Path("models/base")}
    assert set_initial_checkpoints(params.parent, starts) == ["ct"]
    assert params.read_text(encoding="utf-8") == before.replace(
        LINE, LINE.replace("models/base", "models/champion/ct")
    )
    assert load_params(params).checkpoints["ct"].start == "models/champion/ct"
    assert set_initial_checkpoints(params.parent, starts) == []
    assert set_initial_checkpoints(params.parent, {"ct": Path("models/base")}) == ["ct"]
    assert params.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("entry", "edited"),
    [
        (BLOCK, BLOCK.replace("models/base  #", "models/champion/ct #")),
        (
            LINE.replace(", start: models/base", ""),
            LINE.replace("models/base", "models/champion/ct"),
        ),
    ],
)
def test_an_entry_may_be_a_block_or_lack_an_initial_checkpoint(
    params: Path, entry: str, edited: str
) -> None:
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace(LINE, entry), encoding="utf-8")
    assert set_initial_checkpoints(params.parent, {"ct": Path("models/champion/ct")}) == ["ct"]
    assert params.read_text(encoding="utf-8") == text.replace(LINE, edited)


def test_an_edit_that_would_lose_a_comment_is_refused(params: Path) -> None:
    text = params.read_text(encoding="utf-8")
    split = text.replace("rewards: {accuracy: 1.0, ", "rewards: {accuracy: 1.0,  # by letter\n    ")
    assert split != text
    params.write_text(split, encoding="utf-8")
    with pytest.raises(InputError, match=r"params\.yaml, line 1\d\d:"):
        set_initial_checkpoints(params.parent, {"ct": Path("models/champion/ct")})
    assert params.read_text(encoding="utf-8") == split
