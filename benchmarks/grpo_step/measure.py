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
from benchmarks.grpo_step.setting import Setting, default_setting
from benchmarks.grpo_step.trace import trace
from benchmarks.grpo_step.trainers import TrainerStep, settings, suppressed
from stages.corpus.dataset.image_store import open_image
from stages.grpo.data.dataset import train_dataset
from stages.prompts.styles import Style

WAYS: Final[tuple[Way, ...]] = ("g_copies", "trl", "shared")
LEARNING_RATE: Final = 1e-6
"""Med-R1's; so small that hundreds of steps hardly change a random model."""
MAX_GRAD_NORM: Final = 1.0


@dataclass(frozen=True)
class Plan:
    """Measurement plan: group sizes x completion lengths, repeats, prompts, settings of ours.

    `setting`: None for the benchmark's own; `passes`: in which ours computes a step; `drafted`:
    measure ours with drafts, too; `images`: of each question, one number after the other.
    """

    model: str
    groups: tuple[int, ...]
    completions: tuple[int, ...]
    repeats: int
    prompts: int
    ours: dict[str, Any]
    setting: Setting | None = None
    passes: int = 1
    drafted: bool = False
    style: Style = "no-think"
    images: tuple[int, ...] = (1,)

    @property
    def ways(self) -> tuple[Way, ...]:
        """Implementations in the order of measurement."""
        return (*WAYS, "drafted") if self.drafted else WAYS

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
        self.setting = plan.setting or default_setting(self.device)
        self.setting.prepare_process()
        self.policy = self._build_policy(seed=0)
        # another seed than the policy's: with equal weights the KL and its gradient would be zero
        self.reference = self._build_policy(seed=1).eval().requires_grad_(False)
        add_fused_lm_head(self.reference)  # as TRL does with a reference that it loads
        self.processor = build_processor(self.clock)
        self.ask_about(plan.images[0])
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )

    def _build_policy(self, seed: int) -> Any:
        setting = self.setting
        shape = SHAPES[self.plan.model]
        return build_policy(shape, self.device, seed, setting.dtype, setting.attention_by_part)

    def ask_about(self, images: int) -> None:
        """Let all questions have so many images from now on."""
        self.images = images
        rows = question_rows(self.folder, self.plan.prompts, images)
        self.dataset = train_dataset(rows, self.plan.style)
        self.examples = [self.dataset[index] for index in range(self.plan.prompts)]

    def steps(self, group: int, completion: int) -> dict[Way, GCopies | TrainerStep]:
        """The implementations of the plan, in order."""
        grpo = self.setting.grpo
        tokenizer = self.processor.tokenizer
        generation = GenerationConfig(
            max_new_tokens=completion,
            do_sample=True,
            temperature=grpo.temperature,
            top_k=grpo.top_k,
            top_p=grpo.top_p,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            suppress_tokens=suppressed(self.processor),
        )
        copies = GCopies(
            self.policy,
            self.reference,
            self.processor,
            generation,
            group,
            self.clock,
            grpo.beta,
            self.setting.autocast(self.device),
        )

        def trainer_step(prompts: int, **changes: Any) -> TrainerStep:
            return TrainerStep(
                self.policy,
                self.reference,
                self.processor,
                self.dataset,
                settings(grpo, group, completion, prompts, **changes),
                self.clock,
                self.folder / "state",
                grpo.beta,
            )

        trl = self.fastest(
            lambda prompts: trainer_step(prompts, engine="trl", reuse_prompt_pass=False)
        )
        own_pass = self.plan.prompts // self.plan.passes
        steps: dict[Way, GCopies | TrainerStep] = {
            "g_copies": copies,
            "trl": trl,
            "shared": trainer_step(own_pass, **self.plan.ours),
        }
        if self.plan.drafted:
            drafts = {"draft_nodes": grpo.draft_nodes}
            steps["drafted"] = trainer_step(own_pass, **drafts | self.plan.ours)
        return steps

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
        """Seconds of a whole step, from images to updated weights, by part.

        With the setting of a profile, `step` is of another step, in which no part waits for the
        GPU, and images are opened from their files.
        """
        self.clock.reset()
        self.step(step)
        seconds = self.clock.stop()
        if self.setting.profile is not None:
            self.clock.by_part = False
            self.clock.reset()
            self.step(step)
            seconds["step"] = self.clock.stop()["step"]
            self.clock.by_part = True
        return seconds

    def step(self, step: GCopies | TrainerStep) -> None:
        """One whole step."""
        if self.setting.from_files:
            with self.clock.part("images"):
                for example in self.examples:
                    if "image" in example:
                        example["image"] = open_image(example["image_path"])
                    else:
                        example["images"] = [open_image(path) for path in example["image_paths"]]
        step.backward(self.examples)
        self.update()

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
        lengths = [copies.copies(example).tokens for example in self.examples]
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
        setting = setup.setting
        rate, source = peak_rate(device)
        properties = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "dtype": str(setup.policy.dtype).removeprefix("torch."),
            "precision": setting.precision,
            "profile": setting.profile,
            "setting": setting.own,
            "peak_flops_per_second": rate,
            "peak_source": source,
            "parameters": sum(parameter.numel() for parameter in setup.policy.parameters()),
            "prompt_tokens": setup.prompt_tokens(),
            "prompts_per_step": plan.prompts,
            "passes": plan.passes,
            "style": plan.style,
            "repeats": plan.repeats,
            "ours": plan.ours,
        }
        rows = []
        for images in plan.images:
            setup.ask_about(images)
            rows += [_row(setup, *cell, rate, report) for cell in plan.cells()]
    return {"rows": rows, **properties}


