"""A command's seconds and peak memory, as counted by the operating system.

A process inherits the peak of its parent, and `exec` does not reset it: the memory of a large
measuring process would be counted. So a small process in between starts the command and reports.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]

_BETWEEN: Final = """\
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[2:])
seconds = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
with open(sys.argv[1], "w") as report:
    json.dump([seconds, peak], report)
sys.exit(code)
"""


@dataclass(frozen=True)
class CommandRun:
    """A finished command: wall-clock `seconds`, `peak` bytes of any process, its `output`."""

    seconds: float
    peak: int
    output: str


def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> CommandRun:
    """Run a command in a folder with the project on PYTHONPATH.

    RuntimeError with its output if it fails.
    """
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})}
    with tempfile.NamedTemporaryFile(prefix="measured-") as report:
        between = [sys.executable, "-S", "-E", "-c", _BETWEEN, report.name, *command]
        process = subprocess.run(
            between,
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if process.returncode:
            output = process.stdout[-4000:]
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
        seconds, peak = json.loads(Path(report.name).read_text(encoding="utf-8"))
    return CommandRun(seconds, peak, process.stdout)


def python(
    module: str, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
) -> CommandRun:
    """Run a module of the project in a folder, as `python -m` does."""
    return run([sys.executable, "-m", module, *arguments], folder, environment)


def median_seconds(runs: Sequence[CommandRun]) -> float:
    """Median of the runs' seconds."""
    return statistics.median(each.seconds for each in runs)
