"""Plan as a table: one row per stage, and a summary line."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console
from rich.table import Table

from flows.dvc_api.stale_reasons import name_groups
from flows.planning.model import Plan, Step
from flows.scheduling.durations import format_duration
from stages.core.machine import format_bytes

MAX_REASON_LENGTH: Final = 110
"""Characters of a reason in the table; JSON has all of it."""
FULL_SCALE: Final = "those of a 2B model and OmniMedVQA on a GPU"
"""What the durations in `meta` of dvc.yaml are for."""
_WIDTH: Final = 200
"""Columns if standard output is no terminal."""


def print_plan(plan: Plan) -> None:
    """Print a plan: stages to run, stages up to date, warnings, notes and totals."""
    console = Console(
        width=None if sys.stdout.isatty() else _WIDTH, highlight=False, soft_wrap=False
    )
    if plan.steps:
        console.print(_table(plan))
    if plan.up_to_date:
        console.print(f"Up to date: {name_groups(plan.up_to_date)}")
    for warning in plan.warnings:
        console.print(f"[bold yellow]warning[/]: {_escape(warning)}")
    if any(step.estimate == "meta" for step in plan.steps):
        console.print(f"* never recorded here; by dvc.yaml: {FULL_SCALE}", style="dim")
    for note in plan.notes:
        console.print(_escape(note), style="dim")
    console.print(sum_up(plan), style="bold")


def sum_up(plan: Plan) -> str:
    """One-line summary of a plan.

    "31 of 42 stages would run, in 3 h 10 min on 2 GPUs: 5.8 GPU-hours; 1.2 GiB written, 58.0 GiB
    free". A time is stated as known only if all stages have run here.
    """
    if not plan.steps:
        return f"Nothing would run: all {len(plan.up_to_date)} stages are up to date"
    has_gpus = plan.devices and plan.slots_per_gpu == 1
    units = ("GPU" if has_gpus else "slot") + ("s" if len(plan.slots) > 1 else "")
    if plan.slots_per_gpu > 1:
        units += f", {plan.slots_per_gpu} per GPU"
    hours = "GPU-hours" if plan.devices else "hours in slots, no GPU here"
    exact = all(step.estimate == "recorded" for step in plan.steps)
    time = f"{format_duration(plan.seconds)} on {len(plan.slots)} {units}"
    cost = f"{plan.gpu_hours:.2f} {hours}"
    if unrecorded := sum(step.estimate == "meta" for step in plan.steps):
        effort = f"in a time unknown here, as {unrecorded} never ran; at full scale {time}: {cost}"
    else:
        effort = f"in {'' if exact else 'about '}{time}: {cost}"
    return (
        f"{len(plan.steps)} of {len(plan.steps) + len(plan.up_to_date)} stages would run,"
        f" {effort}; {format_bytes(plan.bytes)} written, {format_bytes(plan.bytes_free)} free"
    )


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    for head in ("starts", "takes", "GPUs", "writes"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    wave = 0
    for step in sorted(plan.steps, key=lambda step: (step.wave, step.start)):
        if step.wave != wave and wave:
            table.add_section()
        wave = step.wave
        table.add_row(
            step.name,
            "now" if step.start == 0 else f"+{format_duration(step.start)}",
            _duration(step),
            str(step.gpus or ""),
            "?" if step.bytes is None else format_bytes(step.bytes),
            _escape(_shorten(step.why)),
        )
    return table


def _duration(step: Step) -> str:
    if step.estimate == "run-cache":
        return "from cache"
    mark = " *" if step.estimate == "meta" else ""
    return format_duration(step.seconds) + mark


def _shorten(why: str) -> str:
    if len(why) <= MAX_REASON_LENGTH:
        return why
    return why[: MAX_REASON_LENGTH - 4].rpartition(" ")[0].rstrip(";,") + " ..."


def _escape(text: str) -> str:
    """Text without markup for rich."""
    return text.replace("[", r"\[")
