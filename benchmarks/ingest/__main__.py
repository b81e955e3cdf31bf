"""Ingest benchmark: speed against the seed's way, memory, incremental work, DVC's share.

    python -m benchmarks.ingest [--quick] [--json FILE]

All in one run, each in processes of its own, by turns where two are compared; medians. Images are
drawn: smooth structures with a little noise, half of them JPEG and half PNG, 512 to 2048 pixels a
side. --quick measures 400 of them, in less than a minute, and leaves out what takes large numbers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.ingest import corpora
from benchmarks.ingest.measured import REPOSITORY, CommandRun, python
from benchmarks.ingest.storage import as_shards, measure_dvc
from stages.core import layout
from stages.core.outputs import read_json_lines, write_json
from stages.core.provenance import collect_provenance

PROMISED: Final = {
    "speedup": 3.0,
    "peak_memory_bytes": 10**9,
    "incremental_fraction": 0.03,
    "noop_repro_seconds": 10.0,
    "questions_seconds": 10.0,
    "questions_memory_bytes": 500 * 10**6,
}
_LARGE: Final = {"full": 2_000, "quick": 400}
_REPEATS: Final = {"full": 3, "quick": 1}
_SHORT_REPEATS: Final = 3
_MANY: Final = (1_000, 82_000)


def main() -> None:
    """Measure, print a table, write the JSON."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument(
        "--quick", action="store_true", help="400 images, and none of what takes minutes"
    )
    arguments.add_argument("--json", type=Path, help="write what was measured to this file")
    given = arguments.parse_args()
    mode = "quick" if given.quick else "full"
    provenance = collect_provenance({})
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        made = measure(Path(folder), _LARGE[mode], _REPEATS[mode])
        if not given.quick:
            made |= measure_many(Path(folder)) | measure_questions(Path(folder))
            with tempfile.TemporaryDirectory(prefix="ingest-") as project:
                made["noop_repro_seconds"] = measure_dvc(Path(project), as_shards, _MANY[-1])[
                    "repro_seconds"
                ]
    show(made)
    if given.json:
        write_json(
            given.json,
            {**made, "quick": given.quick, "cores": os.cpu_count(), "provenance": provenance},
        )


def measure(folder: Path, number: int, repeats: int) -> dict[str, Any]:
    """Speed against the seed's way, and the work for 1% more."""
    images = list(corpora.large(number + max(number // 100, 1)))
    for name, content in images[:number]:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    project = _project(folder / "project")
    corpora.write_corpus(project / "few.zip", iter(images[:1]))
    corpora.write_corpus(project / "all.zip", iter(images[:number]))
    corpora.write_corpus(project / "more.zip", iter(images))
    drawn = sum(len(content) for _, content in images[:number])
    del images
    taken: dict[str, list[float]] = {"seed": [], "ours": [], "more": [], "start": []}
    peak = 0

    def timed(name: str, corpus: str, fresh: bool) -> None:
        nonlocal peak
        runs = ingest(project, corpus, fresh)
        taken[name].append(sum(run.seconds for run in runs))
        peak = max(peak, *(run.peak for run in runs))

    for _ in range(repeats):
        shutil.rmtree(folder / "out", ignore_errors=True)
        taken["seed"].append(
            python("benchmarks.ingest.seeds_way", "images", "out", folder=folder).seconds
        )
        timed("ours", "all.zip", fresh=True)
        shutil.rmtree(folder / "known", ignore_errors=True)
        shutil.copytree(project / layout.SCRATCH, folder / "known")
        for _ in range(_SHORT_REPEATS // repeats):  # two seconds each, where a tenth is much
            shutil.rmtree(project / layout.SCRATCH)
            shutil.copytree(folder / "known", project / layout.SCRATCH)
            timed("more", "more.zip", fresh=False)
            timed("start", "few.zip", fresh=True)
    seconds = {name: statistics.median(each) for name, each in taken.items()}
    return {
        "speedup": seconds["seed"] / seconds["ours"],
        "peak_memory_bytes": peak,
        "incremental_fraction": (
            (seconds["more"] - seconds["start"]) / (seconds["ours"] - seconds["start"])
        ),
        "incremental_fraction_with_start": seconds["more"] / seconds["ours"],
        "start_seconds": seconds["start"],
        "images": number,
        "image_bytes": drawn // number,
        "seed_images_per_second": number / seconds["seed"],
        "images_per_second": number / seconds["ours"],
    }


def measure_many(folder: Path) -> dict[str, Any]:
    """The most memory that download and resize take, at few and at very many images."""
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
    parsed, split = [], []
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
    """Stages download and resize of one corpus; with `fresh`, nothing is left of runs before."""
    for left in (layout.DATA, *([layout.SCRATCH] if fresh else [])):
        shutil.rmtree(project / left, ignore_errors=True)
    (project / "data" / "raw").mkdir(parents=True)
    os.link(project / corpus, project / "data" / "raw" / "corpus.zip")
    runs = [
        python("stages.download", folder=project),
        python("stages.resize", "ct", folder=project),
    ]
    with zipfile.ZipFile(project / corpus) as archive:
        wanted = sum(name.startswith("Images/") for name in archive.namelist())
    kept = sum(
        1 for _ in read_json_lines(project / layout.records("ct"), "run the benchmark again")
    )
    if kept != wanted:
        raise RuntimeError(f"{kept} of {wanted} records came through:\n{runs[1].output}")
    return runs


def show(made: dict[str, Any]) -> None:
    """The table."""
    table = Table(
        "what",
        "measured",
        "promised",
        title=f"{made['images']:,} images of {made['image_bytes'] / 1e6:.1f} MB",
    )
    table.add_row(
        "seed's way: Pillow, threads, Arrow in memory",
        f"{made['seed_images_per_second']:.1f} images/s",
        "",
    )
    table.add_row("download and resize", f"{made['images_per_second']:.1f} images/s", "")
    table.add_row("speedup", f"{made['speedup']:.2f}", f"{PROMISED['speedup']:.0f}")
    more = (
        f"{made['incremental_fraction']:.2%} (with {made['start_seconds']:.1f} s of start:"
        f" {made['incremental_fraction_with_start']:.2%})"
    )
    table.add_row("1% new data, of the full time", more, f"{PROMISED['incremental_fraction']:.0%}")
    peaks = made.get("peak_memory_bytes_at", {str(made["images"]): made["peak_memory_bytes"]})
    said = ", ".join(
        f"{peak / 2**20:,.0f} MiB at {int(number):,}" for number, peak in peaks.items()
    )
    table.add_row("peak memory", said, f"{PROMISED['peak_memory_bytes'] / 1e9:.0f} GB")
    if "noop_repro_seconds" in made:
        table.add_row(
            f"dvc repro with nothing to do, {_MANY[-1]:,} images",
            f"{made['noop_repro_seconds']:.1f} s",
            "10 s",
        )
        parts = f"{made['questions_parse_seconds']:.1f} + {made['questions_split_seconds']:.1f} s"
        said = f"{parts}, {made['questions_memory_bytes'] / 1e6:,.0f} MB"
        table.add_row("89,000 questions parsed and checked + split", said, "10 s, 500 MB")
    Console().print(table)


def _project(folder: Path) -> Path:
    """An empty project with this one's settings, that refuses nothing for being few or alike."""
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / layout.PARAMS, folder)
    return folder


if __name__ == "__main__":
    main()
