"""Running the three ways in turn, and what is made of their times."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from transformers import GenerationConfig
from trl.trainer.utils import add_fused_lm_head

from benchmarks.gpu.matrix import TRAIN_PROMPTS
from benchmarks.grpo_step.clock import PARTS, Clock, PeakMemory
from benchmarks.grpo_step.equivalence import compare
from benchmarks.grpo_step.flops import Way, costs, peak_rate, per_prompt
from benchmarks.grpo_step.g_copies import GCopies
from benchmarks.grpo_step.models import SHAPES, build_policy, build_processor, question_rows
from benchmarks.grpo_step.trainers import TrainerStep, settings, suppressed
from stages.grpo.trainer import train_dataset

WAYS: Final[tuple[Way, ...]] = ("g_copies", "trl", "shared")
LEARNING_RATE: Final = 1e-6
"""Med-R1's; small enough that hundreds of steps leave a random model as random as it was."""
MAX_GRAD_NORM: Final = 1.0


@dataclass(frozen=True)
class Plan:
    """Measurement plan: group sizes x completion lengths, repeats per way, prompts."""

    model: str
    groups: tuple[int, ...]
    completions: tuple[int, ...]
    repeats: int
    prompts: int
    ours: dict[str, Any]

    def cells(self) -> list[tuple[int, int]]:
        """(G, C) in the order they are run."""
        cells = product(self.completions, self.groups)
        return [(group, completion) for completion, group in cells]


class Bench:
    """One model, its reference, optimiser and questions, for all that is measured."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clock = Clock(self.device)
        shape = SHAPES[plan.model]
        self.policy = build_policy(shape, self.device, seed=0)
        # other weights than the policy's, or the KL would be zero and its gradient untested
        self.reference = build_policy(shape, self.device, seed=1).eval().requires_grad_(False)
        add_fused_lm_head(self.reference)  # as TRL does with the one it opens
        self.processor = build_processor(self.clock)
        self.dataset = train_dataset(question_rows(folder, plan.prompts), "no-think")
        self.examples = [self.dataset[index] for index in range(plan.prompts)]
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )

    def steps(self, group: int, completion: int) -> tuple[GCopies, TrainerStep, TrainerStep]:
        """The three ways, in the order of WAYS."""
        tokenizer = self.processor.tokenizer
        generation = GenerationConfig(
            max_new_tokens=completion,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            suppress_tokens=suppressed(self.processor),
        )
        copies = GCopies(self.policy, self.reference, self.processor, generation, group, self.clock)
        trl, ours = (
            TrainerStep(
                self.policy,
                self.reference,
                self.processor,
                self.dataset,
                settings(group, completion, self.plan.prompts, **changes),
                self.clock,
                self.folder / "state",
            )
            for changes in ({"engine": "trl", "reuse_prompt_pass": False}, self.plan.ours)
        )
        return copies, trl, ours

    def timed(self, step: GCopies | TrainerStep) -> dict[str, float]:
        """Seconds of a whole step, from images to updated weights, by part."""
        self.clock.reset()
        step.backward(self.examples)
        self.update()
        return self.clock.stop()

    def update(self) -> None:
        """Clip, step, and let go of the gradients."""
        with self.clock.part("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def prompt_tokens(self) -> float:
        """Mean length of the prompts."""
        copies = GCopies(
            self.policy, self.reference, self.processor, GenerationConfig(), 1, self.clock
        )
        lengths = [
            copies.copies(example["prompt"][0]["content"], example["image"]).tokens
            for example in self.examples
        ]
        return sum(lengths) / len(lengths)


@contextmanager
def bench(plan: Plan) -> Iterator[Bench]:
    """A bench in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="grpo-step-") as folder:
        yield Bench(plan, Path(folder))


