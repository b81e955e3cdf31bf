"""DVC's command line: stale stages, and commands that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.dvc_api.client import dvc, read_status
from stages.core.errors import InputError
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import copy_folder


@pytest.fixture
def root(run_by_dvc: RunByDvc, tmp_path: Path) -> Path:
    return copy_folder(run_by_dvc(("a", "b")), tmp_path / "workspace")


def test_status_lists_stale_stages_with_reasons(root: Path) -> None:
    assert read_status(root) == {}
    (root / "params.yaml").write_text("rate: 2\n", encoding="utf-8")
    (root / "predictions" / "b.txt").unlink()
    assert read_status(root) == {
        "train@a": {"changed deps": {"params.yaml": {"rate": "modified"}}},
        "train@b": {"changed deps": {"params.yaml": {"rate": "modified"}}},
        "evaluate@b": {"changed outs": {"predictions/b.txt": "deleted"}},
        "report": {"changed deps": {"predictions": "modified"}},
    }


def test_a_failed_dvc_command_is_named_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"`dvc --wait-for-lock status --json` failed with exit code \d+: .*not inside of a DVC"
            r" repository"
        ),
    ):
        dvc(tmp_path, "status", "--json")
