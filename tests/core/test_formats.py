"""Whatever in core decides bytes of results has a version, and the stages that write them name it.

Stages do not depend on `stages/core`: a change there makes nothing stale. One that changes bytes
must, so it needs a new FORMAT, and the stage modules that name the old one have to be edited.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Any

import pytest

from stages.core.outputs import FORMAT, write_json, write_json_lines
from tests.conftest import ROOT
from tests.test_dvc_yaml import closure, imported_names, stage_module

STAGES = (
    "download",
    "resize",
    "splits",
    "prior",
    "base",
    "train",
    "report",
)  # not Parquet's evaluate
DIGESTS = {1: "9c210916911042985fb7df0f0d5852a43b257c459e8c9ab11e4e606579989182"}
VALUES: list[dict[str, Any]] = [
    {"b": [1, 2.5, None, True], "a": 'Röntgen \u2028 "x"', "c": {}},
    {"empty": []},
]


def writes_json(module: Path) -> bool:
    """Whether a module, or one that it imports, calls the writers of core."""
    writers = {"stages.core.outputs.write_json", "stages.core.outputs.write_json_lines"}
    return any(writers & set(imported_names(path)) for path in {module} | closure(module))


def named_format(module: Path) -> int | None:
    """The value of OUTPUTS_FORMAT in a stage module; None if it has none."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "OUTPUTS_FORMAT":
            return int(ast.literal_eval(node.value or ast.Constant(None)))
    return None


def test_other_bytes_need_another_format(tmp_path: Path) -> None:
    write_json(tmp_path / "values.json", VALUES)
    write_json_lines(tmp_path / "values.jsonl", VALUES)
    digest = hashlib.sha256()
    for path in sorted(tmp_path.iterdir()):
        digest.update(path.read_bytes())
    assert digest.hexdigest() == DIGESTS[FORMAT], "other bytes: raise FORMAT, add its digest here"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_the_format_of_its_json(stage: str) -> None:
    module = ROOT / stage_module(stage)
    assert named_format(module) == (FORMAT if writes_json(module) else None)