def _row(
    setup: Bench, group: int, completion: int, rate: float, report: Callable[[str], None]
) -> dict[str, Any]:
    plan = setup.plan
    steps: Any = setup.steps(group, completion)
    differences = compare(steps["shared"], steps["g_copies"], setup.examples[:1])
    ways = plan.ways
    for step in steps.values():  # warm-up
        step.backward(setup.examples[:1])
        setup.update()
    times: dict[Way, list[dict[str, float]]] = {way: [] for way in ways}
    memory = {way: {"above_start": 0, "total": 0} for way in ways}
    for repeat in range(plan.repeats):
        for way in ways:
            with PeakMemory(setup.device) as peak:
                times[way].append(setup.timed(steps[way]))
            memory[way] = {
                "above_start": max(memory[way]["above_start"], peak.above_start),
                "total": max(memory[way]["total"], peak.total),
            }
        progress = ", ".join(f"{way} {times[way][-1]['step']:.2f} s" for way in ways)
        cell = f"G={group} C={completion} images={setup.images}"
        report(f"{cell}, {repeat + 1} of {plan.repeats}: {progress}")
    seconds = {
        way: {part: median(run[part] for run in times[way]) for part in ("step", *PARTS)}
        for way in ways
    }
    model = costs(setup.policy.config)
    prompt = round(setup.prompt_tokens())
    nodes = steps["drafted"].nodes if plan.drafted else 0
    sizes = (prompt, completion, group, nodes, setup.images)
    flops = {way: plan.prompts * per_prompt(way, model, *sizes) for way in ways}
    details: dict[str, Any] = {}
    if setup.setting.profile is not None:
        details["kernels"] = {way: _trace(setup, steps[way]) for way in ways}
    if plan.drafted:
        details["drafts"] = {**steps["drafted"].sampled, "nodes": nodes}
    return {
        "model": plan.model,
        "group_size": group,
        "completion_tokens": completion,
        "images": setup.images,
        "prompt_tokens": prompt,
        "trl_prompts_per_pass": steps["trl"].prompts_per_pass,
        **figures(seconds, flops, plan.prompts, group * completion, rate),
        **differences,
        **details,
        "seconds": seconds,
        "peak_memory_bytes": memory,
    }


def _trace(setup: Bench, step: GCopies | TrainerStep) -> dict[str, float] | None:
    setup.clock.by_part = False
    try:
        return trace(setup.device, lambda: setup.step(step))
    finally:
        setup.clock.by_part = True


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
    step = {way: each["step"] for way, each in seconds.items()}
    largest = max(PARTS, key=lambda part: seconds["shared"][part])
    share = seconds["shared"][largest] / sum(seconds["shared"][part] for part in PARTS)
    return {
        "speedup_vs_g_copies": step["g_copies"] / step["shared"],
        "speedup_vs_trl": step["trl"] / step["shared"],
        "bound_vs_g_copies": flops["g_copies"] / flops["shared"],
        "bound_vs_trl": flops["trl"] / flops["shared"],
        "largest_in_ours": {"part": largest, "share": share},
        "ms_per_prompt": {way: 1000 * step[way] / prompts for way in step},
        "completion_tokens_per_second": {way: prompts * tokens / step[way] for way in step},
        "flops_per_step": flops,
        "mfu": {way: flops[way] / (step[way] * rate) for way in step},
        "matrix_hours": {way: TRAIN_PROMPTS * step[way] / prompts / 3600 for way in step},
    }
