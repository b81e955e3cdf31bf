"""`make repro` benchmark: minutes from a clean clone, seconds when unchanged, peak memory.

    python -m benchmarks.reproduce [--json FILE]

Clones the repository's last commit into a temporary folder and runs `make install`, `make repro`
and, with nothing changed, `dvc repro`. Memory is that of the whole process tree (proportional set
size, so that shared pages count once), sampled five times a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import build_parser
from stages.core.outputs import write_json
from stages.core.provenance import collect_provenance

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = build_parser("reproduce", __doc__)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="reproduce-"))
    clone = folder / "clone"
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")
    }
    try:
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, clone], check=True)
        install = measure(["make", "install"], clone, environment)
        first = measure(["make", "repro"], clone, environment)
        environment["PATH"] = f"{clone / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
        again = measure(["dvc", "repro"], clone, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "install_seconds": install["seconds"],
        "make_repro_seconds": install["seconds"] + first["seconds"],
        "second_dvc_repro_seconds": again["seconds"],
        "peak_memory_bytes": max(install["peak_memory_bytes"], first["peak_memory_bytes"]),
        "stage_seconds": first["stage_seconds"],
        "cores": os.cpu_count(),
        "provenance": collect_provenance({}),
    }
    show(result)
    if arguments.json:
        write_json(arguments.json, result)


def measure(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; its seconds, peak memory in bytes, and seconds by group of stages.

    Its output is passed on to stderr.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    marks: list[tuple[float, str]] = [(start, "other")]
    reader = threading.Thread(target=_follow, args=(process.stdout, marks))
    reader.start()
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_memory(process.pid))
        time.sleep(0.2)
    reader.join()
    end = time.monotonic()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    seconds: dict[str, float] = defaultdict(float)
    for (since, stage), (until, _) in pairwise([*marks, (end, "")]):
        seconds[stage] += until - since
    return {"seconds": end - start, "peak_memory_bytes": peak, "stage_seconds": dict(seconds)}


def _follow(stream: IO[str] | None, marks: list[tuple[float, str]]) -> None:
    """Pass a command's output on, and record the time and group of each stage that DVC starts."""
    for line in stream or ():
        sys.stderr.write(line)
        if line.startswith("Running stage '"):
            marks.append((time.monotonic(), line.split("'")[1].split("@")[0]))


def tree_memory(pid: int) -> int:
    """Memory of a process and its children in bytes; shared pages count once."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    except psutil.NoSuchProcess:
        pass
    return total


def show(result: dict[str, Any]) -> None:
    """Print the results beside the targets."""
    title = f"make repro on {result['cores']} cores, from a clean clone"
    table = Table("measure", "measured", "target", title=title)
    table.add_row("install", f"{result['install_seconds']:.0f} s", "120 s")
    table.add_row(
        "make repro, install included", f"{result['make_repro_seconds'] / 60:.1f} min", "15 min"
    )
    table.add_row(
        "dvc repro, nothing changed", f"{result['second_dvc_repro_seconds']:.1f} s", "10 s"
    )
    table.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB", "4 GiB")
    for stage, seconds in result["stage_seconds"].items():
        table.add_row(f"  stage {stage}", f"{seconds:.0f} s", "")
    Console().print(table)


if __name__ == "__main__":
    main()
