"""Drafts benchmark: a training of the embedded sample with drafted completions and without.

    python -m benchmarks.drafts [--checkpoint ct] [--steps 180] [--quick] [--json FILE]

Two trainings from the same start, on the same questions and draws, step by step in turn, in one
process. Both must write the same completions, so the rewards of every step are compared; step by
step and drafted logits differ by rounding, so a draw that falls between them may differ. Seconds
are medians of a step, from images to updated weights. Run it in a project whose splits are there
(`dvc repro splits base`).
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

WAYS: Final = ("drafted", "step by step")


def main() -> None:
    """Measure, print the figures, write the JSON."""
    from stages.core.outputs import write_json
    from stages.core.provenance import collect_provenance

    parser = build_parser("drafts", __doc__, quick="12 steps")
    parser.add_argument("--checkpoint", default="ct", help="a key of checkpoints in params.yaml")
    parser.add_argument("--steps", type=int, default=180)
    arguments = parser.parse_args()
    silence_libraries()
    steps = 12 if arguments.quick else arguments.steps
    result = measure(arguments.checkpoint, steps)
    for way in WAYS:
        print(
            f"{way}: {1000 * result['seconds'][way]:.0f} ms a step,"
            f" {result['forwards'][way]:.2f} decoding passes a step"
        )
    later = ""
    if result["forwards_later"] is not None:
        later = f" {result['forwards_later']:.2f} decoding passes a step after step 20;"
    print(
        f"{result['speedup']:.2f} times as fast; {result['drafted']:.2%} of the completions ended"
        f" in the trie;{later} equal rewards in {result['equal_rewards']} of {steps} steps"
    )
    if arguments.json:
        write_json(arguments.json, result | {"provenance": collect_provenance({})})


def measure(checkpoint: str, steps: int) -> dict[str, Any]:
    """Train both ways; seconds, decoding passes, and the share of drafted completions."""
    with tempfile.TemporaryDirectory(prefix="drafts-") as folder:
        runs = {
            way: _steps(checkpoint, steps, drafted=way == "drafted", folder=Path(folder) / way)
            for way in WAYS
        }
        rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(steps):
            for way in WAYS:
                rows[way].append(next(runs[way]))
    seconds = {way: median(row["seconds"] for row in rows[way]) for way in WAYS}
    one, other = (rows[way] for way in WAYS)
    return {
        "checkpoint": checkpoint,
        "steps": steps,
        "seconds": seconds,
        "speedup": seconds["step by step"] / seconds["drafted"],
        "forwards": {way: mean(row["forwards"] for row in rows[way]) for way in WAYS},
        "forwards_later": mean(row["forwards"] for row in one[20:]) if steps > 20 else None,
        "drafted": mean(row["drafted"] for row in one),
        "equal_rewards": sum(a["reward"] == b["reward"] for a, b in zip(one, other, strict=True)),
    }


def _steps(
    checkpoint: str, steps: int, *, drafted: bool, folder: Path
) -> Iterator[dict[str, float]]:
    """Train step by step: the seconds of each, its mean reward, and how it was sampled."""
    import torch

    from stages.core import layout
    from stages.core.errors import InputError
    from stages.core.params import load_params
    from stages.corpus.dataset.problems import parse_solution
    from stages.corpus.dataset.split_files import read_split
    from stages.grpo.data.dataset import train_dataset
    from stages.grpo.trainer import build_trainer, deterministic
    from stages.policy.loading import load_policy, load_processor

    params = load_params()
    entry = params.require_checkpoint(checkpoint)
    grpo = params.grpo_for(checkpoint)
    if entry.method != "grpo" or grpo.engine != "shared-prefix":
        raise InputError(
            f"checkpoints.{checkpoint} is trained by {entry.method} with the engine {grpo.engine}:"
            " name one by grpo with shared-prefix"
        )
    nodes = (grpo.draft_nodes or 64) if drafted else 0
    # one pass a step: that is what is timed
    changes = {"draft_nodes": nodes, "save_steps": 0, "gradient_accumulation_steps": 1}
    grpo = grpo.model_copy(update=changes)
    torch.set_num_threads(params.base.threads)
    deterministic(grpo.seed)
    split = layout.split(entry.axis, entry.split, "train", params.splits.kind)
    rows = [
        {
            "image": item["image"],
            "problem": item["problem"],
            "gold": parse_solution(item["solution"]),
            "options": item["options"],
        }
        for item in read_split(split)
    ]
    trainer: Any = build_trainer(
        load_policy(
            Path(entry.start), dtype=params.base.dtype, attention="sdpa", custom_masks=True
        ),
        load_processor(Path(entry.start)),
        train_dataset(rows, params.prompt.style),
        grpo,
        params.prompt.style,
        scratch=folder,
        run_name=checkpoint,
    )
    trainer.create_optimizer_and_scheduler(steps)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batches = iter(trainer.get_train_dataloader())
    metrics = trainer._metrics["train"]
    while True:
        start = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            batches = iter(trainer.get_train_dataloader())
            batch = next(batches)
        trainer.training_step(trainer.model, batch, None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), grpo.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        yield {
            "seconds": time.perf_counter() - start,
            "reward": metrics["reward"][-1],
            "drafted": metrics["rollout/drafted"][-1],
            "forwards": metrics["rollout/forwards"][-1],
        }


if __name__ == "__main__":
    run_stage(main)
