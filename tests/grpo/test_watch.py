"""A training that learns nothing, or has become ten times slower, is reported once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.grpo.data.checks import check_completion_length
from stages.grpo.watch import PATIENCE, TrainingWatch
from stages.prompts.styles import Style
from tests.grpo.tiny import grpo_settings, processor

MAIN = SimpleNamespace(is_world_process_zero=True)


def log(callback: TrainingWatch, logs: dict[str, float], times: int = 1, state: Any = MAIN) -> None:
    names = {"truncated": "completions/clipped_ratio", "flat": "frac_reward_zero_std"}
    for _ in range(times):
        callback.on_log(None, state, None, {names[name]: value for name, value in logs.items()})


@pytest.mark.parametrize(
    ("logs", "expected"),
    [
        ({"truncated": 1.0}, "grpo.max_completion_length = 12"),
        ({"truncated": 0.9}, "grpo.max_completion_length = 12"),
        ({"flat": 1.0}, "grpo.rewards"),
    ],
)
def test_a_symptom_of_many_steps_is_reported_once(
    logs: dict[str, float], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = TrainingWatch("ct", 12)
    log(callback, logs, PATIENCE - 1)
    log(callback, dict.fromkeys(logs, 0.5))
    log(callback, logs, PATIENCE - 1)
    assert capsys.readouterr().err == ""
    log(callback, logs, 3 * PATIENCE)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ct: warning: ")
    assert expected in line


def test_other_processes_and_other_methods_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    log(TrainingWatch("ct", 12), {"flat": 1.0}, 50, SimpleNamespace(is_world_process_zero=False))
    log(TrainingWatch("ct", None), {"flat": 1.0, "truncated": 1.0}, 50)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("limit", [12, None])
@pytest.mark.parametrize("main", [True, False])
def test_a_number_that_is_not_finite_stops_all_processes(
    name: str, value: float, limit: int | None, main: bool
) -> None:
    callback = TrainingWatch("ct", limit)
    state = SimpleNamespace(is_world_process_zero=main, global_step=30)
    callback.on_log(None, state, None, {"loss": 0.0, "grad_norm": 1.5})
    with pytest.raises(InputError, match=rf"ct: {name} is (nan|inf) at step 30, .*learning rate"):
        callback.on_log(None, state, None, {"loss": 0.0, "grad_norm": 1.5} | {name: value})


@pytest.mark.parametrize(("factor", "lines"), [(9, 0), (11, 1)])
def test_steps_ten_times_slower_than_the_first_are_reported(
    factor: int, lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("stages.grpo.watch.time.monotonic", lambda: now)
    callback = TrainingWatch("ct", 12)
    for seconds in [60.0, *[1.0] * 10, float(factor), *[1.0] * 5, *[float(factor)] * 8]:
        callback.on_step_begin(None, MAIN, None)
        now += seconds
        callback.on_step_end(None, MAIN, None)
    written = capsys.readouterr().err.splitlines()
    assert len(written) == lines
    assert all("11.0 s instead of 1.0 s" in line and "OMP_WAIT_POLICY" in line for line in written)


@pytest.mark.parametrize("style", ["think", "no-think", "think-after"])
def test_a_limit_that_no_completion_in_the_form_can_meet_is_refused(style: Style) -> None:
    check_completion_length(processor(), grpo_settings(max_completion_length=64), style)
    with pytest.raises(InputError, match=rf"max_completion_length = 2: with prompt\.style {style}"):
        check_completion_length(processor(), grpo_settings(max_completion_length=2), style)
