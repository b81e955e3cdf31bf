"""GPU benchmark: training and evaluation rates at full size, GPU-hours, and a learning run.

    python -m benchmarks.gpu [--models qwen2-vl-2b qwen2.5-vl-3b]
                             [--parts steps evaluation learning] [--out FOLDER]

Models have random weights at full size: nothing is downloaded, and time does not depend on what
weights hold. Steps are those of benchmarks.grpo_step (engine shared-prefix, TRL, G copies as Med-R1
computes them), no-think and think; evaluation is that of benchmarks.evaluate; the learning run
trains and tests all checkpoints on the embedded sample, by the stages themselves. Each part is a
process of its own and leaves a JSON in FOLDER (benchmarks/gpu); what was measured there by the same
words on the same device with the same libraries is not measured again, so that a run that was cut
off goes on. gpu.json and gpu.md, made from all of them, lie beside FOLDER. On a machine without a
GPU: --models tiny.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.matrix import STYLES, hours
from benchmarks.gpu.page import page
from stages.core.outputs import atomic_file, read_json, write_json
from stages.core.provenance import collect_provenance

REPOSITORY: Final = Path(__file__).parents[2]
PARTS: Final = ("steps", "evaluation", "learning")


def main() -> int:
    """Measure what is missing and write gpu.json and gpu.md; 1 if a part failed.

    A failed part does not stop the others.
    """
    given = _arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    here, failed = device(), []
    for name, module, arguments in commands(given):
        path, made_by = given.out / f"{name}.json", {"words": [module, *arguments], "device": here}
        if path.exists() and read_json(path, "").get("made_by") == made_by:
            continue
        path.unlink(
            missing_ok=True
        )  # of other words or another device: not to be shown beside these
        fresh = path.with_suffix(".part")
        command = [sys.executable, "-m", module, *arguments, "--json", str(fresh)]
        print(f"== {name}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
        if subprocess.run(command, cwd=REPOSITORY).returncode:
            failed.append(name)
        else:
            write_json(path, {"made_by": made_by, "measured": read_json(fresh, "")})
        fresh.unlink(missing_ok=True)
    result = {
        "device": here,
        **collect(given.out, here),
        "failed": failed,
        "provenance": collect_provenance({}),
    }
    write_json(given.out.with_suffix(".json"), result)
    with atomic_file(given.out.with_suffix(".md")) as path:
        path.write_text(page(result), encoding="utf-8")
    print(page(result))
    for name in failed:
        print(f"error: {name} failed; run the same command again to try it again", file=sys.stderr)
    return 1 if failed else 0


def commands(given: argparse.Namespace) -> list[tuple[str, str, list[str]]]:
    """(name, module, arguments) of each part that is asked for, in order."""
    found = []
    for model in given.models:
        for style, tokens in STYLES.items():
            if "steps" in given.parts:
                sizes = [
                    "--completions",
                    str(tokens),
                    "--groups",
                    str(given.group),
                    "--prompts",
                    str(given.prompts),
                ]
                settings = ["--set", "fused_head=true"] if tokens > given.fused_from else []
                repeats = ["--repeats", str(given.repeats)]
                found.append(
                    (
                        f"steps-{model}-{style}",
                        "benchmarks.grpo_step",
                        ["--model", model, *sizes, *repeats, *settings],
                    )
                )
            if "evaluation" in given.parts:
                sizes = ["--completions", str(tokens), "--questions", str(given.questions)]
                found.append(
                    (
                        f"evaluation-{model}-{style}",
                        "benchmarks.evaluate",
                        ["--model", model, *sizes],
                    )
                )
    if "learning" in given.parts:
        found.append(
            ("learning", "benchmarks.gpu.learning", ["--base", given.base] if given.base else [])
        )
    return found


def collect(folder: Path, here: dict[str, Any]) -> dict[str, Any]:
    """All that was measured on the device `here`, by part, and the matrix in hours by it."""
    made: dict[str, Any] = {"steps": {}, "evaluation": {}, "learning": None}
    for path in sorted(folder.glob("*.json")):
        part, _, rest = path.stem.partition("-")
        told = read_json(path, "")
        if told.get("made_by", {}).get("device") != here:
            continue
        content = told["measured"]
        if part == "learning":
            made["learning"] = content
        elif part in made:
            made[part][rest] = content
    return made | {"matrix_hours": hours(made["steps"], made["evaluation"])}


def device() -> dict[str, Any]:
    """The machine, its driver and what computes."""
    import torch
    import transformers
    import trl

    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    if not torch.cuda.is_available():
        return facts | {"name": "cpu", "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(0)
    return facts | {
        "name": found.name,
        "memory_bytes": found.total_memory,
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
        help="folder of what each part measured (default: %(default)s)",
    )
    parser.add_argument("--group", type=int, default=4, help="completions a prompt; Med-R1's 4")
    parser.add_argument(
        "--prompts", type=int, default=16, help="prompts an optimiser step (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="steps of each way (default: %(default)s)"
    )
    parser.add_argument(
        "--questions",
        type=int,
        default=256,
        help="questions an evaluation answers (default: %(default)s)",
    )
    parser.add_argument(
        "--fused-from",
        type=int,
        default=64,
        help="completion tokens beyond which grpo.fused_head is on",
    )
    parser.add_argument(
        "--base", help="base of the learning run: a folder; the embedded one if not given"
    )
    given = parser.parse_args()
    given.out = given.out.resolve()  # parts run in the repository's folder
    return given


if __name__ == "__main__":
    sys.exit(main())
