"""A retraining from probe to decision in a real workspace; only the trainings are fake."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.dvc_api.client import read_status
from flows.dvc_api.runner import StageError
from flows.registry import champion, snapshot
from flows.retraining.context import Retraining, RetrainOptions, RetrainOutcome
from flows.retraining.decision import markdown, read_decisions
from flows.retraining.run import run_retraining
from flows.retraining.validate import RefusedDropError
from flows.scheduling.slots import find_slots
from stages.core import layout
from stages.core.errors import InputError
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.corpus.quarantine.ledger import read_quarantine
from stages.profiles.proposals.propose import with_folds
from tests.flows.corpora import by_dvc, copy_workspace, make_records, write_corpus


@pytest.fixture(scope="module")
def template(finished_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose results are champion 1."""
    root = copy_workspace(finished_pipeline, tmp_path_factory.mktemp("champion") / "copy")
    assert retrain(root).name == "FirstChampion"
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return copy_workspace(template, tmp_path / "copy")


@pytest.fixture(scope="module")
def resumed(
    template: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], RetrainOutcome]:
    """A workspace where worse data was validated, a training failed, and the next run succeeded.

    With the messages and the outcome of that run.
    """
    root = copy_workspace(template, tmp_path_factory.mktemp("resumed") / "copy")
    add_records(root, make_records(4, ["x-ray"], "poison"))
    (root / "fail").touch()
    pinned = (root / "data.dvc").read_bytes()
    with pytest.raises(StageError, match="has no luck"):
        retrain(root)
    assert (root / "data.dvc").read_bytes() != pinned
    assert len(read_decisions(root)) == 1
    (root / "fail").unlink()
    messages: list[str] = []
    return root, messages, retrain(root, messages)


@pytest.fixture(scope="module", autouse=True)
def without_gpus() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


def retrain(root: Path, messages: list[str] | None = None, **options: Any) -> RetrainOutcome:
    report = (lambda line: None) if messages is None else messages.append
    with snapshot.champion_lock(root):
        slots = find_slots(root, gpus=[])
        return run_retraining(
            Retraining(root, RetrainOptions(**options), by_dvc(root), slots, report)
        )


def write_source(root: Path, records: list[dict[str, Any]]) -> None:
    write_corpus(root.parent / "source" / "corpus.zip", records)


def add_records(root: Path, records: Sequence[dict[str, Any]] = ()) -> None:
    """Write the original records and these to the source."""
    write_source(root, [*make_records(), *records])


def skill(folder: Path) -> float:
    return float(json.loads((folder / "skill.json").read_text()))


def files(root: Path) -> dict[str, bytes]:
    """All files that a refused corpus must leave unchanged."""
    tracked = [root / "data.dvc", root / "dvc.lock", root / "params.yaml"]
    return {
        str(path): path.read_bytes()
        for path in (*tracked, *(root / "data").rglob("*"), *(root / "models").rglob("*"))
        if path.is_file()
    }


def test_a_cross_validation_is_not_retrained(root: Path) -> None:
    tree = read_yaml(root / "params.yaml")
    tree["splits"]["folds"] = 2
    groups = with_folds({"checkpoints": tree["checkpoints"]}, 2)
    (root / "params.yaml").write_text(dump_yaml(tree | groups), encoding="utf-8")
    with pytest.raises(InputError, match=r"splits\.folds is set"):
        retrain(root)


def test_nothing_new_runs_nothing(root: Path) -> None:
    before = files(root)
    outcome = retrain(root)
    assert outcome.name == "NothingNew"
    assert "champion 1 stays" in outcome.message
    assert files(root) == before
    assert len(read_decisions(root)) == 1


def test_new_data_of_one_modality_retrains_only_that_and_a_better_challenger_is_promoted(
    root: Path,
) -> None:
    add_records(root, make_records(8, ["ct"], "good", ["disease-diagnosis"]))
    dry = retrain(root, dry_run=True)
    assert dry.name == "DryRun"
    assert re.search(r"At most, \d+ of \d+ stages would run, in .* on [0-9]+ slots?", dry.message)
    assert champion.require(root).version == 1
    assert not snapshot.exists(root)
    outcome = retrain(root)
    assert outcome.name == "Promoted", outcome.message
    decision = outcome.decision
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
    unchanged = {part: {"added": 0, "removed": 0, "changed": 0} for part in ("images", "questions")}
    for slug in decision["changes"].keys() - {"ct"}:
        assert decision["changes"][slug] == unchanged
    assert decision["checkpoints"]["x-ray"] == "as before"
    own = decision["judgements"]["ct"]["own"]
    assert own["champion"] < own["challenger"]
    assert own["low"] > 0
    page = markdown(decision)
    assert "| ct |" in page
    assert {each["feature"] for each in decision["drift"]} >= {
        "modality",
        "right letter",
        "brightness",
        "shorter side",
    }
    assert "| ct | words of the question |" in page or "Drift: none of " in page
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
    with pytest.raises(InputError, match="champion 1 is the first"):
        champion.rollback(root)


