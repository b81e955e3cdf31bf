"""A real learning run: train and test every checkpoint of the embedded sample, timing each stage.

    python -m benchmarks.gpu.learning [--width N | --base FOLDER] [--together N]
                                      [--set KEY=VALUE ...] [--json FILE]

The stages are run as they are, in a temporary folder, in dvc.yaml's order; training and evaluation
several at a time, on a GPU too: a model this small leaves most of it idle. With --width a base of
that width is trained first by the embedded one's recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.ingest.measured import REPOSITORY, python
from stages.core import layout
from stages.core.outputs import write_json
from stages.core.yaml_files import dump_yaml, load_yaml, read_yaml
from stages.taxonomy import AXES

_CORES_A_PROCESS: Final = 4


def main() -> None:
    """Run all stages, print the result, write the JSON."""
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="learning-") as folder:
        result = learn(Path(folder), given.base, given.width, given.together, given.set)
    show(result)
    if given.json:
        write_json(given.json, result)


def learn(
    folder: Path, base: Path, width: int | None, together: int, changes: Sequence[str]
) -> dict[str, Any]:
    """Seconds by stage and in all, the report's summary, and what was trained."""
    if width is not None:
        base = folder / "base-weights"
        python("stages.base", "pretrain", str(base), "--width", str(width), folder=REPOSITORY)
    checkpoints = prepare(folder, base, changes)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def stage(*words: str) -> None:
        done = python(f"stages.{words[0]}", *words[1:], folder=folder)
        seconds["@".join(words)] = round(done.seconds, 2)
        print(f"{'@'.join(words)}: {done.seconds:.0f} s", flush=True)

    def beside(all_words: Iterable[tuple[str, ...]]) -> None:
        with ThreadPoolExecutor(together) as pool:
            for future in [pool.submit(stage, *words) for words in all_words]:
                future.result()

    stage("download")
    beside(("resize", slug) for slug in AXES["modality"])
    stage("splits")
    stage("prior")
    stage("base")
    trained = time.perf_counter()
    beside([("train", name) for name in checkpoints])
    evaluated = time.perf_counter()
    beside([("evaluate", name) for name in ("base", *checkpoints)])
    ended = time.perf_counter()
    stage("report")
    summary = json.loads((folder / layout.REPORT / "summary.json").read_text(encoding="utf-8"))
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "train_seconds": round(evaluated - trained, 2),
        "evaluate_seconds": round(ended - evaluated, 2),
        "stage_seconds": seconds,
        "together": together,
        "width": width,
        "checkpoints": len(checkpoints),
        "changes": list(changes),
        "summary": summary,
    }


def prepare(folder: Path, base: Path, changes: Sequence[str]) -> list[str]:
    """Prepare the folder: sample corpus and params.yaml with base and overrides.

    Checkpoint names.
    """
    params = read_yaml(REPOSITORY / layout.PARAMS)
    params["base"]["source"] = str(base.resolve())
    for change in changes:
        key, _, value = change.partition("=")
        group, _, name = key.partition(".")
        params[group][name] = load_yaml(value, Path("value"))
    (folder / layout.PARAMS).write_text(dump_yaml(params), encoding="utf-8")
    corpus = folder / params["corpus"]["archive"]
    corpus.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / "infra" / "sample" / "omnimedvqa-phantoms.zip", corpus)
    return list(params["checkpoints"])


def show(result: dict[str, Any]) -> None:
    """The seconds, and what was learned."""
    table = Table(
        "what",
        "seconds",
        title=(
            f"{result['checkpoints']} checkpoints on the embedded sample, {result['together']} at a"
            " time"
        ),
    )
    for key in ("train_seconds", "evaluate_seconds", "seconds"):
        table.add_row(
            {"seconds": "all stages"}.get(key, key.removesuffix("_seconds")), f"{result[key]:.0f}"
        )
    Console().print(table)
    Console().print_json(data=result["summary"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bases = parser.add_mutually_exclusive_group()
    bases.add_argument(
        "--base",
        type=Path,
        default=REPOSITORY / "infra" / "base",
        help="folder of the base (default: the embedded one)",
    )
    bases.add_argument("--width", type=int, help="train a base of this width first")
    together = max((os.cpu_count() or 1) // _CORES_A_PROCESS, 1)
    parser.add_argument(
        "--together", type=int, default=together, help="trainings at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="GROUP.KEY=VALUE", help="changes to params.yaml"
    )
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
