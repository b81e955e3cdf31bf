"""One-line explanations of why a stage is stale."""

from __future__ import annotations

import pytest

from flows.dvc_api.client import Reasons
from flows.dvc_api.graph import Graph, Stage
from flows.dvc_api.stale_reasons import explain_staleness, name_groups

OUTS = {
    "splits": ("data/splits",),
    "base": ("models/base",),
    "train@ct": ("models/ct", "training/ct.csv", "training/ct.json"),
}
GRAPH = Graph(
    {name: Stage(name, "", (), outs, 0, 1.0) for name, outs in OUTS.items()},
    {name: frozenset() for name in OUTS},
)


@pytest.mark.parametrize(
    ("reasons", "after", "explanation"),
    [
        ({"changed deps": {"params.yaml": {"grpo.beta": "modified"}}}, [], "grpo.beta modified"),
        (
            {"changed deps": {"stages/train.py": "modified"}},
            ["base"],
            "stages/train.py modified; after base",
        ),
        # a dependency below, and one above, an output of a stale stage
        ({"changed deps": {"data/splits/grouped/ct": "deleted"}}, ["splits"], "after splits"),
        ({"changed deps": {"models": "modified"}}, ["base"], "after base"),
        (
            {"changed deps": {"models/base2": "modified"}},
            ["base"],
            "models/base2 modified; after base",
        ),
        ({"changed outs": dict.fromkeys(OUTS["train@ct"], "deleted")}, [], "3 outputs deleted"),
        ({"changed outs": {"models/ct": "modified"}}, [], "output models/ct modified"),
        ({"changed command": {}}, [], "changed command"),
        ({}, ["base", "splits"], "after base, splits"),
    ],
)
def test_own_changes_are_named_and_consequences_are_not(
    reasons: Reasons, after: list[str], explanation: str
) -> None:
    assert explain_staleness(GRAPH, reasons, after, has_run=True) == explanation


def test_a_stage_that_never_ran_has_no_changes() -> None:
    reasons: Reasons = {
        "changed deps": {"data/corpus": "new"},
        "changed outs": {"models/ct": "deleted"},
    }
    assert explain_staleness(GRAPH, reasons, [], has_run=False) == "never run here"


def test_many_names_of_a_group_are_counted() -> None:
    assert (
        name_groups(["base", "train@ct", *(f"evaluate@{number}" for number in range(4))])
        == "base, train@ct, evaluate (4)"
    )
