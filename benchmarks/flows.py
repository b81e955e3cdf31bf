"""Flow benchmark: overhead of the reproduce flow, and whether parallel stages are all recorded.

    python -m benchmarks.flows [--quick] [--rounds N] [--json FILE]

In a small workspace with real DVC and trivial commands. Rounds: a parameter makes 13 stages stale,
which run at once; counted are the stages recorded in dvc.lock. Cost: a pipeline of 2 x 13 + 2
stages that sleep, one at a time, by plain `dvc repro` and by the flow in turn; overhead per stage
in seconds. The flow starts its own Prefect API, on SQLite.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.command_line import build_parser
from stages.core.cores import available_cores
from stages.core.outputs import write_json
from stages.core.provenance import collect_provenance
from stages.core.yaml_files import read_yaml
from tests.flows.tiny import locked, make_workspace, run

KEYS = [f"c{number:02d}" for number in range(13)]
SLEEP = 1.0
"""Seconds that a stage sleeps in the measurement of cost."""


def main() -> None:
    """Measure, print, write the JSON."""
    parser = build_parser(
        "flows", __doc__, quick="1 round, and cost in one repeat of 2 checkpoints"
    )
    parser.add_argument("--rounds", type=int, help="rounds of 13 stages at once (default: 20)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="flows-"))
    os.environ |= {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    os.environ.pop("PREFECT_API_URL", None)
    logging.getLogger("prefect").setLevel(logging.ERROR)
    report = Console().print
    count = arguments.rounds or (1 if arguments.quick else 20)
    keys = KEYS[:2] if arguments.quick else KEYS
    repeats = 1 if arguments.quick else 3
    try:
        recorded, stages = run_rounds(folder / "rounds", count, report)
        costs = measure_cost(folder / "cost", keys, repeats, report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(f"{recorded} of {stages} stages recorded")
    report(f"overhead per stage: {costs['flow']:.2f} s by the flow, {costs['dvc']:.2f} s by dvc")
    if arguments.json:
        result = {
            "recorded": recorded,
            "asked": stages,
            "overhead_seconds_a_stage": costs,
            "cores": available_cores(),
            "provenance": collect_provenance({}),
        }
        write_json(arguments.json, result)


def run_rounds(root: Path, count: int, report: Any) -> tuple[int, int]:
    """Numbers of stages recorded in dvc.lock with their round's parameter, and of all stages.

    Reports whether `dvc status` is clean after each round.
    """
    from flows.reproduce.flow import reproduce

    make_workspace(root, KEYS)
    reproduce(only=["split"], root=str(root))
    recorded = 0
    for number in range(1, count + 1):
        (root / "params.yaml").write_text(f"rate: {number}\n", encoding="utf-8")
        start = time.monotonic()
        summary = reproduce(only=["train"], slots=len(KEYS), root=str(root))
        stages = read_yaml(root / "dvc.lock")["stages"]
        current = 0
        for key in KEYS:
            params = stages.get(f"train@{key}", {}).get("params", {})
            current += params.get("params.yaml", {}).get("rate") == number
        ran = sum(result.state == "ran" for result in summary.results)
        recorded += current
        clean = "clean" if summary.clean else "NOT clean"
        report(
            f"round {number} of {count}: {ran} ran, {current} recorded, status {clean},"
            f" {time.monotonic() - start:.1f} s"
        )
    return recorded, count * len(KEYS)


def measure_cost(root: Path, keys: list[str], repeats: int, report: Any) -> dict[str, float]:
    """Median overhead per stage in seconds, beyond its sleep, of `dvc repro` and the flow."""
    from flows.reproduce.flow import reproduce

    seconds: dict[str, list[float]] = {"dvc": [], "flow": []}
    sleeping = 2 * len(keys)
    stages = sleeping + 2
    for number in range(repeats):
        for way in seconds:
            workspace = make_workspace(root / f"{way}-{number}", keys)
            script = workspace / "work.sh"
            with script.open("a", encoding="utf-8") as file:
                file.write(f"sleep {SLEEP}\n")
            start = time.monotonic()
            if way == "dvc":
                run("dvc", "repro", cwd=workspace)
            else:
                reproduce(slots=1, root=str(workspace))
            elapsed = time.monotonic() - start
            seconds[way].append((elapsed - SLEEP * sleeping) / stages)
            report(
                f"{way}: {elapsed:.1f} s for {stages} stages, {SLEEP * sleeping:.0f} s of them"
                " asleep"
            )
            assert len(locked(workspace)) == stages
    return {way: statistics.median(each) for way, each in seconds.items()}


if __name__ == "__main__":
    main()
