"""DVC's graph: dependencies, order and selection of stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.dvc_api.graph import read_graph
from stages.core.errors import InputError
from stages.core.params import load_params
from tests.flows.tiny import REPOSITORY, make_workspace


def test_the_pipeline_is_read_with_its_dependencies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # names must not depend on the working directory
    graph = read_graph(REPOSITORY)
    checkpoints = load_params(REPOSITORY / "params.yaml").checkpoints
    assert {name for name in graph.stages if name.startswith("train@")} == {
        f"train@{key}" for key in checkpoints
    }
    order = list(graph.stages)
    assert order[0] in ("data.dvc", "base")
    assert order[-1] == "report"
    for name, needs in graph.needs.items():
        assert all(order.index(each) < order.index(name) for each in needs)
    assert graph.needs["download"] == {"data.dvc"}
    assert {"base", "splits", "resize@ct"} <= graph.needs["train@ct"]
    assert "resize@mri" not in graph.upstream(["train@ct"]) - graph.upstream(["splits"])
    train = graph.stages["train@ct"]
    assert (train.gpus, train.minutes > 0, train.group) == (1, True, "train")
    assert "models/ct" in train.outs
    assert "stages/train.py" in train.deps
    assert graph.downstream(["resize@ct"]) >= {"splits", "train@ct", "evaluate@ct", "report"}


def test_stages_are_selected_by_name_group_or_glob(tmp_path: Path) -> None:
    graph = read_graph(make_workspace(tmp_path))
    assert graph.select(["train"]) == graph.select(["train@*"]) == {"train@a", "train@b", "train@c"}
    assert graph.select(["*@a", "report"]) == {"train@a", "evaluate@a", "report"}
    with pytest.raises(InputError, match="'trian'; there are: split, "):
        graph.select(["train", "trian"])


def test_an_unreadable_pipeline_is_named(tmp_path: Path) -> None:
    make_workspace(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: }}", encoding="utf-8")
    with pytest.raises(InputError, match=f"DVC cannot read the pipeline in {tmp_path}"):
        read_graph(tmp_path)
    with pytest.raises(InputError, match="DVC cannot read the pipeline in /"):
        read_graph(Path("/"))
