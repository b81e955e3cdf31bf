"""A plan in words."""

from __future__ import annotations

import pytest

from flows.planning.model import Plan, Step
from flows.planning.table import WHY, format_duration, print_plan, sum_up


def make(devices: bool, *slots: str, why: str = "grpo.beta modified") -> Plan:
    steps = (
        Step("train@ct", "", why, {}, (), 1, 0.0, 3600.0, "recorded", 1, 7 * 2**20),
        Step(
            "evaluate@ct",
            "",
            "after train@ct",
            {},
            ("train@ct",),
            2,
            3600.0,
            600.0,
            "meta",
            1,
            None,
        ),
    )
    return Plan(
        steps,
        ("splits",),
        slots,
        devices,
        4200.0,
        7 / 6,
        7 * 2**20,
        58 * 2**30,
        ("mind [this]",),
        ("1 of 2 from meta",),
    )


def test_the_sum_says_stages_time_slots_gpu_hours_and_disk() -> None:
    assert (
        sum_up(make(True, "0", "1"))
        == "2 of 3 stages would run, in about 70 min on 2 GPUs: 1.17 GPU-hours; 7.0 MiB written,"
        " 58.0 GiB free"
    )
    assert "on 1 slot: 1.17 hours in slots, no GPU here" in sum_up(make(False, "cpu-0"))


def test_a_table_has_a_row_a_stage_and_ends_with_the_sum(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = make(True, "0", why="[bold]a " + "long " * 50)
    print_plan(plan)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["train@ct", "now", "60", "min", "1"]
    assert lines[2].split()[:6] == ["evaluate@ct", "+60", "min", "10", "min", "*"]
    assert "[bold]a long" in lines[1]
    assert "long ..." in lines[1]
    assert lines[1].count("long") < WHY / 5
    assert lines[3:] == [
        "Up to date: splits",
        "warning: mind [this]",
        "* 1 of 2 from meta",
        sum_up(plan),
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "0 s"), (48.4, "48 s"), (720.0, "12 min"), (11100.0, "3 h 05 min")]
)
def test_durations_are_said_for_people(seconds: float, said: str) -> None:
    assert format_duration(seconds) == said
