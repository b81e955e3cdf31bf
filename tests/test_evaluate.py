"""Stage evaluate on a small workspace: one row a question, the same however it is batched."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from stages import evaluate, layout
from stages.errors import InputError
from stages.grpo.generate import Answers
from stages.grpo.kept_answers import KeptAnswers
from tests.workspaces import small_workspace


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_workspace(tmp_path, images_a_modality=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_evaluate(monkeypatch: pytest.MonkeyPatch, checkpoint: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", checkpoint])
    evaluate.main()


def test_the_base_answers_every_test_question_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_evaluate(monkeypatch, "base")
    table = pd.read_parquet(layout.predictions("base"))
    assert list(table.columns) == evaluate.SCHEMA.names
    assert len(table) == 8 * 6
    assert table["question_id"].is_unique
    assert table["question_id"].is_monotonic_increasing
    assert table["modality_test"].all()
    assert table["task_test"].all()
    assert (table["correct"] == (table["answer"] == table["gold"])).all()
    assert (table["completion_tokens"] > 0).all()


def test_answers_do_not_depend_on_the_batch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    text = (root / "params.yaml").read_text(encoding="utf-8")
    for size in (16, 5):
        (root / "params.yaml").write_text(text.replace("batch_size: 16", f"batch_size: {size}"), encoding="utf-8")
        run_evaluate(monkeypatch, "base")
        outputs.append(pd.read_parquet(layout.predictions("base"))["output"].tolist())
    assert outputs[0] == outputs[1]


def test_a_checkpoint_is_tested_on_its_own_axis(root: Path) -> None:
    first = evaluate.test_questions("all", "grouped")[0]
    removed, path = first["question_id"], layout.split("task", first["question_type"], "test", "grouped")
    path.write_text(path.read_text(encoding="utf-8").replace(removed, "other"), encoding="utf-8")
    modality = {item["question_id"]: item for item in evaluate.test_questions("modality", "grouped")}
    task = {item["question_id"]: item for item in evaluate.test_questions("task", "grouped")}
    assert removed in modality
    assert not modality[removed]["task_test"]
    assert removed not in task
    assert task["other"]["task_test"]
    assert not task["other"]["modality_test"]


def test_an_untrained_checkpoint_is_named_with_the_command_that_trains_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"models/ct is missing: run `dvc repro train@ct`"):
        run_evaluate(monkeypatch, "ct")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "provenance.json is missing"), ("", "provenance.json is not JSON"), ("[]", r"provenance.json holds no provenance but \[\]")],
)
def test_a_checkpoint_that_does_not_say_where_it_comes_from_is_refused_before_it_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    path = layout.model("base") / "provenance.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    (layout.model("base") / "model.safetensors").unlink()  # not opened yet
    with pytest.raises(InputError, match=rf"models/base/{message}.*: `dvc repro --single-item --force base`"):
        run_evaluate(monkeypatch, "base")


def test_an_image_that_does_not_open_is_named_and_nothing_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (layout.images("oct") / "0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"data/images/oct/0.png is no picture that can be opened"):
        run_evaluate(monkeypatch, "base")
    assert not layout.predictions("base").exists()


def test_every_question_is_asked_of_a_black_picture_and_of_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_workspace(tmp_path, images_a_modality=3)
    monkeypatch.chdir(tmp_path)
    run_evaluate(monkeypatch, "base")
    table = pd.read_parquet(layout.predictions("base"))
    assert (table["shuffled_image"] != table["image"]).all()
    assert (table["shuffled_image"].map(lambda path: Path(path).parent.name) == table["modality"]).all()
    pairs = table[["image", "shuffled_image"]].drop_duplicates()
    assert pairs["image"].is_unique
    assert set(pairs["image"]) == set(pairs["shuffled_image"]), "every picture is lent once"
    assert (table["blank_image"] == "").all()
    for variant in evaluate.ABLATIONS:
        assert (table[f"{variant}_correct"] == (table[f"{variant}_answer"] == table["gold"])).all()
    assert (table["shuffled_output"] != table["output"]).any()
    assert (table["blank_output"] != table["output"]).any()


def test_ablations_can_be_turned_off_and_change_no_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_evaluate(monkeypatch, "base")
    with_ablations = pd.read_parquet(layout.predictions("base"))
    assert with_ablations["shuffled_output"].isna().all(), "one picture a modality has none to be exchanged with"
    text = (root / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(text.replace("ablations: true", "ablations: false"), encoding="utf-8")
    run_evaluate(monkeypatch, "base")
    without = pd.read_parquet(layout.predictions("base"))
    assert without["blank_output"].isna().all()
    assert without["output"].equals(with_ablations["output"])


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_evaluate(monkeypatch, "base")
    whole = pq.read_table(layout.predictions("base"))
    layout.predictions("base").unlink()
    made: list[int] = []
    add = KeptAnswers.add

    def stop(kept: KeptAnswers, answers: Answers) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(answers.completions))
        add(kept, answers)

    monkeypatch.setattr(KeptAnswers, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        run_evaluate(monkeypatch, "base")
    assert not layout.predictions("base").exists()
    anew: list[int] = []
    monkeypatch.setattr(KeptAnswers, "add", lambda kept, answers: (anew.append(len(answers.completions)), add(kept, answers)))
    run_evaluate(monkeypatch, "base")
    assert sum(made) + sum(anew) == 2 * len(whole), "each question of its picture and of a black one, and none twice"
    assert pq.read_table(layout.predictions("base")).equals(whole)
    assert not (layout.SCRATCH / "evaluate" / "base").exists(), "nothing is left to go on with"


@pytest.mark.parametrize("changed", ["params", "checkpoint", "picture", "question"])
def test_answers_to_anything_else_are_never_taken_up(root: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    def stop(kept: KeptAnswers, answers: Answers) -> None:
        add(kept, answers)
        raise KeyboardInterrupt

    add = KeptAnswers.add
    monkeypatch.setattr(KeptAnswers, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        run_evaluate(monkeypatch, "base")
    (before,) = (layout.SCRATCH / "evaluate" / "base").iterdir()
    if changed == "params":
        text = (root / "params.yaml").read_text(encoding="utf-8")
        (root / "params.yaml").write_text(text.replace("batch_size: 16", "batch_size: 15"), encoding="utf-8")
    elif changed == "checkpoint":
        path = layout.model("base") / "generation_config.json"
        path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    elif changed == "picture":
        shutil.copy(layout.images("ct") / "0.png", layout.images("mri") / "0.png")
    else:
        for path in Path().glob("data/splits/**/*.json"):
            path.write_text(path.read_text(encoding="utf-8").replace('"dataset": "Phantom"', '"dataset": "Other"'), encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        run_evaluate(monkeypatch, "base")
    (after,) = (layout.SCRATCH / "evaluate" / "base").iterdir()
    assert before.name != after.name


def test_two_processes_give_the_rows_of_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_evaluate(monkeypatch, "base")
    alone = pd.read_parquet(layout.predictions("base"))
    monkeypatch.setenv("MED_R1_PROCESSES", "2")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    run_evaluate(monkeypatch, "base")
    assert pd.read_parquet(layout.predictions("base"))["output"].equals(alone["output"])
