"""GPU benchmark: training and evaluation rates of a profile, GPU-hours, and a learning run.

    python -m benchmarks.gpu [--models qwen2-vl-2b qwen2.5-vl-3b]
                             [--parts steps evaluation learning] [--minutes 9] [--out FOLDER]

Each model is measured in the setting of its profile (infra/profiles/full.yaml, full-3b.yaml):
precision, prompts, group, sampling, KL, drafts, threads. Models have random weights at full size:
nothing is downloaded, and time does not depend on the values of weights. Steps are those of
benchmarks.grpo_step (ours with and without drafts, TRL, G copies as in Med-R1), no-think and think;
evaluation is that of benchmarks.evaluate; the learning run trains and tests all checkpoints on the
embedded sample with the real stages.

Each part runs in its own process and writes a JSON file to FOLDER (benchmarks/gpu). A file of the
same command, device, libraries, code and settings is reused, so an interrupted run resumes. A call
ends after --minutes: re-run it until it prints "nothing is missing". gpu.json and gpu.md, built
from all files, are written beside FOLDER; estimates of `med-r1 profile` use gpu.json. On a machine
without a GPU: --models tiny, a small model in the setting of `full`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.comparison import predictions
from benchmarks.gpu.matrix import STYLES, hours, pass_seconds
from benchmarks.gpu.page import page
from benchmarks.gpu.parts import is_current, origin, run_part
from flows.scheduling.slots import visible_gpus
from stages.core.cli import exit_on_termination
from stages.core.machine import INSTALL_COMPILER, find_c_compiler
from stages.core.outputs import atomic_file, read_json, write_json
from stages.core.provenance import collect_provenance

PARTS: Final = ("steps", "evaluation", "learning")
PROFILE_OF: Final = {"qwen2.5-vl-3b": "full-3b"}
"""Model -> profile whose setting it is measured in; `full` for all others."""
PROFILES: Final = ("full", "full-3b")
_WHOLE: Final = 0.9
"""Share of the minutes of a call from which on a part had all of them."""


def main() -> int:
    """Measure the missing parts and write gpu.json and gpu.md; 1 if a part failed or is missing.

    A failed part does not stop the others.
    """
    arguments = _arguments()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    # a part is one process on one GPU: the first
    if gpus := visible_gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0]
    current = device()
    if current["name"] != "cpu" and find_c_compiler() is None:
        print(
            f"error: TRL compiles its losses for the GPU, and there is no gcc or clang:"
            f" {INSTALL_COMPILER}",
            file=sys.stderr,
        )
        return 1
    exit_on_termination()
    failed, missing, more_minutes = measure(commands(arguments), current, arguments)
    result = {
        "device": current,
        **collect(out, current),
        "failed": failed,
        "missing": missing,
        "more_minutes": more_minutes,
        "provenance": collect_provenance({}),
    }
    write_json(out.with_name(f"{out.name}.json"), result)
    with atomic_file(out.with_name(f"{out.name}.md")) as path:
        path.write_text(page(result), encoding="utf-8")
    print(page(result))
    for name in failed:
        print(f"error: {name} failed; re-run the same command to retry", file=sys.stderr)
    if missing:
        print(
            f"{arguments.minutes:g} minutes are over; still to measure: {', '.join(missing)}."
            " Re-run the same command",
            file=sys.stderr,
        )
    for name, minutes in more_minutes.items():
        print(
            f"{name} alone takes more than {arguments.minutes:g} minutes: pass --minutes"
            f" {minutes:g}",
            file=sys.stderr,
        )
    if not failed and not missing:
        print("nothing is missing", file=sys.stderr)
    return 1 if failed or missing else 0


def measure(
    parts: Sequence[tuple[str, list[str]]], current: dict[str, Any], arguments: argparse.Namespace
) -> tuple[list[str], list[str], dict[str, float]]:
    """Run the parts that have no result on the device `current`, until the minutes are over.

    Returns the names of those that failed, of those still to measure, and for those that had the
    whole time and did not end the minutes to try.
    """
    deadline = time.monotonic() + 60 * arguments.minutes
    failed: list[str] = []
    missing: list[str] = []
    more_minutes: dict[str, float] = {}
    for name, words in parts:
        path = arguments.out / f"{name}.json"
        if is_current(path, current, words):
            continue
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            missing.append(name)
            continue
        part = path.with_suffix(".part")
        command = [sys.executable, "-m", *words, "--json", str(part)]
        print(f"== {name}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
        try:
            code = run_part(command, remaining)
            if code is None:
                missing.append(name)
                if remaining > _WHOLE * 60 * arguments.minutes:
                    more_minutes[name] = 2 * arguments.minutes
            elif code:
                failed.append(name)
            else:
                made_by = origin(words, current)
                write_json(path, {"made_by": made_by, "measured": read_json(part, "")})
        finally:
            part.unlink(missing_ok=True)
    return failed, missing, more_minutes


def commands(arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """(name, module and its arguments) of each requested part, in order."""
    parts = []
    for model, (style, tokens) in product(arguments.models, STYLES.items()):
        shared = ["--model", model, "--profile", PROFILE_OF.get(model, "full")]
        shared += ["--completions", str(tokens)]
        if "steps" in arguments.parts:
            words = ["benchmarks.grpo_step", *shared, "--style", style]
            words += ["--repeats", str(arguments.repeats)]
            parts.append((f"steps-{model}-{style}", words))
        if "evaluation" in arguments.parts:
            # nearly all of the published test questions have an image of their own
            words = ["benchmarks.evaluate", *shared, "--questions-per-image", "1"]
            words += ["--repeats", str(arguments.repeats)]
            if arguments.questions:
                words += ["--questions", str(arguments.questions)]
            parts.append((f"evaluation-{model}-{style}", words))
    if "learning" in arguments.parts:
        base = ["--base", arguments.base] if arguments.base else []
        changes = ["--set", *arguments.set] if arguments.set else []
        parts.append(("learning", ["benchmarks.gpu.learning", *base, *changes]))
    return parts


def collect(folder: Path, current: dict[str, Any]) -> dict[str, Any]:
    """All measurements on the device `current` by part, and what follows from them.

    `outdated`: names of those by other code or settings than today's, which are left out.
    """
    from benchmarks.grpo_step.setting import profile_params

    result: dict[str, Any] = {"steps": {}, "evaluation": {}, "learning": None, "outdated": []}
    for path in sorted(folder.glob("*.json")):
        part, _, rest = path.stem.partition("-")
        content = read_json(path, "")
        if content.get("made_by", {}).get("device") != current:
            continue
        if not is_current(path, current):
            result["outdated"].append(path.stem)
        elif part == "learning":
            result["learning"] = content["measured"]
        elif part in result:
            result[part][rest] = content["measured"]
    profiles = {name: profile_params(name) for name in PROFILES}
    return result | {
        "pass_seconds": pass_seconds(result["steps"]),
        "matrix_hours": hours(result["steps"], result["evaluation"], profiles),
        "predicted": predictions(current["name"], profiles),
    }


def device() -> dict[str, Any]:
    """Versions of the libraries, and the device with its memory and CUDA version."""
    import torch
    import transformers
    import trl

    versions: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    if not torch.cuda.is_available():
        return versions | {"name": "cpu", "threads": torch.get_num_threads()}
    gpu = torch.cuda.get_device_properties(0)
    return versions | {
        "name": gpu.name,
        "memory_bytes": gpu.total_memory,
        "cuda": torch.version.cuda,
        "gpus": torch.cuda.device_count(),
    }


def _arguments() -> argparse.Namespace:
    from benchmarks.grpo_step.models import SHAPES  # imports torch

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models", nargs="+", choices=SHAPES, default=["qwen2-vl-2b", "qwen2.5-vl-3b"]
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/gpu"),
        help="folder for the results of each part (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        help="after which the call ends; unfinished parts are lost (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="steps and evaluations per implementation (default: %(default)s)",
    )
    parser.add_argument(
        "--questions",
        type=int,
        help="questions per evaluation (default: as benchmarks.evaluate)",
    )
    parser.add_argument(
        "--base", help="folder with the base of the learning run (default: the embedded one)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="GROUP.KEY=VALUE",
        help="changes to params.yaml for the learning run",
    )
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()  # parts run in the repository's folder
    return arguments


if __name__ == "__main__":
    sys.exit(main())
