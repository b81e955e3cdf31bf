"""The code that decides a stage's result, as dvc.yaml lists it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.core.code_version import stage_code
from stages.core.errors import InputError
from stages.policy.fingerprint import files_hash
from tests.workspaces import REPOSITORY

PIPELINE = """
stages:
  train:
    foreach: ${checkpoints}
    do:
      cmd: python -m stages.train ${key}
      deps: ["${item.start}", infra/deepspeed, stages/train.py, stages/grpo]
  report:
    cmd: python -m stages.report
    deps: [predictions, stages/report.py]
  fetch:
    cmd: "true"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (
        "train.py",
        "report.py",
        "grpo/trainer.py",
        "grpo/deep/er.py",
        "grpo/notes.md",
        "grpo/__pycache__/trainer.pyc",
    ):
        (tmp_path / "stages" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stages" / name).write_text("1", encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    return tmp_path


def test_files_and_the_python_files_of_folders_are_found(checkout: Path) -> None:
    found = [path.relative_to(checkout).as_posix() for path in stage_code("train", checkout)]
    assert found == ["stages/grpo/deep/er.py", "stages/grpo/trainer.py", "stages/train.py"]
    assert stage_code("report", checkout) == [checkout / "stages/report.py"]


def test_without_a_pipeline_the_missing_file_is_named(checkout: Path) -> None:
    (checkout / "dvc.yaml").unlink()
    with pytest.raises(
        InputError, match=r"dvc\.yaml is missing: run stages from the root of a checkout"
    ):
        stage_code("train", checkout)


@pytest.mark.parametrize("stage", ["fetch", "tarin"])
def test_a_stage_without_deps_is_named(checkout: Path, stage: str) -> None:
    with pytest.raises(InputError, match=f"lists no deps of a stage '{stage}'"):
        stage_code(stage, checkout)


@pytest.mark.parametrize("text", ["stages: [", "", "stages: 3"])
def test_a_damaged_pipeline_is_named(checkout: Path, text: str) -> None:
    (checkout / "dvc.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"dvc\.yaml"):
        stage_code("train", checkout)


def test_a_dependency_that_is_missing_is_named(checkout: Path) -> None:
    (checkout / "stages/train.py").unlink()
    with pytest.raises(
        InputError, match=r"stages/train\.py is missing, a dependency of stage train"
    ):
        stage_code("train", checkout)


def test_state_is_kept_across_edits_of_code_that_its_stage_never_runs(tmp_path: Path) -> None:
    shutil.copytree(
        REPOSITORY / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)

    def hashes() -> dict[str, str]:
        return {stage: files_hash(stage_code(stage, tmp_path)) for stage in ("train", "evaluate")}

    def edited(name: str) -> set[str]:
        before = hashes()
        with (tmp_path / "stages" / name).open("a", encoding="utf-8") as file:
            file.write("# edited\n")
        return {stage for stage, each in hashes().items() if each != before[stage]}

    assert edited("corpus/records/table.py") == set()
    assert edited("answers/extraction.py") == {"train"}
    assert edited("generation/generate.py") == {"evaluate"}
    assert edited("policy/loading.py") == {"train", "evaluate"}
