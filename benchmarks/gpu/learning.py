"""A real learning run: train and test every checkpoint of the embedded sample, timing each stage.

    python -m benchmarks.gpu.learning [--width N | --base FOLDER] [--together N]
                                      [--set KEY=VALUE ...] [--json FILE]

The real stages run in a temporary folder in dvc.yaml's order. Several trainings, and several
evaluations, run at a time, on a GPU too: a model this small leaves most of it idle. With --width, a
base of that width is trained first with the recipe of the embedded one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.command_line import build_parser
from benchmarks.ingest.measured import REPOSITORY, python
from stages.core import layout
from stages.core.code_version import PIPELINE
from stages.core.cores import available_cores
from stages.core.outputs import write_json
from stages.core.params import load_params, parse_settings
from stages.core.yaml_files import dump_yaml, load_yaml
from stages.profiles.splice import reset

_CORES_PER_PROCESS: Final = 4


def main() -> None:
    """Run all stages, print the result, write the JSON."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="learning-") as folder:
        result = learn(
            Path(folder), arguments.base, arguments.width, arguments.together, arguments.set
        )
    show(result)
    if arguments.json:
        write_json(arguments.json, result)


def learn(
    folder: Path, base: Path, width: int | None, together: int, changes: Sequence[str]
) -> dict[str, Any]:
    """Run all stages; their seconds, the settings, and the report's summary."""
    if width is not None:
        base = folder / "base-weights"
        python("stages.base", "pretrain", str(base), "--width", str(width), folder=REPOSITORY)
    checkpoints = prepare(folder, base, changes)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def stage(*words: str) -> None:
        name = "@".join(words)
        command = python(f"stages.{words[0]}", *words[1:], folder=folder)
        seconds[name] = round(command.seconds, 2)
        print(f"{name}: {command.seconds:.0f} s", flush=True)

    def parallel(group: str, keys: Iterable[str]) -> None:
        with ThreadPoolExecutor(together) as pool:
            for future in [pool.submit(stage, group, key) for key in keys]:
                future.result()

    stage("download")
    parallel("resize", load_params(folder / layout.PARAMS).taxonomy.axes["modality"])
    stage("splits")
    stage("prior")
    stage("base")
    train_start = time.perf_counter()
    parallel("train", checkpoints)
    evaluate_start = time.perf_counter()
    parallel("evaluate", ["base", *checkpoints])
    evaluate_end = time.perf_counter()
    stage("report")
    summary = json.loads((folder / layout.REPORT / "summary.json").read_text(encoding="utf-8"))
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "train_seconds": round(evaluate_start - train_start, 2),
        "evaluate_seconds": round(evaluate_end - evaluate_start, 2),
        "stage_seconds": seconds,
        "together": together,
        "width": width,
        "checkpoints": len(checkpoints),
        "changes": list(changes),
        "summary": summary,
    }


def prepare(folder: Path, base: Path, changes: Sequence[str]) -> list[str]:
    """Write the sample corpus and its settings with base and overrides; the checkpoints' names.

    The settings are those of the sample, whatever profile is set in params.yaml.
    """
    path = REPOSITORY / layout.PARAMS
    sample, _ = reset(path.read_text(encoding="utf-8"), path)
    params = parse_settings(sample, path)
    params["base"]["source"] = str(base.resolve())
    for change in changes:
        key, _, value = change.partition("=")
        group, _, name = key.partition(".")
        params[group][name] = load_yaml(value, Path("value"))
    (folder / layout.PARAMS).write_text(dump_yaml(params), encoding="utf-8")
    # stages hash the code that dvc.yaml lists
    for name in (PIPELINE.name, "stages"):
        (folder / name).symlink_to(REPOSITORY / name)
    corpus = folder / params["corpus"]["archive"]
    corpus.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / "infra" / "sample" / "omnimedvqa-phantoms.zip", corpus)
    return list(params["checkpoints"])


def show(result: dict[str, Any]) -> None:
    """Print the seconds, and the report's summary."""
    size = f"{result['checkpoints']} checkpoints on the embedded sample"
    table = Table("stages", "seconds", title=f"{size}, {result['together']} at a time")
    for name, key in (
        ("train", "train_seconds"),
        ("evaluate", "evaluate_seconds"),
        ("all", "seconds"),
    ):
        table.add_row(name, f"{result[key]:.0f}")
    Console().print(table)
    Console().print_json(data=result["summary"])


def _arguments() -> argparse.Namespace:
    parser = build_parser("gpu.learning", __doc__)
    bases = parser.add_mutually_exclusive_group()
    bases.add_argument(
        "--base",
        type=Path,
        default=REPOSITORY / "infra" / "base",
        help="folder of the base (default: the embedded one)",
    )
    bases.add_argument("--width", type=int, help="train a base of this width first")
    together = max(available_cores() // _CORES_PER_PROCESS, 1)
    parser.add_argument(
        "--together", type=int, default=together, help="trainings at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="GROUP.KEY=VALUE", help="changes to params.yaml"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
