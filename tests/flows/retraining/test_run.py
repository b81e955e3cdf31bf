"""A retraining from probe to decision in a real workspace; only the trainings are fake."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flows.dvc_api.client import StageError, read_status
from flows.registry import champion, snapshot
from flows.retraining.decision import markdown, read_decisions
from flows.retraining.run import Retraining, RetrainOptions, RetrainOutcome
from flows.retraining.validate import RefusedDropError
from flows.scheduling.slots import find_slots
from stages.core.errors import InputError
from stages.core.yaml_files import read_yaml
from tests.flows.corpora import by_dvc, copy_workspace, make_records, make_workspace, write_corpus


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose results are champion 1."""
    root = make_workspace(tmp_path_factory.mktemp("template") / "workspace")
    ended = retrain(root)
    assert ended.name == "FirstChampion"
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return copy_workspace(template, tmp_path / "copy")


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def retrain(root: Path, said: list[str] | None = None, **wishes: Any) -> RetrainOutcome:
    report = (lambda line: None) if said is None else said.append
    with snapshot.only_retraining(root):
        return Retraining(
            root, RetrainOptions(**wishes), by_dvc(root), find_slots(root, gpus=[]), report
        ).run()


def drop(root: Path, *more: list[dict[str, Any]]) -> None:
    """The source now holds what it held, and more."""
    write_corpus(
        root.parent / "source" / "corpus.zip",
        [record for records in (make_records(), *more) for record in records],
    )


def skill(folder: Path) -> float:
    return float(json.loads((folder / "skill.json").read_text()))


def files(root: Path) -> dict[str, bytes]:
    """All that a refused drop must leave as it was."""
    tracked = [root / "data.dvc", root / "dvc.lock", root / "params.yaml"]
    return {
        str(path): path.read_bytes()
        for path in (*tracked, *(root / "data").rglob("*"), *(root / "models").rglob("*"))
        if path.is_file()
    }


def test_nothing_new_runs_nothing(root: Path) -> None:
    before = files(root)
    ended = retrain(root)
    assert ended.name == "NothingNew"
    assert "champion 1 stays" in ended.message
    assert files(root) == before
    assert len(read_decisions(root)) == 1


def test_new_data_of_one_modality_retrains_only_that_and_a_better_challenger_is_promoted(
    root: Path,
) -> None:
    drop(root, make_records(8, ["ct"], "good", ["disease-diagnosis"]))
    look = retrain(root, dry_run=True)
    assert (look.name, champion.require(root).version, snapshot.on_trial(root)) == (
        "DryRun",
        1,
        False,
    )
    ended = retrain(root)
    assert ended.name == "Promoted", ended.message
    decision = ended.decision
    assert decision is not None
    # checkpoints by question type depend on the images of all modalities
    trained = [f"train@{name}" for name in ("ct", "disease-diagnosis", "lesion-grading")]
    evaluated = [
        f"evaluate@{name}"
        for name in ("base", "ct", "x-ray", "disease-diagnosis", "lesion-grading")
    ]
    assert sorted(decision["stages"]["ran"]) == sorted(
        ["download", "resize@ct", "splits", "prior", *trained, *evaluated, "report"]
    )
    assert decision["changes"]["ct"] == {
        "images": {"added": 8, "removed": 0, "changed": 0},
        "questions": {"added": 8, "removed": 0, "changed": 0},
    }
    assert not any(
        any(part.values())
        for slug, parts in decision["changes"].items()
        if slug != "ct"
        for part in parts.values()
    )
    assert decision["checkpoints"]["x-ray"] == "as before"
    assert (
        decision["judgements"]["ct"]["own"]["champion"]
        < decision["judgements"]["ct"]["own"]["challenger"]
    )
    assert decision["judgements"]["ct"]["own"]["low"] > 0
    assert "| ct |" in markdown(decision)
    assert {each["feature"] for each in decision["drift"]} >= {
        "modality",
        "right letter",
        "brightness",
        "shorter side",
    }
    assert "| ct | words of the question |" in markdown(decision) or "Drift: of " in markdown(
        decision
    )
    assert champion.require(root).version == 2
    assert not (root / ".scratch/flows/duel").exists()
    assert read_status(root) == {}
    assert retrain(root).name == "NothingNew"

    champion.checkout(root, "ct", root / "old", 1)
    assert (skill(root / "old"), skill(root / "models/ct")) == (0.4, 0.95)
    assert champion.rollback(root).version == 1
    champion.checkout(root, "ct", root / "old")
    assert skill(root / "old") == 0.4
    assert retrain(root).name == "NothingNew"
    with pytest.raises(InputError, match="champion 1 is the first: there is none before it"):
        champion.rollback(root)


def test_a_worse_challenger_stays_one_and_the_data_is_not_asked_for_again(root: Path) -> None:
    drop(root, make_records(4, ["x-ray"], "poison"))
    ended = retrain(root)
    assert ended.name == "Kept"
    assert "x-ray on its own test" in ended.message
    assert "it may be worse by more than 10 (retrain.max_loss)" in ended.message
    assert champion.require(root).version == 1
    assert retrain(root).name == "NothingNew"


def broken(root: Path) -> None:
    path = root.parent / "source" / "corpus.zip"
    path.write_bytes(path.read_bytes()[:5000])


def damaged_members(root: Path) -> None:
    path = root.parent / "source" / "corpus.zip"
    write_corpus(path, [*make_records(), *make_records(4, ["ct"], "new")])
    with zipfile.ZipFile(path) as archive:
        starts = [
            archive.getinfo(f"OmniMedVQA/Images/ct/new{number}.png").header_offset
            for number in range(4)
        ]
    content = bytearray(path.read_bytes())
    for start in starts:
        content[start + 90] ^= 0xFF
    path.write_bytes(content)


