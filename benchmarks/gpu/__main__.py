"""GPU benchmark: training and evaluation rates at full size, GPU-hours, and a learning run.

    python -m benchmarks.gpu [--models qwen2-vl-2b qwen2.5-vl-3b]
                             [--parts steps evaluation learning] [--out FOLDER]

Models have random weights at full size: nothing is downloaded, and time does not depend on the
values of weights. Steps are those of benchmarks.grpo_step (engine shared-prefix, TRL, G copies as
in Med-R1), no-think and think; evaluation is that of benchmarks.evaluate; the learning run trains
and tests all checkpoints on the embedded sample with the real stages. Each part runs in its own
process and writes a JSON file to FOLDER (benchmarks/gpu). A file of the same command, device and
libraries is reused, so an interrupted run resumes. gpu.json and gpu.md, built from all files, are
written beside FOLDER. On a machine without a GPU: --models tiny.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.matrix import STYLES, hours
from benchmarks.gpu.page import page
from stages.core.outputs import atomic_file, read_json, write_json
from stages.core.provenance import collect_provenance

REPOSITORY: Final = Path(__file__).parents[2]
PARTS: Final = ("steps", "evaluation", "learning")


def main() -> int:
    """Measure the missing parts and write gpu.json and gpu.md; 1 if a part failed.

    A failed part does not stop the others.
    """
    arguments = _arguments()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    current = device()
    failed = []
    for name, words in commands(arguments):
        path = out / f"{name}.json"
        made_by = {"words": words, "device": current}
        if path.exists() and read_json(path, "").get("made_by") == made_by:
            continue
        path.unlink(missing_ok=True)  # of another command or device
        part = path.with_suffix(".part")
        command = [sys.executable, "-m", *words, "--json", str(part)]
        print(f"== {name}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
        if subprocess.run(command, cwd=REPOSITORY).returncode:
            failed.append(name)
        else:
            write_json(path, {"made_by": made_by, "measured": read_json(part, "")})
        part.unlink(missing_ok=True)
    result = {
        "device": current,
        **collect(out, current),
        "failed": failed,
        "provenance": collect_provenance({}),
    }
    write_json(out.with_suffix(".json"), result)
    with atomic_file(out.with_suffix(".md")) as path:
        path.write_text(page(result), encoding="utf-8")
    print(page(result))
    for name in failed:
        print(f"error: {name} failed; re-run the same command to retry", file=sys.stderr)
    return 1 if failed else 0


def commands(arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """(name, module and its arguments) of each requested part, in order."""
    parts = []
    for model, (style, tokens) in product(arguments.models, STYLES.items()):
        shared = ["--model", model, "--completions", str(tokens)]
        if "steps" in arguments.parts:
            words = ["benchmarks.grpo_step", *shared, "--groups", str(arguments.group)]
            words += ["--prompts", str(arguments.prompts), "--repeats", str(arguments.repeats)]
            if tokens > arguments.fused_from:
                words += ["--set", "fused_head=true"]
            parts.append((f"steps-{model}-{style}", words))
        if "evaluation" in arguments.parts:
            words = ["benchmarks.evaluate", *shared, "--questions", str(arguments.questions)]
            parts.append((f"evaluation-{model}-{style}", words))
    if "learning" in arguments.parts:
        base = ["--base", arguments.base] if arguments.base else []
        parts.append(("learning", ["benchmarks.gpu.learning", *base]))
    return parts


def collect(folder: Path, current: dict[str, Any]) -> dict[str, Any]:
    """All measurements on the device `current` by part, and the GPU-hours of the matrix."""
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
    return result | {"matrix_hours": hours(result["steps"], result["evaluation"])}


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
        "--group", type=int, default=4, help="completions per prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--prompts", type=int, default=16, help="prompts per optimiser step (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="steps per implementation (default: %(default)s)"
    )
    parser.add_argument(
        "--questions", type=int, default=256, help="questions per evaluation (default: %(default)s)"
    )
    parser.add_argument(
        "--fused-from",
        type=int,
        default=64,
        help="completion tokens beyond which grpo.fused_head is on (default: %(default)s)",
    )
    parser.add_argument(
        "--base", help="folder with the base of the learning run (default: the embedded one)"
    )
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()  # parts run in the repository's folder
    return arguments


if __name__ == "__main__":
    sys.exit(main())
