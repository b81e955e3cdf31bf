"""Kernels and host time of a training step, part by part: what a GPU waits for.

    python -m benchmarks.step_kernels [--steps 8] [--quick] [--json FILE]

A step on a large GPU is bound by the host that launches its kernels, so what counts is how many
there are and how long the host takes. Both can be measured without a GPU: a Qwen2-VL of full depth
(28 decoder layers, 32 vision blocks) and 784 patches an image, but so narrow that a CPU computes
next to nothing. The setting is that of the published training: 4 prompts, 4 completions, with a
reference. The lowest number is drawn every time, so all completions are the same ten tokens, as
answers without thoughts nearly are.

Each line adds one thing to the line before. Kernels: operations on tensors that are no views, in
one optimiser step, mean over as many steps as the reference takes at once. Milliseconds: medians of
a step from loading to updated weights, all lines in turn.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
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


def main() -> None:
    """Measure, print a table, write the JSON."""
    from stages.core.outputs import write_json
    from stages.core.provenance import collect_provenance

    parser = build_parser("step_kernels", __doc__, quick="2 steps, an eighth of the depth")
    parser.add_argument("--steps", type=int, default=AHEAD, help="steps that are timed")
    arguments = parser.parse_args()
    silence_libraries()
    rows = measure(2, 8) if arguments.quick else measure(arguments.steps)
    width = max(len(row["name"]) for row in rows)
    print(f"{'':{width}}  kernels   ms a step")
    for row in rows:
        print(f"{row['name']:{width}}  {row['kernels']:7,.0f}  {row['ms']:10.0f}")
    if arguments.json:
        write_json(arguments.json, {"rows": rows, "provenance": collect_provenance({})})


def measure(steps: int, shallower: int = 1) -> list[dict[str, Any]]:
    """Kernels and milliseconds of each line, at the depth of the 2B divided by `shallower`."""
    import torch

    from benchmarks.grpo_step.models import question_rows
    from stages.grpo import engine

    torch.set_num_threads(1)
    # the lowest draw picks the first token, whatever the logits are
    vars(engine)["draws"] = lambda seed, numbers, group, tokens: torch.full(
        (len(numbers), group, tokens), 0.0, dtype=torch.float64
    )
    settings: dict[str, Any] = {
        "draft_nodes": 0,
        "batched": False,
        "reference_steps": 1,
        "loader_workers": 0,
        "cuda_graphs": False,
    }
    runs = []
    with tempfile.TemporaryDirectory(prefix="step-kernels-") as folder:
        rows = question_rows(Path(folder), (2 + AHEAD + steps) * PROMPTS)
        for number, (name, changes) in enumerate(LINES):
            settings = settings | changes
            runs.append(
                (
                    name,
                    dict(settings),
                    _steps(Path(folder) / str(number), rows, settings, shallower),
                )
            )
        kernels: dict[str, list[int]] = {name: [] for name, _, _ in runs}
        seconds: dict[str, list[float]] = {name: [] for name, _, _ in runs}
        for name, chosen, run in runs:
            next(run)  # drafts learn what is written
            for _ in range(chosen["reference_steps"]):
                kernels[name].append(_count_kernels(run))
        for _ in range(steps):
            for name, _, run in runs:
                seconds[name].append(next(run))
    return [
        {"name": name, "kernels": mean(kernels[name]), "ms": 1000 * median(seconds[name])}
        for name, _, _ in runs
    ]


def _count_kernels(run: Iterator[float]) -> int:
    """Operations on tensors, views left out, of the next step of a run."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if not function.is_view and function.namespace == "aten":
                self.count += 1
            return function(*args, **(kwargs or {}))

    with Counter() as counter:
        next(run)
    return counter.count


def _steps(
    folder: Path, rows: list[dict[str, Any]], settings: dict[str, Any], shallower: int
) -> Iterator[float]:
    """Train on questions, step by step: the seconds of each."""
    import torch

    from benchmarks.grpo_step.clock import Clock
    from benchmarks.grpo_step.models import (
        SHAPES,
        Shape,
        build_policy,
        build_processor,
        reward,
    )
    from stages.core.params import load_params
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
    folder.mkdir()
    build_policy(shape, torch.device("cpu"), seed=0).save_pretrained(folder / "policy")
    policy = load_policy(folder / "policy", dtype="float32", attention="eager")
    policy.set_attn_implementation("sdpa")
    if settings["batched"]:
        batch_images(policy)
    changes = {
        name: settings[name]
        for name in ("draft_nodes", "reference_steps", "loader_workers", "cuda_graphs")
    } | {
        "num_generations": GROUP,
        "prompts_per_device": PROMPTS,
        "max_completion_length": TOKENS,
        "reuse_prompt_pass": True,
        "save_steps": 0,
        "max_steps": -1,
        "num_train_epochs": 1.0,
        "learning_rate": 1e-12,
    }
    grpo = load_params().grpo.model_copy(update=changes)
    deterministic(grpo.seed)
    trainer: Any = build_trainer(
        policy,
        build_processor(Clock(torch.device("cpu"))),
        train_dataset(rows, "no-think"),
        grpo,
        "no-think",
        scratch=folder / "state",
        run_name="step",
    )
    trainer.reward_funcs = [reward]
    trainer.reward_func_names = ["cheap"]
    trainer.reward_weights = torch.ones(1)
    trainer.reward_processing_classes = [None]
    trainer.create_optimizer_and_scheduler(1000)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batches = iter(trainer.get_train_dataloader())
    while True:
        torch.utils.deterministic.fill_uninitialized_memory = settings["fill"]  # type: ignore[attr-defined]
        start = time.perf_counter()
        (batch,), _ = trainer.get_batch_samples(batches, 1, torch.device("cpu"))
        trainer.training_step(trainer.model, batch, None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        yield time.perf_counter() - start


if __name__ == "__main__":
    run_stage(main)
