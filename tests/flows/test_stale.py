"""Stages that an edit of code makes stale, according to DVC."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.dvc_api.client import read_status
from tests.flows.tiny import REPOSITORY, init_repository, run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An up-to-date pipeline whose stages depend only on the code of the real ones."""
    root = tmp_path_factory.mktemp("pipeline")
    pipeline = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))[
        "stages"
    ]
    stages = {}
    for name, entry in pipeline.items():
        code = [dep for dep in entry.get("do", entry)["deps"] if dep.startswith("stages/")]
        stages[name] = {"cmd": f"echo > {name}.txt", "deps": code, "outs": [f"{name}.txt"]}
    (root / "dvc.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    shutil.copytree(
        REPOSITORY / "stages", root / "stages", ignore=shutil.ignore_patterns("__pycache__")
    )
    init_repository(root)
    shutil.copy(REPOSITORY / ".dvcignore", root)
    run("dvc", "repro", cwd=root)
    assert read_status(root) == {}
    return root


@pytest.mark.parametrize(
    ("edited", "stale"),
    [
        # rewards use the extraction rule, so training depends on it
        ("answers/extraction.py", {"report", "train"}),
        ("reporting/labels.py", {"report"}),
        ("evaluate.py", {"evaluate"}),
    ],
)
def test_an_edit_makes_only_the_stages_that_use_the_code_stale(
    root: Path, edited: str, stale: set[str]
) -> None:
    path = root / "stages" / edited
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}# edited\n", encoding="utf-8")
    status = read_status(root)
    path.write_text(before, encoding="utf-8")
    assert status.keys() == stale


def test_importing_a_module_makes_nothing_stale(root: Path) -> None:
    for package in ("scoring", "reporting", "grpo", "corpus/dataset"):
        cache = root / "stages" / package / "__pycache__"
        cache.mkdir()
        (cache / "module.cpython-311.pyc").write_bytes(b"bytecode")
    assert read_status(root) == {}
