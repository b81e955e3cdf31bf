"""Flow benchmark: overhead of the reproduce flow, and whether parallel stages are all recorded.

    python -m benchmarks.flows [--quick] [--rounds N] [--json FILE]

In a small workspace of real DVC, whose commands cost nothing. Rounds: 13 stages at once, made stale
by a parameter, again and again; counted is what dvc.lock then holds. Cost: a pipeline of 2 x 13 + 2
stages that sleep, one at a time, by plain `dvc repro` and by the flow in turn; seconds over the
sleeping, a stage. Prefect's API is the flow's own, on SQLite.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from stages.core.outputs import write_json
from stages.core.provenance import collect_provenance
from stages.core.yaml_files import read_yaml
from tests.flows.tiny import locked, make_workspace, run

KEYS = [f"c{number:02d}" for number in range(13)]
SLEEP = 1.0
"""Seconds that a stage sleeps where cost is measured."""


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="2 rounds, and cost in one repeat of 4 checkpoints"
    )
    parser.add_argument("--rounds", type=int, help="rounds of 13 stages at once; 20")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="flows-"))
    os.environ |= {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    os.environ.pop("PREFECT_API_URL", None)
    logging.getLogger("prefect").setLevel(logging.ERROR)
    say = Console().print
    try:
        recorded, asked = rounds(folder / "rounds", given.rounds or (2 if given.quick else 20), say)
        costs = cost(
            folder / "cost", KEYS[:4] if given.quick else KEYS, 1 if given.quick else 3, say
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"{recorded} of {asked} stages recorded")
    say(
        f"a stage costs {costs['flow']:.2f} s over its command, {costs['dvc']:.2f} s by plain dvc"
        " repro"
    )
    if given.json:
        write_json(
            given.json,
            {
                "recorded": recorded,
                "asked": asked,
                "overhead_seconds_a_stage": costs,
                "cores": os.cpu_count(),
                "provenance": collect_provenance({}),
            },
        )


def rounds(root: Path, count: int, say: Any) -> tuple[int, int]:
    """Count the stages recorded in dvc.lock with their round's parameter, and the stages run.

    `dvc status` must be clean after each round.
    """
    from flows.reproduce import reproduce

    make_workspace(root, KEYS)
    reproduce(only=["split"], root=str(root))
    recorded = 0
    for number in range(1, count + 1):
        (root / "params.yaml").write_text(f"rate: {number}\n", encoding="utf-8")
        start = time.monotonic()
        summary = reproduce(only=["train"], slots=len(KEYS), root=str(root))
        stages = read_yaml(root / "dvc.lock")["stages"]
        held = sum(
            stages.get(f"train@{key}", {}).get("params", {}).get("params.yaml", {}).get("rate")
            == number
            for key in KEYS
        )
        ran = sum(result.state == "ran" for result in summary.results)
        recorded += held
        clean = "clean" if summary.clean else "NOT clean"
        say(
            f"round {number} of {count}: {ran} ran, {held} recorded, status {clean},"
            f" {time.monotonic() - start:.1f} s"
        )
    return recorded, count * len(KEYS)


def cost(root: Path, keys: list[str], repeats: int, say: Any) -> dict[str, float]:
    """Median overhead per stage in seconds, beyond its command's sleep.

    `dvc repro` and the flow.
    """
    from flows.reproduce import reproduce

    seconds: dict[str, list[float]] = {"dvc": [], "flow": []}
    stages = 2 * len(keys)  # those that sleep
    for number in range(repeats):
        for way in seconds:
            workspace = make_workspace(root / f"{way}-{number}", keys)
            script = workspace / "work.sh"
            script.write_text(
                script.read_text(encoding="utf-8") + f"sleep {SLEEP}\n", encoding="utf-8"
            )
            start = time.monotonic()
            if way == "dvc":
                run("dvc", "repro", cwd=workspace)
            else:
                reproduce(slots=1, root=str(workspace))
            taken = time.monotonic() - start
            seconds[way].append((taken - SLEEP * stages) / (stages + 2))
            say(
                f"{way}: {taken:.1f} s for {stages + 2} stages, {SLEEP * stages:.0f} s of them"
                " asleep"
            )
            assert len(locked(workspace)) == stages + 2
    return {way: statistics.median(each) for way, each in seconds.items()}


if __name__ == "__main__":
    main()