def other_modalities(root: Path, number: int = 80) -> None:
    records = make_records()
    for record in [record for record in records if record["modality_type"].startswith("CT")][
        :number
    ]:
        record["modality_type"] = "PET"
    write_corpus(root.parent / "source" / "corpus.zip", records)


def some_other_modalities(root: Path) -> None:
    other_modalities(root, 15)


def blank_images(root: Path) -> None:
    drop(root, make_records(8, ["ct"], "blank"))


def other_letters(root: Path) -> None:
    records = make_records()
    for record in records:
        record["option_A"], record["option_B"] = record["option_B"], record["option_A"]
    write_corpus(root.parent / "source" / "corpus.zip", records)


def few_questions(root: Path) -> None:
    write_corpus(root.parent / "source" / "corpus.zip", make_records(2))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (broken, "is not a complete zip, tar, tar.gz or tar.zst"),
        (damaged_members, r"20 of 660 records \(3\.0%\) were refused"),
        (
            other_modalities,
            (
                r"too much was refused by download: of all sets 80 of 640 .* 80 unknown-modality"
                r" \('PET'.*; of 'Set ct' 80 of 80 "
            ),
        ),
        (
            some_other_modalities,
            (
                "unknown modality 'PET' in 15 records.*15 of 640 .* refused by download and"
                " resize.*ct: 65 questions, 19% fewer"
            ),
        ),
        (
            blank_images,
            r"1 data test failed: blank_images 0\.0588 \(limit 0\.05\), as data/images/ct/ct/blank",
        ),
        (
            other_letters,
            (
                "right letter moved by 1.00 .*further from the champion's corpus than"
                " retrain.max_drift"
            ),
        ),
        (
            few_questions,
            "all modalities: 80 questions, 88% fewer than the 640 of the champion's corpus",
        ),
    ],
)
def test_a_bad_drop_stops_before_training_and_leaves_the_workspace_as_it_was(
    root: Path, spoil: Any, why: str
) -> None:
    before = files(root)
    spoil(root)
    with pytest.raises(RefusedDropError, match=why):
        retrain(root)
    assert files(root) == before
    assert read_status(root) == {}
    decision = read_decisions(root)[-1]
    assert decision["outcome"] == "refused"
    assert "train@ct" not in (decision["stages"] or {}).get("ran", [])
    again = retrain(root)
    assert again.name == "RefusedBefore"
    assert "--force tries it again" in again.message
    drop(root)
    assert retrain(root).name == "NothingNew"


def test_a_training_that_fails_keeps_the_good_data_and_the_next_run_goes_on(root: Path) -> None:
    drop(root, make_records(8, ["ct"], "good"))
    (root / "fail").touch()
    pinned = (root / "data.dvc").read_bytes()
    with pytest.raises(StageError, match="has no luck"):
        retrain(root)
    assert (root / "data.dvc").read_bytes() != pinned
    assert len(read_decisions(root)) == 1
    (root / "fail").unlink()
    said: list[str] = []
    ended = retrain(root, said)
    assert ended.name == "Promoted", ended.message
    assert "was taken, but not decided on" in said[0]
    assert ended.decision is not None
    assert "resize@ct" not in ended.decision["stages"]["ran"]


def test_what_a_killed_run_left_on_trial_is_taken_back_first(root: Path) -> None:
    before = files(root)
    drop(root, make_records(2, ["ct"], "new"))
    snapshot.save(root)
    list(by_dvc(root)(["data.dvc"]))
    (root / "data.dvc").write_text((root / "data.dvc").read_text().replace("md5:", "md5x:"))
    with zipfile.ZipFile(root.parent / "source" / "corpus.zip") as archive:
        assert archive.testzip() is None
    write_corpus(root.parent / "source" / "corpus.zip", make_records())
    said: list[str] = []
    assert retrain(root, said).name == "NothingNew"
    assert "an earlier run ended before its new data was judged" in said[0]
    assert files(root) == before


def test_trainings_that_are_touched_and_no_others_can_begin_from_the_champion(root: Path) -> None:
    drop(root, make_records(8, ["ct"], "good", ["disease-diagnosis"]))
    ended = retrain(root, start_from="champion")
    assert ended.name == "Promoted", ended.message
    starts = {
        name: entry["start"]
        for name, entry in read_yaml(root / "params.yaml")["checkpoints"].items()
    }
    assert starts["ct"] == "models/champion/ct"
    assert starts["x-ray"] == "models/base"
    assert json.loads((root / "models/ct/from.json").read_text()) == 0.4
    assert json.loads((root / "models/x-ray/from.json").read_text()) == 0.0
    comments = [
        line for line in (root / "params.yaml").read_text().splitlines() if line.startswith("#")
    ]
    assert comments, "comments stay"
    assert ended.decision is not None
    assert "train@x-ray" not in ended.decision["stages"]["ran"]


def test_a_source_that_is_gone_is_named_and_nothing_changes(root: Path) -> None:
    before = files(root)
    (root.parent / "source" / "corpus.zip").unlink()
    with pytest.raises(
        InputError,
        match=r"the source ../source/corpus.zip of data.dvc is gone, or cannot be reached",
    ):
        retrain(root)
    assert files(root) == before


def test_a_second_retraining_does_not_begin(root: Path) -> None:
    with (
        snapshot.only_retraining(root),
        pytest.raises(snapshot.AlreadyRunningError, match="runs in .* already"),
    ):
        retrain(root)
