"""Ingest benchmark: speed relative to the seed's way, memory, incremental work, DVC's overhead.

    python -m benchmarks.ingest [--quick] [--json FILE]

Each measurement runs in its own processes, interleaved where two are compared; medians. Images are
generated: smooth structures with a little noise, half JPEG and half PNG, with sides of 512 to 2048
pixels. --quick measures 240 of them in less than a minute, without the large-scale measurements.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.command_line import build_parser
from benchmarks.ingest import corpora
from benchmarks.ingest.measured import REPOSITORY, CommandRun, python
from benchmarks.ingest.storage import as_shards, measure_dvc
from stages.core import layout
from stages.core.cores import available_cores
from stages.core.outputs import read_json_lines, write_json
from stages.core.provenance import collect_provenance

TARGETS: Final = {
    "speedup": 3.0,
    "peak_memory_bytes": 10**9,
    "incremental_fraction": 0.03,
    "noop_repro_seconds": 10.0,
    "questions_seconds": 10.0,
    "questions_memory_bytes": 500 * 10**6,
}
_LARGE: Final = {"full": 2_000, "quick": 240}
_REPEATS: Final = {"full": 3, "quick": 1}
_SHORT_REPEATS: Final = 3
_MANY: Final = (1_000, 82_000)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = build_parser("ingest", __doc__, quick="240 images, no measurements that take minutes")
    arguments = parser.parse_args()
    mode = "quick" if arguments.quick else "full"
    provenance = collect_provenance({})
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        result = measure(Path(folder), _LARGE[mode], _REPEATS[mode])
        if not arguments.quick:
            result |= measure_many(Path(folder)) | measure_questions(Path(folder))
            with tempfile.TemporaryDirectory(prefix="ingest-") as project:
                dvc = measure_dvc(Path(project), as_shards, _MANY[-1])
            result["noop_repro_seconds"] = dvc["repro_seconds"]
    show(result)
    if arguments.json:
        more = {"quick": arguments.quick, "cores": available_cores(), "provenance": provenance}
        write_json(arguments.json, result | more)


def measure(folder: Path, number: int, repeats: int) -> dict[str, Any]:
    """Speed relative to the seed's way, and the work for 1% more images."""
    images = list(corpora.large(number + max(number // 100, 1)))
    for name, content in images[:number]:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    project = _project(folder / "project")
    corpora.write_corpus(project / "few.zip", iter(images[:1]))
    corpora.write_corpus(project / "all.zip", iter(images[:number]))
    corpora.write_corpus(project / "more.zip", iter(images))
    total_bytes = sum(len(content) for _, content in images[:number])
    del images
    times: dict[str, list[float]] = {"seed": [], "ours": [], "more": [], "start": []}
    peak = 0

    def timed(name: str, corpus: str, fresh: bool) -> None:
        nonlocal peak
        runs = ingest(project, corpus, fresh)
        times[name].append(sum(run.seconds for run in runs))
        peak = max(peak, *(run.peak for run in runs))

    for _ in range(repeats):
        shutil.rmtree(folder / "out", ignore_errors=True)
        seed = python("benchmarks.ingest.seeds_way", "images", "out", folder=folder)
        times["seed"].append(seed.seconds)
        timed("ours", "all.zip", fresh=True)
        # the cache of `all.zip`, restored before every incremental run
        shutil.rmtree(folder / "cache", ignore_errors=True)
        shutil.copytree(project / layout.SCRATCH, folder / "cache")
        for _ in range(_SHORT_REPEATS // repeats):  # short runs vary more
            shutil.rmtree(project / layout.SCRATCH)
            shutil.copytree(folder / "cache", project / layout.SCRATCH)
            timed("more", "more.zip", fresh=False)
            timed("start", "few.zip", fresh=True)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    return {
        "speedup": seconds["seed"] / seconds["ours"],
        "peak_memory_bytes": peak,
        "incremental_fraction": (
            (seconds["more"] - seconds["start"]) / (seconds["ours"] - seconds["start"])
        ),
        "incremental_fraction_with_start": seconds["more"] / seconds["ours"],
        "start_seconds": seconds["start"],
        "images": number,
        "image_bytes": total_bytes // number,
        "seed_images_per_second": number / seconds["seed"],
        "images_per_second": number / seconds["ours"],
    }


def measure_many(folder: Path) -> dict[str, Any]:
    """Peak memory of download and resize with few and with very many images."""
    peaks = {}
    for number in _MANY:
        project = _project(folder / f"many-{number}")
        corpora.write_corpus(project / "all.zip", corpora.small(number))
        peaks[str(number)] = max(run.peak for run in ingest(project, "all.zip", fresh=True))
        shutil.rmtree(project)
    return {"peak_memory_bytes": max(peaks.values()), "peak_memory_bytes_at": peaks}


def measure_questions(folder: Path) -> dict[str, Any]:
    """Seconds and memory of parsing, validating and splitting the questions."""
    project = _project(folder / "questions")
    python("benchmarks.ingest.questions", "make", ".", folder=project)
    parsed = []
    split = []
    for _ in range(3):
        parsed.append(python("benchmarks.ingest.questions", "read", ".", folder=project))
        split.append(python("stages.splits", folder=project))
    parse_seconds = statistics.median(float(run.output.splitlines()[-1]) for run in parsed)
    split_seconds = statistics.median(run.seconds for run in split)
    return {
        "questions_seconds": parse_seconds + split_seconds,
        "questions_parse_seconds": parse_seconds,
        "questions_split_seconds": split_seconds,
        "questions_memory_bytes": max(run.peak for run in (*parsed, *split)),
    }


def ingest(project: Path, corpus: str, fresh: bool) -> list[CommandRun]:
    """Run stages download and resize on a corpus; with `fresh`, without the image cache."""
    shutil.rmtree(project / layout.DATA, ignore_errors=True)
    if fresh:
        shutil.rmtree(project / layout.SCRATCH, ignore_errors=True)
    (project / "data" / "raw").mkdir(parents=True)
    os.link(project / corpus, project / "data" / "raw" / "corpus.zip")
    runs = [
        python("stages.download", folder=project),
        python("stages.resize", "ct", folder=project),
    ]
    with zipfile.ZipFile(project / corpus) as archive:
        images = sum(name.startswith("Images/") for name in archive.namelist())
    lines = read_json_lines(project / layout.records("ct"), "re-run the benchmark")
    records = sum(1 for _ in lines)
    if records != images:
        raise RuntimeError(f"{records} records of {images} images:\n{runs[1].output}")
    return runs


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    title = f"{result['images']:,} images of {result['image_bytes'] / 1e6:.1f} MB"
    table = Table("measure", "measured", "target", title=title)
    seed_rate = f"{result['seed_images_per_second']:.1f} images/s"
    table.add_row("seed's way: Pillow, threads, Arrow in memory", seed_rate, "")
    table.add_row("download and resize", f"{result['images_per_second']:.1f} images/s", "")
    table.add_row("speedup", f"{result['speedup']:.2f}", f"{TARGETS['speedup']:.0f}")
    more = (
        f"{result['incremental_fraction']:.2%} (with {result['start_seconds']:.1f} s of start:"
        f" {result['incremental_fraction_with_start']:.2%})"
    )
    table.add_row("1% new data, of the full time", more, f"{TARGETS['incremental_fraction']:.0%}")
    peaks = result.get("peak_memory_bytes_at", {str(result["images"]): result["peak_memory_bytes"]})
    memory = ", ".join(
        f"{peak / 2**20:,.0f} MiB at {int(number):,}" for number, peak in peaks.items()
    )
    table.add_row("peak memory", memory, f"{TARGETS['peak_memory_bytes'] / 1e9:.0f} GB")
    if "noop_repro_seconds" in result:
        table.add_row(
            f"dvc repro with nothing to do, {_MANY[-1]:,} images",
            f"{result['noop_repro_seconds']:.1f} s",
            "10 s",
        )
        questions = (
            f"{result['questions_parse_seconds']:.1f} + {result['questions_split_seconds']:.1f} s,"
            f" {result['questions_memory_bytes'] / 1e6:,.0f} MB"
        )
        table.add_row("89,000 questions parsed and checked + split", questions, "10 s, 500 MB")
    Console().print(table)


def _project(folder: Path) -> Path:
    """An empty project with this one's params.yaml."""
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / layout.PARAMS, folder)
    return folder


if __name__ == "__main__":
    main()
