"""`make repro` benchmark: minutes from a clean clone, seconds when unchanged, peak memory.

    python -m benchmarks.reproduce [--busy] [--json FILE] [--durations infra/durations.json]

Clones the repository's last commit into a temporary folder and runs `make install`, `make repro`
and, with nothing changed, `dvc repro`; with --busy while another process keeps one core busy. The
machine's matrix-product rate, measured before and after, as it drifts on shared hosts, makes times
on different machines comparable. The models and metrics must be the committed ones. CPU time and
memory are those of the whole process tree, memory as proportional set size, so that shared pages
count once, sampled every 5 s.
--durations writes the durations of the stages for the first estimate of a run elsewhere.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import build_parser
from flows.dvc_api.lock_file import read_locked_stages
from flows.scheduling import durations
from flows.scheduling.slots import cpu_threads
from stages.core import layout
from stages.core.cli import exit_on_termination
from stages.core.cores import available_cores
from stages.core.distributed.matrix_product import measure_in_subprocess
from stages.core.outputs import read_json, write_json
from stages.core.provenance import collect_provenance, corpus_hash

REPOSITORY = Path(__file__).parents[1]
SAMPLE_SECONDS = 5.0
"""Time between two samples of the memory: one takes 0.1 s of CPU from what is measured."""


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = build_parser("reproduce", __doc__)
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    parser.add_argument("--durations", type=Path, help="write the durations of the stages here")
    arguments = parser.parse_args()
    exit_on_termination()
    threads = cpu_threads(REPOSITORY) or 1
    before = measure_in_subprocess(threads)
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, clone], check=True)
        committed = results(clone)
        with busy_core() if arguments.busy else nullcontext():
            measured = measure_clone(clone)
        seconds = durations.read(clone)
        changed = changed_results(committed, results(clone))
    after = measure_in_subprocess(threads)
    result = {
        **measured,
        "busy_cores": int(arguments.busy),
        "stage_seconds": by_group(seconds),
        "changed_results": changed,
        "cores": available_cores(),
        "matrix_product": {"before": before and asdict(before), "after": after and asdict(after)},
        "provenance": collect_provenance({}),
    }
    show(result)
    if arguments.json:
        write_json(arguments.json, result)
    if arguments.durations:
        rounded = {stage: round(value, 1) for stage, value in seconds.items()}
        write_json(arguments.durations, {"corpus": corpus_hash(), "seconds": rounded})
    if changed:
        sys.exit(f"error: other results than the committed ones: {', '.join(changed)}")


def measure_clone(clone: Path) -> dict[str, Any]:
    """Install and run a clone, and run it again; seconds of each, CPU seconds and peak memory."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL")
    }
    install = measure(["make", "install"], clone, environment)
    first = measure(["make", "repro"], clone, environment)
    environment["PATH"] = f"{clone / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
    again = measure(["dvc", "repro"], clone, environment)
    return {
        "install_seconds": install["seconds"],
        "make_repro_seconds": install["seconds"] + first["seconds"],
        "second_dvc_repro_seconds": again["seconds"],
        "pipeline_cpu_seconds": first["cpu_seconds"],
        "peak_memory_bytes": max(install["peak_memory_bytes"], first["peak_memory_bytes"]),
    }


def measure(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; its seconds, CPU seconds and peak memory in bytes.

    Its output is passed on to stderr.
    """
    start, cpu_start = time.monotonic(), _cpu_seconds()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=sys.stderr, stdin=subprocess.DEVNULL
    )
    peak = 0
    try:
        while process.returncode is None:
            peak = max(peak, tree_memory(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=SAMPLE_SECONDS)
    finally:  # make, and with it the flow, ends with what measures it
        process.terminate()
        process.wait()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    return {
        "seconds": time.monotonic() - start,
        "cpu_seconds": _cpu_seconds() - cpu_start,
        "peak_memory_bytes": peak,
    }


def _cpu_seconds() -> float:
    """CPU time of all processes that this one started, directly or not, and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process that keeps the first core busy."""
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(process.pid, {core})
        yield
    finally:
        process.kill()
        process.wait()


def results(root: Path) -> dict[str, str | None]:
    """What must be the committed: hashes of all models, and the metrics without their provenance.

    Other outputs hold the commit that made them.
    """
    hashes: dict[str, str | None] = {}
    for stage in read_locked_stages(root).values():
        for out in stage.outs:
            if Path(out.path).parts[0] == layout.MODELS.name:
                hashes[out.path] = out.md5
    path = layout.REPORT / "metrics.json"
    metrics = read_json(root / path, "run `make repro`")
    del metrics["provenance"]
    return hashes | {str(path): json.dumps(metrics, sort_keys=True)}


def changed_results(one: dict[str, str | None], other: dict[str, str | None]) -> list[str]:
    """Paths that are not the same in both."""
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))


def by_group(seconds: dict[str, float]) -> dict[str, float]:
    """Group of stages -> sum of their seconds; several run at once."""
    groups: dict[str, float] = defaultdict(float)
    for stage, value in seconds.items():
        groups[stage.partition("@")[0]] += value
    return dict(groups)


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
    busy = ", one of them busy" if result["busy_cores"] else ""
    title = f"make repro on {result['cores']} cores{busy}, from a clean clone"
    table = Table("measure", "measured", "target", title=title)
    table.add_row("install", f"{result['install_seconds']:.0f} s", "120 s")
    table.add_row(
        "make repro, install included",
        f"{result['make_repro_seconds'] / 60:.1f} min",
        "15 min" if busy else "10 min",
    )
    table.add_row(
        "dvc repro, nothing changed", f"{result['second_dvc_repro_seconds']:.1f} s", "10 s"
    )
    table.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB", "4 GiB")
    table.add_row("CPU time of make repro", f"{result['pipeline_cpu_seconds']:.0f} s", "")
    for when, rate in result["matrix_product"].items():
        if rate:
            table.add_row(
                f"matrix product {when}, {rate['threads']} CPU threads, on {rate['device']}",
                f"{rate['flops_per_second'] / 1e12:.3g} TFLOP/s",
                "",
            )
    for stage, seconds in result["stage_seconds"].items():
        table.add_row(f"  stages {stage}", f"{seconds:.0f} s", "")
    Console().print(table)


if __name__ == "__main__":
    main()
