"""Versions of the champion: promotion, rollback, and checkout of weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.registry import champion
from stages.core.errors import ExitCode, InputError
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.profiles.proposals.propose import with_folds
from tests.commands import med_r1
from tests.flows.corpora import copy_workspace
from tests.flows.tiny import run


@pytest.fixture
def root(finished_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = copy_workspace(finished_pipeline, tmp_path / "copy")
    monkeypatch.chdir(root)
    return root


def test_a_cross_validation_has_no_champion(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = read_yaml(root / "params.yaml")
    tree["splits"]["folds"] = 2
    groups = with_folds({"checkpoints": tree["checkpoints"]}, 2)
    (root / "params.yaml").write_text(dump_yaml(tree | groups), encoding="utf-8")
    assert med_r1("champion", "promote") == ExitCode.INPUT
    assert "splits.folds is set" in capsys.readouterr().err


def test_promote_rollback_and_checkout_from_the_command_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert med_r1("champion", "show") == ExitCode.INPUT
    assert "`med-r1 champion promote`" in capsys.readouterr().err
    assert med_r1("champion", "promote") == 0
    assert med_r1("champion", "rollback") == ExitCode.INPUT
    assert "champion 1 is the first" in capsys.readouterr().err

    (root / "infra/base/skill.json").write_text("0.2", encoding="utf-8")
    assert med_r1("champion", "promote") == ExitCode.INPUT
    assert "base is not up to date (infra/base modified)" in capsys.readouterr().err
    run("dvc", "repro", cwd=root)
    assert med_r1("champion", "promote", "--why", "another base") == 0
    second = champion.require(root)
    assert (second.version, second.predecessor) == (2, 1)
    assert (second.why, second.git_dirty) == ("another base", True)
    assert second.checkpoints["ct"].questions > 0
    first = champion.version(root, 1)
    assert first.checkpoints["ct"].model != second.checkpoints["ct"].model
    assert not first.git_dirty

    capsys.readouterr()
    assert med_r1("champion", "show") == 0
    output = capsys.readouterr().out
    assert "champion 2 of 1, 2, since" in output
    assert "in the cache" in output
    assert med_r1("champion", "rollback") == 0
    assert champion.require(root).version == 1
    assert med_r1("champion", "rollback", "--to", "2") == 0
    assert med_r1("champion", "rollback", "--to", "2") == ExitCode.INPUT
    assert med_r1("champion", "rollback", "--to", "7") == ExitCode.INPUT
    assert "no champion 7; existing: 1, 2" in capsys.readouterr().err

    assert med_r1("champion", "checkout", "ct", "elsewhere") == 0
    assert json.loads((root / "elsewhere/from.json").read_text()) == 0.2
    assert med_r1("champion", "checkout", "ct", "elsewhere", "--version", "1") == 0
    assert json.loads((root / "elsewhere/from.json").read_text()) == 0.0
    assert med_r1("champion", "checkout", "cta", "elsewhere") == ExitCode.INPUT
    assert "champion 2 has no checkpoint 'cta'; it has: ct, x-ray" in capsys.readouterr().err

    run("dvc", "gc", "--workspace", "--force", cwd=root)
    with pytest.raises(InputError, match="the weights of ct, champion 1 .* DVC's cache"):
        champion.checkout(root, "ct", root / "elsewhere", 1)
    assert json.loads((root / "elsewhere/from.json").read_text()) == 0.0, (
        "a failure changes nothing"
    )


@pytest.mark.parametrize("content", ['{"version": "two", "since": "", "why": ""}', "{"])
def test_a_corrupt_record_is_named(root: Path, content: str) -> None:
    (root / "champions").mkdir()
    (root / "champions/champion.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"`git checkout -- champions/champion\.json`"):
        champion.current(root)
