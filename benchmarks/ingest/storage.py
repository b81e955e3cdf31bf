"""Storage benchmark: DVC's overhead and read times of resized images as files and zip shards.

    python -m benchmarks.ingest.storage [--images N] [--json FILE]

DVC: projects of the shape of dvc.yaml (8 resize, 13 train, 14 evaluate, the report) in temporary
folders, with this project's DVC settings and trivial commands. Images are small files, as DVC's
overhead depends on their number. Reading: 2,000 images of 384x384 in random order, formats
interleaved. Medians of 3, except for commands that only make sense once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.command_line import build_parser
from benchmarks.ingest.measured import REPOSITORY, CommandRun, median_seconds, python, run
from stages.core.cores import available_cores
from stages.core.outputs import write_json
from stages.core.params import shipped_taxonomy
from stages.core.provenance import collect_provenance
from stages.core.yaml_files import dump_yaml, load_yaml, read_yaml
from stages.corpus.images.shard_writer import MEAN

IMAGES: Final = 82_000
"""Number of images in OmniMedVQA's open part."""
PER_SHARD: Final = MEAN
REPEATS: Final = 3
_IMAGE_BYTES: Final = 3_000


def main() -> None:
    """Measure, print tables, write the JSON."""
    parser = build_parser("ingest.storage", __doc__)
    parser.add_argument("--images", type=int, default=IMAGES, help=f"default: {IMAGES}")
    arguments = parser.parse_args()
    count = arguments.images
    ways: dict[str, tuple[Callable[[Path, int], None], int]] = {
        f"{count:,} files": (as_files, count),
        f"{count:,} in shards": (as_shards, count),
        f"{10 * count:,} in shards": (as_shards, 10 * count),
    }
    provenance = collect_provenance({})
    result: dict[str, Any] = {"dvc": {}, "cores": available_cores(), "provenance": provenance}
    for name, (store, images) in ways.items():
        with tempfile.TemporaryDirectory(prefix="storage-") as folder:
            result["dvc"][name] = measure_dvc(Path(folder), store, images)
        _show_dvc(name, result["dvc"][name])
    with tempfile.TemporaryDirectory(prefix="storage-") as folder:
        python("benchmarks.ingest.reading", "make", folder, folder=Path(folder))
        reading = python("benchmarks.ingest.reading", "read", folder, folder=Path(folder))
    result["reading"] = load_yaml(reading.output, Path("value"))
    _show_reading(result["reading"])
    if arguments.json:
        write_json(arguments.json, result)


def as_files(folder: Path, images: int) -> None:
    """One file per image, below one folder per source set."""
    for number in range(images):
        path = folder / f"set{number % 5}" / f"{number:07d}.png"
        if number < 5:
            path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(_IMAGE_BYTES))


def as_shards(folder: Path, images: int) -> None:
    """Uncompressed zips of PER_SHARD images each; tiny images if many, as only counts matter."""
    folder.mkdir(parents=True)
    size = _IMAGE_BYTES if images <= IMAGES / 8 else 300
    for first in range(0, images, PER_SHARD):
        path = folder / f"{first // PER_SHARD:05d}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as shard:
            for number in range(first, min(first + PER_SHARD, images)):
                shard.writestr(f"set{number % 5}/{number:07d}.png", os.urandom(size))


def measure_dvc(root: Path, store: Callable[[Path, int], None], images: int) -> dict[str, Any]:
    """Seconds and peak bytes of DVC commands in a project with this many images."""
    slugs = shipped_taxonomy().axes["modality"]
    for slug in slugs:
        store(root / "sources" / slug, images // len(slugs))
    write_project(root)
    first = dvc(root, "repro")
    again = [dvc(root, "repro") for _ in range(1 + REPEATS)][1:]
    status = [dvc(root, "status") for _ in range(1 + REPEATS)][1:]
    commit = [dvc(root, "commit", "--force") for _ in range(REPEATS)]
    push = dvc(root, "push")
    push_again = [dvc(root, "push") for _ in range(REPEATS)]
    if any("Running stage" in each.output for each in again):
        raise RuntimeError(f"dvc repro had work to do:\n{again[0].output}")
    everything = [first, *again, *status, *commit, push, *push_again]
    return {
        "images": images,
        "files": sum(1 for path in (root / "data" / "images").rglob("*") if path.is_file()),
        "first_repro_seconds": round(first.seconds, 2),
        "repro_seconds": round(median_seconds(again), 2),
        "status_seconds": round(median_seconds(status), 2),
        "commit_seconds": round(median_seconds(commit), 2),
        "first_push_seconds": round(push.seconds, 2),
        "push_seconds": round(median_seconds(push_again), 2),
        "peak_memory_bytes": max(each.peak for each in everything),
    }


def write_project(root: Path) -> None:
    """Write a DVC project with the stages that write or read images, as in dvc.yaml."""
    checkpoints = read_yaml(REPOSITORY / "params.yaml")["checkpoints"]
    stages: dict[str, Any] = {}
    for slug in shipped_taxonomy().axes["modality"]:
        images = f"data/images/{slug}"
        stages[f"resize-{slug}"] = {
            "cmd": f"mkdir -p data/images && mv sources/{slug} {images}",
            "outs": [images],
        }
    for name, item in checkpoints.items():
        model = f"models/{name}"
        stages[f"train-{name}"] = {
            "cmd": f"mkdir -p models && echo {name} > {model}",
            "deps": [item["images"]],
            "outs": [model],
        }
    for name in ["base", *checkpoints]:
        deps = ["data/images", *([f"models/{name}"] if name in checkpoints else [])]
        predictions = f"predictions/{name}"
        stages[f"evaluate-{name}"] = {
            "cmd": f"mkdir -p predictions && echo {name} > {predictions}",
            "deps": deps,
            "outs": [predictions],
        }
    stages["report"] = {
        "cmd": "echo report > report",
        "deps": ["predictions", "data/images"],
        "outs": ["report"],
    }
    (root / "dvc.yaml").write_text(dump_yaml({"stages": stages}), encoding="utf-8")
    (root / ".gitignore").write_text(
        "/data/\n/models/\n/predictions/\n/report\n/sources/\n/remote/\n/state/\n", encoding="utf-8"
    )
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    dvc(root, "init", "--quiet")
    shutil.copy(REPOSITORY / ".dvc" / "config", root / ".dvc" / "config")
    dvc(root, "remote", "add", "--default", "here", str(root / "remote"))


def dvc(root: Path, *arguments: str) -> CommandRun:
    """Run a DVC command whose state database is below `root` too."""
    variables = {"DVC_SITE_CACHE_DIR": str(root / "state"), "DVC_NO_ANALYTICS": "1"}
    return run(["dvc", *arguments], root, variables)


def _show_dvc(name: str, result: dict[str, Any]) -> None:
    table = Table("command", "seconds", title=f"DVC, {name} ({result['files']:,} files)")
    for key, value in result.items():
        if key.endswith("_seconds"):
            table.add_row(key.removesuffix("_seconds").replace("_", " "), f"{value:.1f}")
    table.add_row("peak memory", f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB")
    Console().print(table)


def _show_reading(result: dict[str, Any]) -> None:
    title = f"random read, images of {result['image_bytes'] / 1e3:.0f} kB"
    table = Table("format", "read, ms per image", "read and decoded", title=title)
    for name, way in result["ways"].items():
        table.add_row(name, f"{way['read_ms']:.3f}", f"{way['decoded_ms']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