def truncated(root: Path) -> None:
    path = root.parent / "source" / "corpus.zip"
    path.write_bytes(path.read_bytes()[:5000])


def corrupt_members(root: Path) -> None:
    add_records(root, make_records(4, ["ct"], "new"))
    path = root.parent / "source" / "corpus.zip"
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
    ct = [record for record in records if record["modality_type"].startswith("CT")]
    for record in ct[:number]:
        record["modality_type"] = "PET"
    write_source(root, records)


def some_other_modalities(root: Path) -> None:
    other_modalities(root, 10)


def blank_images(root: Path) -> None:
    add_records(root, make_records(8, ["ct"], "blank"))


def other_letters(root: Path) -> None:
    records = make_records()
    for record in records:
        record["option_A"], record["option_B"] = record["option_B"], record["option_A"]
    write_source(root, records)


def few_questions(root: Path) -> None:
    write_source(root, make_records(2))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (truncated, r"corpus\.zip .*zip, tar, tar\.gz or tar\.zst"),
        (corrupt_members, r"12 of 255 records \(4\.7%\)"),
        (other_modalities, r"80 of 243 .* 80 unknown-modality .*'PET'.*80 of 81 .*'Set ct'"),
        (
            some_other_modalities,
            r"'PET' in 10 records.*10 of 243 .*ct: 71 questions, 12% fewer",
        ),
        (blank_images, r"blank_images 0\.0899 .*0\.05.* data/images/ct/ct/blank"),
        (other_letters, r"right letter moved by 1\.00 .*retrain\.max_drift"),
        (few_questions, "all modalities: 18 questions, 93% fewer than the 243 "),
    ],
)
def test_an_invalid_corpus_is_refused_before_training_and_the_workspace_rolled_back(
    root: Path, spoil: Any, why: str
) -> None:
    before = files(root)
    spoil(root)
    with pytest.raises(RefusedDropError, match=why) as caught:
        retrain(root)
    assert files(root) == before
    findings = caught.value.findings
    if spoil is truncated:
        assert findings is None, "no stage has read it"
    else:
        assert findings is not None
        name = layout.QUARANTINE.name
        refused, used = (
            read_quarantine(folder / name / "download.parquet")
            for folder in (root / findings, root / layout.DATA)
        )
        counts = {corrupt_members: 255, few_questions: 18}
        assert used.read == 243
        assert refused.read == counts.get(spoil, refused.read)
        assert (root / findings / layout.LOCATIONS.name).is_file()
    assert read_status(root) == {}
    decision = read_decisions(root)[-1]
    assert decision["outcome"] == "refused"
    assert "train@ct" not in (decision["stages"] or {}).get("ran", [])
    again = retrain(root)
    assert again.name == "RefusedBefore"
    assert "--force" in again.message
    add_records(root)
    assert retrain(root).name == "NothingNew"


def test_after_a_failed_training_the_valid_data_stays_and_the_next_run_resumes(
    resumed: tuple[Path, list[str], RetrainOutcome],
) -> None:
    _, messages, outcome = resumed
    assert "undecided" in messages[0]
    assert outcome.decision is not None
    assert "resize@x-ray" not in outcome.decision["stages"]["ran"]


def test_a_worse_challenger_is_not_promoted_and_its_data_is_not_new_again(
    resumed: tuple[Path, list[str], RetrainOutcome],
) -> None:
    root, _, outcome = resumed
    assert outcome.name == "Kept"
    assert "x-ray on its own test" in outcome.message
    assert "10 (retrain.max_loss)" in outcome.message
    assert champion.require(root).version == 1
    assert retrain(root).name == "NothingNew"


def test_new_data_of_a_killed_run_is_rolled_back_first(root: Path) -> None:
    before = files(root)
    add_records(root, make_records(2, ["ct"], "new"))
    snapshot.save(root)
    list(by_dvc(root)(["data.dvc"]))
    (root / "data.dvc").write_text((root / "data.dvc").read_text().replace("md5:", "md5x:"))
    with zipfile.ZipFile(root.parent / "source" / "corpus.zip") as archive:
        assert archive.testzip() is None
    add_records(root)
    messages: list[str] = []
    assert retrain(root, messages).name == "NothingNew"
    assert "data.dvc was rolled back" in messages[0]
    assert files(root) == before


