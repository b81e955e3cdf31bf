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
same command, device and libraries is reused, so an interrupted run resumes. A call ends after
--minutes: re-run it until nothing is missing. gpu.json and gpu.md, built from all files, are
written beside FOLDER; estimates of `med-r1 profile` use gpu.json. On a machine without a GPU:
--models tiny, a small model in the setting of `full`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.comparison import predictions
from benchmarks.gpu.matrix import STYLES, hours, pass_seconds
from benchmarks.gpu.page import page
from stages.core.outputs import atomic_file, read_json, write_json
from stages.core.provenance import collect_provenance

REPOSITORY: Final = Path(__file__).parents[2]
PARTS: Final = ("steps", "evaluation", "learning")
PROFILE_OF: Final = {"qwen2.5-vl-3b": "full-3b"}
"""Model -> profile whose setting it is measured in; `full` for all others."""
PROFILES: Final = ("full", "full-3b")


def main() -> int:
    """Measure the missing parts and write gpu.json and gpu.md; 1 if a part failed or is missing.

    A failed part does not stop the others.
    """
    arguments = _arguments()
    deadline = time.monotonic() + 60 * arguments.minutes
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    current = device()
    failed: list[str] = []
    missing: list[str] = []
    for name, words in commands(arguments):
        made_by = {"words": words, "device": current}
        path = out / f"{name}.json"
        if path.exists() and read_json(path, "").get("made_by") == made_by:
            continue
        path.unlink(missing_ok=True)  # of another command or device
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            missing.append(name)
            continue
        part = path.with_suffix(".part")
        command = [sys.executable, "-m", *words, "--json", str(part)]
        print(f"== {name}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
        try:
            if subprocess.run(command, cwd=REPOSITORY, timeout=remaining).returncode:
                failed.append(name)
            else:
                write_json(path, {"made_by": made_by, "measured": read_json(part, "")})
        except subprocess.TimeoutExpired:
            missing.append(name)
        part.unlink(missing_ok=True)
    result = {
        "device": current,
        **collect(out, current),
        "failed": failed,
        "missing": missing,
        "provenance": collect_provenance({}),
    }
    write_json(out.with_suffix(".json"), result)
    with atomic_file(out.with_suffix(".md")) as path:
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
    return 1 if failed or missing else 0


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
            words = ["benchmarks.evaluate", *shared, "--questions", str(arguments.questions)]
            words += ["--questions-per-image", "1", "--repeats", str(arguments.repeats)]
            parts.append((f"evaluation-{model}-{style}", words))
    if "learning" in arguments.parts:
        base = ["--base", arguments.base] if arguments.base else []
        changes = ["--set", *arguments.set] if arguments.set else []
        parts.append(("learning", ["benchmarks.gpu.learning", *base, *changes]))
    return parts


def collect(folder: Path, current: dict[str, Any]) -> dict[str, Any]:
    """All measurements on the device `current` by part, and what follows from them."""
    from benchmarks.grpo_step.setting import profile_params

    result: dict[str, Any] = {"steps": {}, "evaluation": {}, "learning": None}
    for path in sorted(folder.glob("*.json")):
        part, _, rest = path.stem.partition("-")
        content = read_json(path, "")
        if content.get("made_by", {}).get("device") != current:
            continue
        if part == "learning":
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
        "--questions", type=int, default=256, help="questions per evaluation (default: %(default)s)"
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
