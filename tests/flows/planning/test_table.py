"""Plan as a table and a summary line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flows.planning.model import Estimate, Plan, Step
from flows.planning.table import MAX_REASON_LENGTH, print_plan, sum_up
from flows.scheduling.durations import format_duration


def make(devices: bool, *slots: str, why: str = "grpo.beta modified") -> Plan:
    steps = (
        Step("train@ct", "", why, {}, (), 1, 0.0, 3600.0, "recorded", 1, 7 * 2**20),
        Step(
            name="evaluate@ct",
            description="",
            why="after train@ct",
            reasons={},
            after=("train@ct",),
            wave=2,
            start=3600.0,
            seconds=600.0,
            estimate="meta",
            gpus=1,
            bytes=None,
        ),
    )
    return Plan(
        steps=steps,
        up_to_date=("splits",),
        slots=slots,
        devices=devices,
        seconds=4200.0,
        gpu_hours=7 / 6,
        bytes=7 * 2**20,
        bytes_free=58 * 2**30,
        warnings=("mind [this]",),
        notes=("1 of 2 from meta",),
    )


def test_the_summary_names_stages_time_slots_gpu_hours_and_disk() -> None:
    assert (
        sum_up(make(True, "0", "1"))
        == "2 of 3 stages would run, in a time unknown here, as 1 never ran; at full scale"
        " 70 min on 2 GPUs: 1.17 GPU-hours; 7.0 MiB written, 58.0 GiB free"
    )
    assert "on 1 slot: 1.17 hours in slots, no GPU here" in sum_up(make(False, "cpu-0"))
    shared = replace(make(True, "0 (1 of 2)", "0 (2 of 2)"), slots_per_gpu=2)
    assert "70 min on 2 slots, 2 per GPU: 1.17 GPU-hours" in sum_up(shared)


@pytest.mark.parametrize(
    ("estimate", "time"), [("recorded", "in 70 min on"), ("run-cache", "in about 70 min on")]
)
def test_a_time_is_known_where_all_stages_have_run(estimate: Estimate, time: str) -> None:
    plan = make(True, "0")
    steps = tuple(replace(step, estimate=estimate) for step in plan.steps)
    assert time in sum_up(replace(plan, steps=steps))


def test_the_table_has_one_row_per_stage_and_ends_with_the_summary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = make(True, "0", why="[bold]a " + "long " * 50)
    print_plan(plan)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["train@ct", "now", "60", "min", "1"]
    assert lines[2].split()[:6] == ["evaluate@ct", "+60", "min", "10", "min", "*"]
    assert "[bold]a long" in lines[1]
    assert "long ..." in lines[1]
    assert lines[1].count("long") < MAX_REASON_LENGTH / 5
    assert lines[3:] == [
        "Up to date: splits",
        "warning: mind [this]",
        "* never recorded here; by dvc.yaml: those of a 2B model and OmniMedVQA on a GPU",
        "1 of 2 from meta",
        sum_up(plan),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 s"), (48.4, "48 s"), (720.0, "12 min"), (11100.0, "3 h 05 min")]
)
def test_durations_are_human_readable(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
