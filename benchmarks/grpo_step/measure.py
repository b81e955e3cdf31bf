"""Measurement of the three implementations, interleaved, and the figures derived from it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from transformers import GenerationConfig
from trl.trainer.utils import add_fused_lm_head

from benchmarks.grpo_step.clock import Clock
from benchmarks.grpo_step.fitting import attempt
from benchmarks.grpo_step.flops import Way, peak_rate
from benchmarks.grpo_step.g_copies import GCopies, tower_attention
from benchmarks.grpo_step.models import SHAPES, build_policy, build_processor, question_rows
from benchmarks.grpo_step.row import measure_row
from benchmarks.grpo_step.setting import Setting, default_setting
from benchmarks.grpo_step.trainers import TrainerStep, settings, suppressed
from stages.corpus.dataset.image_store import open_image
from stages.grpo.data.dataset import train_dataset
from stages.prompts.styles import Style

Result = TypeVar("Result")

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
        """Implementations of a single step, in the order of measurement."""
        return (*WAYS, "drafted") if self.drafted else WAYS

    @property
    def traced(self) -> tuple[Way, ...]:
        """Those of which kernels are counted: with thoughts, which take minutes, ours alone."""
        return self.ways if self.style == "no-think" else ("shared",)

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
        self._rows: list[dict[str, Any]] = []
        rows = self.question_rows(self.plan.prompts)
        self.dataset = train_dataset(rows, self.plan.style)
        self.examples = [self.dataset[index] for index in range(self.plan.prompts)]

    def question_rows(self, count: int) -> list[dict[str, Any]]:
        """So many questions, each with images of its own; the first ones are always the same."""
        if len(self._rows) < count:
            self._rows = question_rows(self.folder, count, self.images)
        return self._rows[:count]

    def steps(self, group: int, completion: int) -> dict[Way, GCopies | TrainerStep | None]:
        """The implementations of the plan, in order; None for TRL if no number of prompts fits."""
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
        steps: dict[Way, GCopies | TrainerStep | None] = {
            "g_copies": copies,
            "trl": trl,
            "shared": trainer_step(own_pass, **self.plan.ours),
        }
        if self.plan.drafted:
            drafts = {"draft_nodes": grpo.draft_nodes}
            steps["drafted"] = trainer_step(own_pass, **drafts | self.plan.ours)
        return steps

    def fastest(self, step_of: Callable[[int], TrainerStep]) -> TrainerStep | None:
        """The step with the number of prompts a pass that takes least time for a prompt.

        Numbers that divide the prompts of a step are tried, each on one pass after a warm-up. One
        that does not fit into the GPU's memory is no candidate, nor are larger ones; None if none
        fits.
        """
        divisors = [
            each for each in range(1, self.plan.prompts + 1) if not self.plan.prompts % each
        ]
        seconds: dict[int, float] = {}
        for prompts in divisors:
            elapsed = self.attempt(partial(self._seconds_per_prompt, step_of, prompts))
            if elapsed is None:
                break
            seconds[prompts] = elapsed
        return step_of(min(seconds, key=seconds.__getitem__)) if seconds else None

    def _seconds_per_prompt(self, step_of: Callable[[int], TrainerStep], prompts: int) -> float:
        """Seconds of the second of two passes over so many prompts, for each of them."""
        step = step_of(prompts)
        for _ in range(2):
            self.clock.reset()
            step.backward(self.examples[:prompts])
            self.update()
            elapsed = self.clock.stop()["step"]
        return elapsed / prompts

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

    def attempt(self, work: Callable[[], Result]) -> Result | None:
        """As `fitting.attempt`, and no gradients are left of what did not fit."""
        result = attempt(work)
        if result is None:
            self.optimizer.zero_grad(set_to_none=True)
        return result

    def baselines_tower(self) -> str:
        """How the vision tower attends in the implementations that ours is compared with."""
        copies = GCopies(
            self.policy, self.reference, self.processor, GenerationConfig(), 1, self.clock
        )
        copies.choose_tower()
        return tower_attention(self.policy)

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
            "baselines_tower": setup.baselines_tower(),
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
            rows += [measure_row(setup, *cell, rate, report) for cell in plan.cells()]
    return {"rows": rows, **properties}