def test_only_affected_trainings_start_from_the_champion(root: Path) -> None:
    add_records(root, make_records(8, ["ct"], "good", ["disease-diagnosis"]))
    outcome = retrain(root, start_from="champion")
    assert outcome.name == "Promoted", outcome.message
    starts = {
        name: entry["start"]
        for name, entry in read_yaml(root / "params.yaml")["checkpoints"].items()
    }
    assert starts["ct"] == "models/champion/ct"
    assert starts["x-ray"] == "models/base"
    assert json.loads((root / "models/ct/from.json").read_text()) == 0.4
    assert json.loads((root / "models/x-ray/from.json").read_text()) == 0.0
    assert "\n#" in (root / "params.yaml").read_text(), "comments stay"
    assert outcome.decision is not None
    assert "train@x-ray" not in outcome.decision["stages"]["ran"]


def test_a_missing_source_is_named_and_nothing_changes(root: Path) -> None:
    before = files(root)
    (root.parent / "source" / "corpus.zip").unlink()
    with pytest.raises(InputError, match=r"the source ../source/corpus.zip of data.dvc"):
        retrain(root)
    assert files(root) == before


def test_a_second_retraining_does_not_start(root: Path) -> None:
    with snapshot.champion_lock(root), pytest.raises(snapshot.AlreadyRunningError):
        retrain(root)


def test_a_new_modality_makes_stale_only_what_depends_on_it(root: Path) -> None:
    params = root / "params.yaml"
    text = params.read_text(encoding="utf-8")
    line = "  endoscopy: {names: [Endoscopy, Colonoscopy], dicom: [ES]}\n"
    params.write_text(text.replace("question_types:\n", f"{line}question_types:\n"), "utf-8")
    assert read_status(root).keys() == {"download", "resize@endoscopy", "splits", "report"}
    # without questions of it, what follows would find nothing changed
    records = make_records(8, ["ct"], "endo", ["disease-diagnosis"])
    for record in records:
        record |= {"modality_type": "Colonoscopy", "dataset": "Endo"}
    add_records(root, records)
    outcome = retrain(root)
    assert outcome.decision is not None, outcome.message
    evaluated = {
        f"evaluate@{name}"
        for name in ("base", "ct", "x-ray", "disease-diagnosis", "lesion-grading")
    }
    trained = {"train@disease-diagnosis", "train@lesion-grading"}  # need the images of all
    assert set(outcome.decision["stages"]["ran"]) == {
        *("download", "resize@endoscopy", "splits", "prior", "report"),
        *trained,
        *evaluated,
    }
    assert outcome.decision["changes"]["endoscopy"]["questions"]["added"] == 8
    assert outcome.decision["sizes"]["endoscopy"] == {"images": 8, "questions": 8}
    assert outcome.decision["checkpoints"]["ct"] == "as before"


def use_released(root: Path, **rule: Any) -> None:
    """Take the drawn splits of the workspace as released files, and set keys of `retrain`."""
    images = {record["question_id"]: record["image_path"] for record in make_records()}
    drawn = root / layout.SPLITS / "grouped"
    for path in sorted(drawn.rglob("*.json")):
        items = json.loads(path.read_text(encoding="utf-8"))
        target = root / "released" / path.relative_to(drawn)
        target.parent.mkdir(parents=True, exist_ok=True)
        released = [item | {"image": images[item["question_id"]]} for item in items]
        target.write_text(json.dumps(released), encoding="utf-8")
    tree = read_yaml(root / "params.yaml")
    tree["splits"] |= {"kind": "released", "released": {"folder": "released", "max_lost": 0.0}}
    tree["retrain"] |= rule
    (root / "params.yaml").write_text(dump_yaml(tree), encoding="utf-8")


def test_new_questions_that_no_released_file_has_are_refused_with_their_number(root: Path) -> None:
    use_released(root)
    add_records(root, make_records(8, ["ct"], "new", ["disease-diagnosis"]))
    with pytest.raises(RefusedDropError, match=r"8 of 8 new questions \(ct 8\).*max_unused, now 0"):
        retrain(root)
    decision = read_decisions(root)[-1]
    assert (decision["outcome"], decision["unused_questions"]) == ("refused", {"ct": 8})


def test_with_a_limit_they_are_reported_and_recorded(root: Path) -> None:
    use_released(root, max_unused=1.0)
    add_records(root, make_records(8, ["ct"], "new", ["disease-diagnosis"]))
    messages: list[str] = []
    outcome = retrain(root, messages)
    assert outcome.decision is not None
    assert outcome.decision["unused_questions"] == {"ct": 8}
    (line,) = (line for line in messages if line.startswith("warning: 8 of 8 new questions"))
    assert "splits.kind to grouped" in line
    assert "not used: ct 8." in markdown(outcome.decision)
