"""GRPO step benchmark: the gain from sharing the prompt, from PIL images to updated weights.

    python -m benchmarks.grpo_step [--quick] [--images N ...] [--json FILE] [--chart FILE]

Interleaved on the same policy, reference, optimiser, questions and completion lengths: (a) G copies
of the prompt, as in Med-R1, one prompt at a time; (b) stock TRL, in passes over as many prompts as
are fastest; (c) ours, as set in params.yaml, without drafts, as no trie foresees the completions of
a model with random weights. Medians over the repeats and their ratios; seconds by part; peak
memory. As a check that (c) is exact, the largest difference of its log-probabilities from (a), and
the relative one of gradients. bfloat16 on a GPU, float32 on a CPU. End tokens are suppressed, so
that all completions have the same length. The full run takes 15 minutes on 2 cores, --quick less
than one. On a GPU: --model qwen2-vl-2b. With --images, questions about so many images each, of
196 tokens: 1 2 4 8 measures one number after the other.

With --profile, all three train as a profile in infra/profiles does: its precision, prompts, group,
sampling, KL and threads, its images opened from files. Ours is also measured with drafts that
foresee every completion, as in a training without thoughts. Two more numbers are those of a
training with all settings of the profile, its workers and the reference ahead: the seconds per step
over 8 steps or more, and the peak memory of a step whose completions all run to their limit.
Reported, too: kernels, and how long the GPU is busy with them. What does not fit into the GPU's
memory is named; the others are measured nevertheless.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.command_line import build_parser, silence_libraries


def main() -> None:
    """Measure, print tables, write the JSON and the chart."""
    from benchmarks.grpo_step.measure import measure
    from benchmarks.grpo_step.show import save_chart, show
    from stages.core.outputs import write_json
    from stages.core.params import load_params
    from stages.core.provenance import collect_provenance

    arguments = _arguments()
    plan = _plan(arguments)
    silence_libraries()
    result = measure(plan, lambda text: print(text, file=sys.stderr, flush=True))
    grpo = load_params(Path(__file__).parents[2] / "params.yaml").grpo
    result["provenance"] = collect_provenance({"grpo": plan.setting.grpo if plan.setting else grpo})
    show(result)
    if arguments.json:
        write_json(arguments.json, result)
    if arguments.chart:
        save_chart(arguments.chart, result)


def _arguments() -> argparse.Namespace:
    from benchmarks.grpo_step.models import SHAPES
    from benchmarks.grpo_step.setting import PRECISIONS

    parser = build_parser(
        "grpo_step", __doc__, quick="only G=4 and 10 tokens, 2 prompts, one repeat"
    )
    parser.add_argument("--chart", type=Path, help="plot step times to this PNG")
    parser.add_argument("--model", choices=SHAPES, default="10m")
    parser.add_argument("--profile", help="train as this profile does, such as full")
    parser.add_argument(
        "--style",
        choices=("no-think", "think", "think-after"),
        help="prompt style (default: no-think, or that of the profile)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of weights and computation; autocast: weights in float32 (default: bfloat16 on a GPU,"
        " float32 on a CPU, or that of the profile)",
    )
    parser.add_argument(
        "--groups",
        type=int,
        nargs="+",
        help="completions per prompt (default: 4 and 8, or as the profile)",
    )
    parser.add_argument(
        "--completions", type=int, nargs="+", default=[10, 150], help="tokens per completion"
    )
    parser.add_argument(
        "--images", type=int, nargs="+", default=[1], help="images of a question (default: 1)"
    )
    parser.add_argument(
        "--prompts",
        type=int,
        help="prompts per optimiser step (default: 8, with --quick 2, or as the profile)",
    )
    parser.add_argument(
        "--repeats", type=int, help="steps per implementation (default: 3, with --quick 1)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="keys of grpo in params.yaml for ours, such as fused_head=true",
    )
    return parser.parse_args()


def _plan(arguments: argparse.Namespace) -> Any:
    from benchmarks.grpo_step.measure import Plan
    from benchmarks.grpo_step.trainers import EXACT_SETTINGS
    from stages.core.yaml_files import load_yaml
    from stages.corpus.dataset.split_files import MAX_IMAGES

    settings = (each.partition("=") for each in arguments.set)
    ours = {key: load_yaml(value, Path("--set")) for key, _, value in settings}
    if wrong := set(ours) - set(EXACT_SETTINGS):
        sys.exit(
            f"error: --set takes {', '.join(EXACT_SETTINGS)}, which do not change the result, not"
            f" {', '.join(sorted(wrong))}"
        )
    if not all(1 <= each <= MAX_IMAGES for each in arguments.images):
        sys.exit(f"error: --images takes numbers from 1 to {MAX_IMAGES}")
    setting = _setting(arguments)
    if setting is not None and setting.profile is not None:
        return _profile_plan(arguments, setting, ours)
    groups, completions = (
        ([4], [10]) if arguments.quick else (arguments.groups or [4, 8], arguments.completions)
    )
    return Plan(
        arguments.model,
        tuple(groups),
        tuple(completions),
        arguments.repeats or (1 if arguments.quick else 3),
        arguments.prompts or (2 if arguments.quick else 8),
        ours,
        setting,
        style=arguments.style or "no-think",
        images=tuple(arguments.images),
    )


def _setting(arguments: argparse.Namespace) -> Any:
    """The setting that the arguments ask for; None for the benchmark's own."""
    import torch

    from benchmarks.grpo_step.setting import default_setting, profile_setting

    if arguments.profile:
        setting = profile_setting(arguments.profile, arguments.model, arguments.style)
    elif arguments.precision:
        setting = default_setting(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    else:
        return None
    return setting.with_precision(arguments.precision) if arguments.precision else setting


def _profile_plan(arguments: argparse.Namespace, setting: Any, ours: dict[str, Any]) -> Any:
    """The plan for a profile: its prompts, passes and group."""
    from benchmarks.grpo_step.measure import Plan

    grpo = setting.grpo
    own = {"reuse_prompt_pass": grpo.reuse_prompt_pass, "fused_head": grpo.fused_head}
    return Plan(
        arguments.model,
        tuple(arguments.groups or [grpo.num_generations]),
        tuple(arguments.completions),
        arguments.repeats or 3,
        arguments.prompts or grpo.prompts_per_device * grpo.gradient_accumulation_steps,
        own | ours,
        setting,
        passes=1 if arguments.prompts else grpo.gradient_accumulation_steps,
        # only answers without thoughts are foreseen to their end
        drafted=setting.style == "no-think" and setting.uses_drafts,
        style=setting.style,
        images=tuple(arguments.images),
    )


if __name__ == "__main__":
    main()