def measure(plan: Plan, report: Callable[[str], None]) -> dict[str, Any]:
    """All rows, and the machine they are from; `report` hears of progress."""
    with bench(plan) as each:
        rate, source = peak_rate(each.device)
        machine = {
            "device": (
                torch.cuda.get_device_name(each.device) if each.device.type == "cuda" else "cpu"
            ),
            "threads": torch.get_num_threads(),
            "dtype": str(each.policy.dtype).removeprefix("torch."),
            "peak_flops_per_second": rate,
            "peak_source": source,
            "parameters": sum(parameter.numel() for parameter in each.policy.parameters()),
            "prompt_tokens": each.prompt_tokens(),
            "prompts_per_step": plan.prompts,
            "repeats": plan.repeats,
            "ours": plan.ours,
        }
        rows = [_row(each, group, completion, rate, report) for group, completion in plan.cells()]
    return {"rows": rows, **machine}


def _row(
    each: Bench, group: int, completion: int, rate: float, report: Callable[[str], None]
) -> dict[str, Any]:
    plan = each.plan
    copies, trl, ours = each.steps(group, completion)
    steps: dict[Way, GCopies | TrainerStep] = {"g_copies": copies, "trl": trl, "shared": ours}
    same = compare(ours, copies, each.examples[:1])
    for step in steps.values():  # warm up: kernels chosen, memory taken
        step.backward(each.examples[:1])
        each.update()
    times: dict[Way, list[dict[str, float]]] = {way: [] for way in WAYS}
    memory = {way: {"above_start": 0, "total": 0} for way in WAYS}
    for repeat in range(plan.repeats):
        for way in WAYS:
            with PeakMemory(each.device) as peak:
                times[way].append(each.timed(steps[way]))
            memory[way] = {
                "above_start": max(memory[way]["above_start"], peak.above_start),
                "total": max(memory[way]["total"], peak.total),
            }
        said = ", ".join(f"{way} {times[way][-1]['step']:.2f} s" for way in WAYS)
        report(f"G={group} C={completion}, {repeat + 1} of {plan.repeats}: {said}")
    sizes = {"model": plan.model, "group_size": group, "completion_tokens": completion}
    seconds = {
        way: {part: median(run[part] for run in times[way]) for part in ("step", *PARTS)}
        for way in WAYS
    }
    model, prompt = costs(each.policy.config), round(each.prompt_tokens())
    flops = {way: plan.prompts * per_prompt(way, model, prompt, completion, group) for way in WAYS}
    return (
        sizes
        | figures(seconds, flops, plan.prompts, group * completion, rate)
        | same
        | {
            "seconds": seconds,
            "peak_memory_bytes": memory,
        }
    )


def figures(
    seconds: dict[Way, dict[str, float]],
    flops: dict[Way, float],
    prompts: int,
    tokens: int,
    rate: float,
) -> dict[str, Any]:
    """Derived figures of steps over `prompts` prompts with `tokens` completion tokens each.

    `mfu`: the FLOPs a way executes over what the machine could execute in the time of its step.
    `bound_vs_*`: the speedup if time were FLOPs. `largest_in_ours`: the part of our step that takes
    most of it, with its share.
    """
    step = {way: seconds[way]["step"] for way in WAYS}
    largest = max(PARTS, key=lambda part: seconds["shared"][part])
    return {
        "speedup_vs_g_copies": step["g_copies"] / step["shared"],
        "speedup_vs_trl": step["trl"] / step["shared"],
        "bound_vs_g_copies": flops["g_copies"] / flops["shared"],
        "bound_vs_trl": flops["trl"] / flops["shared"],
        "largest_in_ours": {"part": largest, "share": seconds["shared"][largest] / step["shared"]},
        "ms_per_prompt": {way: 1000 * step[way] / prompts for way in WAYS},
        "completion_tokens_per_second": {way: prompts * tokens / step[way] for way in WAYS},
        "flops_per_step": flops,
        "mfu": {way: flops[way] / (step[way] * rate) for way in WAYS},
        "matrix_hours": {way: TRAIN_PROMPTS * step[way] / prompts / 3600 for way in WAYS},
    }
