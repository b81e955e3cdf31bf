"""Measurement of the three implementations, interleaved, and the figures derived from it."""

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
"""Med-R1's; so small that hundreds of steps hardly change a random model."""
MAX_GRAD_NORM: Final = 1.0


@dataclass(frozen=True)
class Plan:
    """Measurement plan: group sizes x completion lengths, repeats, prompts, settings of ours."""

    model: str
    groups: tuple[int, ...]
    completions: tuple[int, ...]
    repeats: int
    prompts: int
    ours: dict[str, Any]

    def cells(self) -> list[tuple[int, int]]:
        """(G, C) in the order of measurement."""
        cells = product(self.completions, self.groups)
        return [(group, completion) for completion, group in cells]


class Bench:
    """One model with its reference, optimiser and questions, shared by all measurements."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clock = Clock(self.device)
        shape = SHAPES[plan.model]
        self.policy = build_policy(shape, self.device, seed=0)
        # another seed than the policy's: with equal weights the KL and its gradient would be zero
        self.reference = build_policy(shape, self.device, seed=1).eval().requires_grad_(False)
        add_fused_lm_head(self.reference)  # as TRL does with a reference that it loads
        self.processor = build_processor(self.clock)
        self.dataset = train_dataset(question_rows(folder, plan.prompts), "no-think")
        self.examples = [self.dataset[index] for index in range(plan.prompts)]
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )

    def steps(self, group: int, completion: int) -> tuple[GCopies, TrainerStep, TrainerStep]:
        """The three implementations, in the order of WAYS."""
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

        def trainer_step(prompts: int, **changes: Any) -> TrainerStep:
            return TrainerStep(
                self.policy,
                self.reference,
                self.processor,
                self.dataset,
                settings(group, completion, prompts, **changes),
                self.clock,
                self.folder / "state",
            )

        trl = self.fastest(
            lambda prompts: trainer_step(prompts, engine="trl", reuse_prompt_pass=False)
        )
        ours = trainer_step(self.plan.prompts, **self.plan.ours)
        return copies, trl, ours

    def fastest(self, step_of: Callable[[int], TrainerStep]) -> TrainerStep:
        """The step with the number of prompts a pass that takes least time for a prompt.

        Numbers that divide the prompts of a step are tried, each on one pass after a warm-up.
        """
        divisors = [
            each for each in range(1, self.plan.prompts + 1) if not self.plan.prompts % each
        ]
        seconds = {}
        for prompts in divisors:
            step = step_of(prompts)
            for _ in range(2):
                self.clock.reset()
                step.backward(self.examples[:prompts])
                self.update()
                seconds[prompts] = self.clock.stop()["step"] / prompts
        return step_of(min(divisors, key=seconds.__getitem__))

    def timed(self, step: GCopies | TrainerStep) -> dict[str, float]:
        """Seconds of a whole step, from images to updated weights, by part."""
        self.clock.reset()
        step.backward(self.examples)
        self.update()
        return self.clock.stop()

    def update(self) -> None:
        """Clip the gradients, update the weights, clear the gradients."""
        with self.clock.part("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def prompt_tokens(self) -> float:
        """Mean length of the prompts in tokens."""
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
    """Measure all cells of the plan; rows, and properties of device and model."""
    with bench(plan) as setup:
        device = setup.device
        rate, source = peak_rate(device)
        properties = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "dtype": str(setup.policy.dtype).removeprefix("torch."),
            "peak_flops_per_second": rate,
            "peak_source": source,
            "parameters": sum(parameter.numel() for parameter in setup.policy.parameters()),
            "prompt_tokens": setup.prompt_tokens(),
            "prompts_per_step": plan.prompts,
            "repeats": plan.repeats,
            "ours": plan.ours,
        }
        rows = [_row(setup, group, completion, rate, report) for group, completion in plan.cells()]
    return {"rows": rows, **properties}


def _row(
    setup: Bench, group: int, completion: int, rate: float, report: Callable[[str], None]
) -> dict[str, Any]:
    plan = setup.plan
    copies, trl, ours = setup.steps(group, completion)
    steps: dict[Way, GCopies | TrainerStep] = {"g_copies": copies, "trl": trl, "shared": ours}
    differences = compare(ours, copies, setup.examples[:1])
    for step in steps.values():  # warm-up
        step.backward(setup.examples[:1])
        setup.update()
    times: dict[Way, list[dict[str, float]]] = {way: [] for way in WAYS}
    memory = {way: {"above_start": 0, "total": 0} for way in WAYS}
    for repeat in range(plan.repeats):
        for way in WAYS:
            with PeakMemory(setup.device) as peak:
                times[way].append(setup.timed(steps[way]))
            memory[way] = {
                "above_start": max(memory[way]["above_start"], peak.above_start),
                "total": max(memory[way]["total"], peak.total),
            }
        progress = ", ".join(f"{way} {times[way][-1]['step']:.2f} s" for way in WAYS)
        report(f"G={group} C={completion}, {repeat + 1} of {plan.repeats}: {progress}")
    seconds = {
        way: {part: median(run[part] for run in times[way]) for part in ("step", *PARTS)}
        for way in WAYS
    }
    model = costs(setup.policy.config)
    prompt = round(setup.prompt_tokens())
    flops = {way: plan.prompts * per_prompt(way, model, prompt, completion, group) for way in WAYS}
    return {
        "model": plan.model,
        "group_size": group,
        "completion_tokens": completion,
        "trl_prompts_per_pass": trl.prompts_per_pass,
        **figures(seconds, flops, plan.prompts, group * completion, rate),
        **differences,
        "seconds": seconds,
        "peak_memory_bytes": memory,
    }


def figures(
    seconds: dict[Way, dict[str, float]],
    flops: dict[Way, float],
    prompts: int,
    tokens: int,
    rate: float,
) -> dict[str, Any]:
    """Derived figures of steps over `prompts` prompts with `tokens` completion tokens each.

    `mfu`: executed FLOPs over the peak in the time of the step; `bound_vs_*`: ratio of FLOPs;
    `largest_in_ours`: the longest part of our step with its share.
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
