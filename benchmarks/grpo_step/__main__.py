"""GRPO step benchmark: what sharing the prompt saves, from PIL images to updated weights.

Also checks that the shared step is exact.

    python -m benchmarks.grpo_step [--quick] [--json FILE] [--chart FILE]

In turn, on the same policy, reference, optimiser, questions and completion lengths: (a) G copies of
the prompt, as Med-R1 computes it, one prompt at a time; (b) stock TRL; (c) ours, as params.yaml
sets it. Medians over the repeats and their ratios; seconds by part; peak memory; the largest
difference between log-probabilities by (a) and (c), and the relative one between gradients. On a
GPU in bfloat16, on a CPU in float32. End tokens are suppressed, so that all completions have one
length. The full run takes 9 minutes on 2 cores, --quick less than one. On a GPU: --model
qwen2-vl-2b.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    """Measure, print tables, write the JSON and the chart."""
    from benchmarks.grpo_step.measure import measure
    from benchmarks.grpo_step.show import save_chart, show
    from stages.core.outputs import write_json
    from stages.core.params import load_params
    from stages.core.provenance import collect_provenance

    given = _arguments()
    plan = _plan(given)
    _quiet()
    result = measure(plan, lambda text: print(text, file=sys.stderr, flush=True))
    result["provenance"] = collect_provenance(
        {"grpo": load_params(Path(__file__).parents[2] / "params.yaml").grpo}
    )
    show(result)
    if given.json:
        write_json(given.json, result)
    if given.chart:
        save_chart(given.chart, result)


def _arguments() -> argparse.Namespace:
    from benchmarks.grpo_step.models import SHAPES

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grpo_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="G=4 and 10 tokens alone, few repeats")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--chart", type=Path, help="draw step times to this PNG")
    parser.add_argument("--model", choices=SHAPES, default="10m")
    parser.add_argument(
        "--groups", type=int, nargs="+", default=[4, 8], help="completions a prompt"
    )
    parser.add_argument(
        "--completions", type=int, nargs="+", default=[10, 150], help="tokens a completion"
    )
    parser.add_argument("--prompts", type=int, help="prompts an optimiser step; 8, with --quick 4")
    parser.add_argument("--repeats", type=int, help="steps of each way; 3")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="keys of grpo in params.yaml, for ours: fused_head=true",
    )
    return parser.parse_args()


def _plan(given: argparse.Namespace) -> Any:
    from benchmarks.grpo_step.measure import Plan
    from benchmarks.grpo_step.trainers import FREE
    from stages.core.yaml_files import load_yaml

    settings = (each.partition("=") for each in given.set)
    ours = {key: load_yaml(value, Path("--set")) for key, _, value in settings}
    if wrong := set(ours) - set(FREE):
        sys.exit(
            f"error: --set takes {', '.join(FREE)}, which leave the result as it is, and not"
            f" {', '.join(sorted(wrong))}"
        )
    groups, completions = ([4], [10]) if given.quick else (given.groups, given.completions)
    return Plan(
        given.model,
        tuple(groups),
        tuple(completions),
        given.repeats or 3,
        given.prompts or (4 if given.quick else 8),
        ours,
    )


def _quiet() -> None:
    """What libraries say to their own developers hides the figures."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    main()
