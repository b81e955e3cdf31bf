"""The flow against a real Prefect API: states and artifacts of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.registry import champion
from flows.registry.snapshot import champion_lock
from flows.retraining.flow import retrain
from tests.commands import med_r1
from tests.flows.corpora import make_records, make_workspace, write_corpus
from tests.flows.tiny import REPOSITORY

pytestmark = pytest.mark.usefixtures("prefect_api")


def artifacts() -> list[str]:
    with get_client(sync_client=True) as client:
        key = ArtifactFilterKey(any_=["retraining"])
        return [
            str(artifact.data)
            for artifact in client.read_artifacts(artifact_filter=ArtifactFilter(key=key))
        ]


def test_runs_end_in_the_state_of_their_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    root = make_workspace(tmp_path / "workspace", ["ct"])
    monkeypatch.chdir(root)
    assert med_r1("retrain") == 0
    assert "FirstChampion: the existing results are champion 1" in capsys.readouterr().out

    assert med_r1("retrain") == 0
    assert "NothingNew: ../source/corpus.zip " in capsys.readouterr().out
    with champion_lock(root):
        state = retrain(root=str(root), return_state=True)
    assert (state.name, state.is_completed()) == ("AlreadyRunning", True)

    source = tmp_path / "source" / "corpus.zip"
    few = [*make_records(2, ["ct"]), *make_records(modalities=["mri", "x-ray"])]
    write_corpus(source, few)
    refused = retrain(root=str(root), return_state=True)
    assert (refused.name, refused.is_failed()) == ("Refused", True)
    assert "NoneType: None" not in capsys.readouterr().err, "a log of an error that is none"
    assert "ct: 6 questions, 93% fewer" in str(refused.message)
    assert med_r1("retrain") == 0
    assert "RefusedBefore: " in capsys.readouterr().out

    write_corpus(source, [*make_records(), *make_records(8, ["ct"], "good", ["disease-diagnosis"])])
    assert med_r1("retrain", "--dry-run") == 0
    assert "DryRun: ../source/corpus.zip has changed" in capsys.readouterr().out
    assert med_r1("retrain", "--slots", "2") == 0
    assert "Promoted: champion 2 replaces 1: none of" in capsys.readouterr().out
    assert champion.require(root).version == 2
    pages = "\n".join(artifacts())
    assert "# Promoted: the first champion" in pages
    assert "# Refused: the data was not trained on" in pages
    assert "| ct | " in pages
    source.unlink()
    assert med_r1("retrain") == 1
    assert "error: the source ../source/corpus.zip of data.dvc" in capsys.readouterr().err
    assert not list(REPOSITORY.glob("champions/*"))
