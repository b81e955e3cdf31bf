"""Steps of a training as its profile runs it, and what does not fit into a GPU's memory."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.grpo_step import g_copies
from benchmarks.grpo_step.measure import WAYS, Bench, Plan
from benchmarks.grpo_step.row import measure_row, run_steps
from benchmarks.grpo_step.show import above_bounds, show
from benchmarks.grpo_step.training import (
    Training,
    measure_limit,
    measure_training,
    step_count,
    training_settings,
)
from stages.grpo import reference
from stages.grpo.drafts import Drafts
from tests.benchmarks.conftest import COMPLETION, GROUP

SHOWN = {
    "parameters": 1,
    "precision": "float32",
    "profile": None,
    "device": "cpu",
    "threads": 1,
    "prompts_per_step": 2,
    "repeats": 1,
    "peak_flops_per_second": 1e12,
    "peak_source": "assumed",
}
"""Of a result, what `show` prints besides its rows."""


def test_a_training_runs_as_its_profile_does(
    as_full: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = as_full.setting.grpo
    grpo = training_settings(as_full, 4, COMPLETION)
    for key in ("reference_steps", "loader_workers", "draft_nodes", "reuse_prompt_pass", "bf16"):
        assert getattr(grpo, key) == getattr(own, key), key
    assert (grpo.reference_steps, grpo.loader_workers) == (8, 2)
    assert step_count(grpo) == 8
    assert step_count(grpo.model_copy(update={"reference_steps": 3})) == 9
    assert step_count(grpo.model_copy(update={"reference_steps": 1})) == 8
    tables: list[int] = []
    build = reference.build_table

    def count_tables(model: Any, prompts: Any, *rest: Any) -> Any:
        tables.append(len(prompts))
        return build(model, prompts, *rest)

    updates: list[int] = []
    update = as_full.update

    def count_updates() -> None:
        updates.append(len(updates))
        update()

    monkeypatch.setattr(reference, "build_table", count_tables)
    monkeypatch.setattr(as_full, "update", count_updates)
    training = measure_training(as_full, 4, COMPLETION)
    assert len(updates) == 1 + 8
    assert tables == [16, 16], "two prompts of 8 steps, before the first step and in the last"
    assert (training["steps"], training["reference_steps"], training["loader_workers"]) == (8, 8, 2)
    assert (training["drafted"], training["forwards"]) == (1.0, 0.0)
    assert training["seconds"] > 0
    assert training["memory"]["total"] > 0
    assert multiprocessing.active_children() == []
    assert as_full.clock.by_part


def test_no_group_of_a_foreseen_training_is_scored_by_a_reference_pass_of_its_own(
    as_full: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(as_full, training_settings(as_full, 4, COMPLETION), foreseen=True)
    missing: list[list[int]] = []
    score = reference.ReferenceTable.score

    def record(table: Any, ids: Any, mask: Any) -> Any:
        result = score(table, ids, mask)
        missing.append(result[1])
        return result

    monkeypatch.setattr(reference.ReferenceTable, "score", record)
    with training.running() as step:
        step()
        step()
    assert missing == [[], []]


def test_the_memory_of_a_step_is_that_of_completions_at_the_limit(
    as_full: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = as_full.setting.grpo.model_copy(update={"max_completion_length": 21})
    monkeypatch.setattr(as_full, "setting", replace(as_full.setting, grpo=limited))
    lengths: list[int] = []
    learn = Drafts.learn

    def record(drafts: Any, completions: Any) -> None:
        completions = list(completions)
        lengths.extend(map(len, completions))
        learn(drafts, completions)

    monkeypatch.setattr(Drafts, "learn", record)
    result = measure_limit(as_full, 4)
    assert set(lengths) == {21}
    assert result["completion_tokens"] == 21
    assert result["total"] > 0
    assert result["outside"] == 0, "on a CPU the process's memory has all"


def test_a_profile_is_measured_as_a_training_too(
    as_full: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = as_full.setting.grpo.model_copy(update={"max_completion_length": 21})
    monkeypatch.setattr(as_full, "setting", replace(as_full.setting, grpo=limited))
    row = measure_row(as_full, 4, COMPLETION, 1e12, lambda _: None)
    ways = {*WAYS, "drafted", "training"}
    for key in ("seconds", "ms_per_prompt", "mfu", "flops_per_step", "peak_memory_bytes"):
        assert set(row[key]) == ways, key
    assert row["flops_per_step"]["training"] == row["flops_per_step"]["drafted"]
    assert row["does_not_fit"] == []
    assert row["memory_at_limit"]["completion_tokens"] == 21
    assert set(row["kernels"]) == ways
    show({**SHOWN, "rows": [row]})


def test_with_thoughts_only_ours_is_traced() -> None:
    assert Plan("tiny", (4,), (10,), 1, 1, {}, drafted=True).traced == (*WAYS, "drafted")
    assert Plan("tiny", (4,), (150,), 1, 1, {}, style="think").traced == ("shared",)


def test_a_number_of_prompts_that_does_not_fit_is_no_candidate(
    tiny: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Step:
        def __init__(self, prompts: int) -> None:
            self.prompts_per_pass = prompts

        def backward(self, examples: list[Any]) -> None:
            if len(examples) >= limit:
                raise torch.OutOfMemoryError

    monkeypatch.setattr(tiny, "update", lambda: None)
    limit = 2
    fastest: Any = tiny.fastest(Step)  # type: ignore[arg-type]
    assert fastest.prompts_per_pass == 1
    limit = 1
    assert tiny.fastest(Step) is None  # type: ignore[arg-type]


def test_ways_that_do_not_fit_are_named_and_the_others_measured(
    tiny: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError

    steps = tiny.steps

    def some_too_large(group: int, completion: int) -> Any:
        result = steps(group, completion)
        monkeypatch.setattr(result["trl"], "backward", out_of_memory)
        return result

    monkeypatch.setattr(tiny, "steps", some_too_large)
    monkeypatch.setattr(g_copies.GCopies, "backward", out_of_memory)
    row = measure_row(tiny, GROUP, COMPLETION, 1e12, lambda _: None)
    assert row["does_not_fit"] == ["g_copies", "trl"]
    assert set(row["seconds"]) == set(row["ms_per_prompt"]) == {"shared"}
    assert row["speedup_vs_trl"] is None
    assert above_bounds(row) == []
    show({**SHOWN, "rows": [row]})
    # one that fails later has no result either
    calls = iter(range(10))

    def second_fails(examples: Any) -> None:
        if next(calls) == 1:
            raise torch.OutOfMemoryError

    late = SimpleNamespace(backward=second_fails)
    times, memory = run_steps(tiny, {"shared": late, "trl": None, "g_copies": None}, "", print)  # type: ignore[dict-item]
    assert (len(times), len(memory)) == (0, 0)
    assert all(parameter.grad is None for parameter in tiny.policy.parameters())
