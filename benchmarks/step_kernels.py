"""Kernels and host time of a training step, part by part: what a GPU waits for.

    python -m benchmarks.step_kernels [--steps 2] [--quick] [--json FILE]

A step on a large GPU is bound by the host that launches its kernels, so what counts is how many
there are and how long the host takes. Both can be measured without a GPU: a Qwen2-VL of full depth
(28 decoder layers, 32 vision blocks) and 784 patches an image, but so narrow that a CPU computes
next to nothing. The setting is that of the profile `full`: its precision, sampling and loss, 4
prompts, 4 completions, with a reference. A large logit makes all completions the same ten tokens,
as answers without thoughts nearly are.

Each line adds one thing to the line before. Kernels: operations on tensors that are no views, in
one optimiser step, mean over as many steps as the reference takes at once. Milliseconds: from
loading to updated weights, mean over as many steps, medians of --steps rounds with all lines in
turn; in float32, as a CPU takes far longer to compute in bfloat16 than to launch. Both by part.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

from benchmarks.command_line import build_parser, silence_libraries
from stages.core.cli import run_stage

PROMPTS: Final = 4
GROUP: Final = 4
TOKENS: Final = 10
AHEAD: Final = 8
"""Steps whose prompts the reference takes at once."""

LINES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("token by token", {"fill": True}),
    ("new tensors are not filled", {"fill": False}),
    ("decoding at one width", {"cuda_graphs": True}),
    ("drafts", {"cuda_graphs": False, "draft_nodes": 64}),
    ("images of one size together", {"batched": True}),
    (f"the reference for {AHEAD} steps", {"reference_steps": AHEAD}),
    ("images by workers", {"loader_workers": 2}),
)
"""Name and changes against the line before. "Decoding at one width" is what a GPU captures once
and replays as one launch; it is taken back in the next line, where nothing is left to decode.
"""
PARTS: Final = (
    "images",
    "prompt pass",
    "sampling",
    "completions",
    "reference",
    "backward",
    "optimizer",
    "other",
)
"""Parts of a step. `images`: loading and processing prompts, or waiting for workers; `prompt pass`:
the policy's pass over prompts and drafts; `sampling`: passes that sample a token, and what else a
rollout does; `completions`: the policy's pass over them; `other`: TRL, rewards, the loss.
"""


def main() -> None:
    """Measure, print tables, write the JSON."""
    from stages.core.outputs import write_json
    from stages.core.provenance import collect_provenance

    parser = build_parser(
        "step_kernels", __doc__, quick="1 round, an eighth of the depth, kernels in float32"
    )
    parser.add_argument("--steps", type=int, default=2, help="rounds that are timed")
    arguments = parser.parse_args()
    silence_libraries()
    rows = measure(1, 8, bf16=False) if arguments.quick else measure(arguments.steps)
    show(rows)
    if arguments.json:
        write_json(arguments.json, {"rows": rows, "provenance": collect_provenance({})})


def show(rows: list[dict[str, Any]]) -> None:
    """Print kernels and milliseconds of each line, in all and by part."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(Console().width, 160))
    for key, title in (("kernels", "Kernels a step"), ("ms", "Milliseconds a step")):
        table = Table("", "all", *PARTS, title=title)
        for row in rows:
            numbers = [row[key], *(row["parts"][part][key] for part in PARTS)]
            table.add_row(row["name"], *(f"{number:,.0f}" for number in numbers))
        console.print(table)


def measure(steps: int, shallower: int = 1, *, bf16: bool = True) -> list[dict[str, Any]]:
    """Kernels and milliseconds of each line, at the depth of the 2B divided by `shallower`.

    `bf16`: kernels are those of autocast, as in `full`, which take a CPU minutes.
    """
    import torch

    from benchmarks.grpo_step.models import question_rows

    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        "draft_nodes": 0,
        "batched": False,
        "reference_steps": 1,
        "loader_workers": 0,
        "cuda_graphs": False,
    }
    lines: list[tuple[str, dict[str, Any]]] = []
    for name, changes in LINES:
        settings = settings | changes
        lines.append((name, settings))
    kernels: dict[str, Counter[str]] = {}
    seconds: dict[str, list[Counter[str]]] = {name: [] for name, _ in lines}
    with tempfile.TemporaryDirectory(prefix="step-kernels-") as folder:
        rows = question_rows(Path(folder), (2 + (1 + steps) * AHEAD) * PROMPTS)
        runs = []
        for number, (name, each) in enumerate(lines):
            at = Path(folder) / f"{number}"
            counted = Run(at.with_suffix(".counted"), rows, each | {"bf16": bf16}, shallower)
            counted.step()  # drafts learn what is written
            cycle = range(each["reference_steps"])
            kernels[name] = sum((counted.count_kernels() for _ in cycle), Counter())
            counted.close()
            run = Run(at.with_suffix(".timed"), rows, each | {"bf16": False}, shallower)
            run.step()
            runs.append((name, cycle, run))
        for _ in range(steps):
            for name, cycle, run in runs:
                timed = [run.step() for _ in cycle]
                seconds[name].append(
                    Counter({part: mean(step[part] for step in timed) for part in PARTS})
                )
        for _, _, run in runs:
            run.close()
    results = []
    for name, each in lines:
        count = each["reference_steps"]
        parts = {
            part: {
                "kernels": kernels[name][part] / count,
                "ms": 1000 * median(round_[part] for round_ in seconds[name]),
            }
            for part in PARTS
        }
        total = 1000 * median(round_.total() for round_ in seconds[name])
        results.append(
            {"name": name, "kernels": kernels[name].total() / count, "ms": total, "parts": parts}
        )
    return results


