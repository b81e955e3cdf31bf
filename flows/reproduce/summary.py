"""Outcomes of a run: their summary, the error if one is missing, and what is printed of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun, MissingResult

from flows.prefect_api import artifacts
from flows.prefect_api.client import require_server
from flows.scheduling.schedule import SUCCESSFUL, StageResult, StagesFailedError
from flows.scheduling.slots import cpu_threads
from stages.core.cores import available_cores
from stages.core.distributed.matrix_product import measure_in_subprocess

_COMPARABLE_SECONDS: Final = 60.0
"""Runs from this time on are worth comparing between machines."""


@dataclass(frozen=True)
class Summary:
    """Outcome of each stale stage in graph order; `clean`: no target is stale afterwards."""

    results: tuple[StageResult, ...]
    clean: bool


def raise_if_incomplete(summary: Summary) -> None:
    """StagesFailedError if anything is not up to date."""
    skipped = [result.name for result in summary.results if result.state == "skipped"]
    failures = [
        result for result in summary.results if result.state not in (*SUCCESSFUL, "skipped")
    ]
    if failures or skipped:
        lines = [f"{len(failures)} of {len(summary.results)} stages failed:"]
        lines += [f"- {result.message.splitlines()[0]}" for result in failures]
        if skipped:
            lines.append(f"Not run because of that: {', '.join(skipped)}")
        codes = [result.code for result in failures if result.code is not None]
        raise StagesFailedError("\n".join(lines), codes)
    if not summary.clean:
        raise StagesFailedError(
            "all stages succeeded, but `dvc status` is not clean: a file was changed meanwhile;"
            " re-run"
        )


def summarize(run_flow: Callable[[], State[Summary]]) -> int:
    """Run a flow and print each stage's outcome, or the failures; the exit code.

    `run_flow` returns the final state. Raises the error of a flow that failed for another reason
    than a failed stage.
    """
    require_server()
    state = run_flow()
    try:
        summary = state.result()
    except StagesFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (MissingResult, FailedRun):
        # the server, asked twice after a slow answer, returns its copy of the state: without result
        return _print_state(state)
    artifacts.print_summary(summary.results)
    return 0


def print_time(seconds: float) -> None:
    """Print the time of a run; of a long one also how fast this machine is, to compare with."""
    cores = available_cores()
    print(f"Total: {seconds / 60:.1f} min on {cores} cores")
    threads = cpu_threads(Path.cwd())
    if seconds >= _COMPARABLE_SECONDS and threads is not None:
        print(f"This machine: {measure_in_subprocess(threads) or 'matrix products not measured'}")


def _print_state(state: State[Any]) -> int:
    if state.is_completed():
        print(f"{state.name}: the outcome of each stage is in Prefect's dashboard and in the log")
        return 0
    print(f"error: {state.message}", file=sys.stderr)
    return 1
