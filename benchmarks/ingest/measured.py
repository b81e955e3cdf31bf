"""A command's seconds and peak memory, as the operating system counts them.

The peak of a process begins with that of the process it was started from, which an `exec` does not
reset: a measuring process that has grown would be measured itself. A small one in between starts
the command and reports on it.
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
    """Run a command in a folder with the project importable.

    RuntimeError with its output if it fails.
    """
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})}
    with tempfile.NamedTemporaryFile(prefix="measured-") as report:
        between = [sys.executable, "-S", "-E", "-c", _BETWEEN, report.name, *command]
        ended = subprocess.run(
            between,
            cwd=folder,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if ended.returncode:
            raise RuntimeError(
                f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-4000:]}"
            )
        seconds, peak = json.loads(Path(report.name).read_text(encoding="utf-8"))
    return CommandRun(seconds, peak, ended.stdout)


def python(
    module: str, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None
) -> CommandRun:
    """Run a module of the project in a folder, as `python -m` does."""
    return run([sys.executable, "-m", module, *arguments], folder, environment)


def median_seconds(runs: Sequence[CommandRun]) -> float:
    """The median of the seconds of some runs."""
    return statistics.median(each.seconds for each in runs)