class Run:
    """A training of one line of the table, step by step."""

    def __init__(
        self, folder: Path, rows: list[dict[str, Any]], settings: dict[str, Any], shallower: int
    ) -> None:
        """`settings`: of `LINES`, all that were added so far."""
        import torch

        from benchmarks.grpo_step.clock import Clock

        folder.mkdir()
        self._clock = Clock(torch.device("cpu"))
        self._steps = _steps(folder, rows, settings, shallower, self._clock)

    def step(self) -> dict[str, float]:
        """Take a step: seconds by part."""
        return next(self._steps)

    def count_kernels(self) -> Counter[str]:
        """Take a step: operations on tensors by part, views left out."""
        from torch.utils._python_dispatch import TorchDispatchMode

        clock = self._clock
        counts: Counter[str] = Counter()

        class Counting(TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                if not function.is_view and function.namespace == "aten":
                    counts[clock.running] += 1
                return function(*args, **(kwargs or {}))

        with Counting():
            self.step()
        return counts

    def close(self) -> None:
        """End the training, and workers that load its images."""
        self._steps.close()


def _steps(
    folder: Path, rows: list[dict[str, Any]], settings: dict[str, Any], shallower: int, clock: Any
) -> Generator[dict[str, float], None, None]:
    """Train on questions, step by step: the seconds of each by part."""
    import torch

    from benchmarks.grpo_step.trainers import prepared_for, repeating

    trainer = _build_trainer(folder, rows, settings, shallower, clock)
    batches: Any = iter(trainer.get_train_dataloader())
    token = trainer.processing_class.tokenizer.convert_tokens_to_ids("A")
    with prepared_for(trainer), repeating(trainer.model, token):
        try:
            while True:
                torch.utils.deterministic.fill_uninitialized_memory = settings["fill"]  # type: ignore[attr-defined]
                clock.reset()
                with clock.part("images"):
                    (batch,), _ = trainer.get_batch_samples(batches, 1, torch.device("cpu"))
                trainer.training_step(trainer.model, batch, None)
                with clock.part("optimizer"):
                    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
                    trainer.optimizer.step()
                    trainer.optimizer.zero_grad(set_to_none=True)
                yield clock.parts()
        finally:
            batches.close()


def _build_trainer(
    folder: Path, rows: list[dict[str, Any]], settings: dict[str, Any], shallower: int, clock: Any
) -> Any:
    """A trainer in the setting of `full`, at its depth and tiny widths, whose parts are timed."""
    import torch

    from benchmarks.grpo_step.clock import Clock
    from benchmarks.grpo_step.models import (
        SHAPES,
        Shape,
        build_policy,
        build_processor,
        reward,
    )
    from benchmarks.grpo_step.setting import profile_params
    from stages.grpo.data.dataset import train_dataset
    from stages.grpo.trainer import build_trainer, deterministic
    from stages.policy.loading import load_policy
    from stages.policy.vision_attention import batch_images

    full, narrow = SHAPES["qwen2-vl-2b"], SHAPES["tiny"]
    shape = Shape(
        "full depth",
        full.family,
        narrow.text | {"num_hidden_layers": full.text["num_hidden_layers"] // shallower},
        narrow.vision | {"depth": full.vision["depth"] // shallower},
        std=narrow.std,
    )
    build_policy(shape, torch.device("cpu"), seed=0).save_pretrained(folder / "policy")
    policy = load_policy(folder / "policy", dtype="float32", attention="eager")
    policy.set_attn_implementation("sdpa")
    if settings["batched"]:
        batch_images(policy)
    changes = {
        name: settings[name]
        for name in ("draft_nodes", "reference_steps", "loader_workers", "cuda_graphs", "bf16")
    } | {
        "num_generations": GROUP,
        "prompts_per_device": PROMPTS,
        "max_completion_length": TOKENS,
        "save_minutes": None,
    }
    grpo = profile_params("full").grpo.model_copy(update=changes)
    deterministic(grpo.seed)
    trainer: Any = build_trainer(
        policy,
        build_processor(Clock(torch.device("cpu"))),  # its time is that of images
        train_dataset(rows, "no-think"),
        grpo,
        "no-think",
        scratch=folder / "state",
        run_name="step",
    )
    trainer.args.dataloader_persistent_workers = False
    trainer.reward_funcs = [reward]
    trainer.reward_func_names = ["cheap"]
    trainer.reward_weights = torch.ones(1)
    trainer.reward_processing_classes = [None]
    trainer.create_optimizer_and_scheduler(1000)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    _time_parts(trainer, clock)
    return trainer


def _time_parts(trainer: Any, clock: Any) -> None:
    """Let the clock count the time of a trainer's methods as parts."""
    score = trainer._get_per_token_logps_and_entropies

    def timed_score(model: Any, *arguments: Any, **more: Any) -> Any:
        with clock.part("reference" if model is trainer.ref_model else "completions"):
            return score(model, *arguments, **more)

    trainer._get_per_token_logps_and_entropies = timed_score
    trainer._prefill = clock.timed("prompt pass", trainer._prefill)
    trainer._generate_single_turn = clock.timed("sampling", trainer._generate_single_turn)
    trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)


if __name__ == "__main__":
    run_stage(main)
