"""Stage `train@<checkpoint>`: GRPO on the checkpoint's train split, from the base to a Hugging Face directory.

Run as `python -m stages.train ct`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from stages import layout
from stages.cli import run_stage
from stages.corpus.problems import parse_problem, parse_solution
from stages.corpus.splits import read_split
from stages.errors import InputError
from stages.outputs import whole_directory, whole_file, write_json
from stages.params import Grpo, Params, load_params
from stages.provenance import provenance


def main() -> None:
    """Train one checkpoint and write models/<checkpoint> and training/<checkpoint>.csv."""
    arguments = argparse.ArgumentParser(prog="python -m stages.train", description=__doc__)
    arguments.add_argument("checkpoint", help="a key of checkpoints in params.yaml")
    name = arguments.parse_args().checkpoint
    params = load_params()
    checkpoint, grpo = params.require_checkpoint(name), params.grpo_for(name)
    split = layout.split(checkpoint.axis, name, "train")
    rows = [_question(item, split) for item in read_split(split)]
    if grpo.report_to == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_DIR", str(layout.SCRATCH))
        os.environ.setdefault("WANDB_PROJECT", "med-r1")

    from stages.grpo.policy import load_policy, load_processor  # imports torch
    from stages.grpo.trainer import build_trainer, deterministic, save_policy, train_dataset

    deterministic(grpo.seed)
    policy = load_policy(layout.BASE_MODEL, dtype=params.base.dtype, attention=params.base.attention)
    processor = load_processor(layout.BASE_MODEL)
    dataset = train_dataset(rows, params.prompt.style)
    with whole_file(layout.training_log(name)) as log, whole_directory(layout.model(name)) as folder:
        scratch = layout.SCRATCH / "train" / name
        scratch.mkdir(parents=True, exist_ok=True)
        trainer = build_trainer(policy, processor, dataset, grpo, params.prompt.style, scratch=scratch, log=log, run_name=name)
        trainer.train()
        save_policy(trainer, processor, folder)
        facts = provenance({"base": params.base, "prompt": params.prompt, "grpo": grpo})
        write_json(folder / "provenance.json", facts)
        (folder / "README.md").write_text(_card(name, checkpoint.axis, len(rows), params, grpo, facts), encoding="utf-8")
        steps = trainer.state.global_step
    print(f"{name}: {steps} steps on {len(rows)} questions -> {layout.model(name)}")


def _question(item: dict[str, Any], split: Path) -> dict[str, Any]:
    """One item of a split as the trainer takes it; InputError if its picture is not there."""
    if not Path(item["image"]).is_file():
        raise InputError(f"{split}: {item['question_id']}: image {item['image']} is missing; run `dvc repro resize`")
    _, options = parse_problem(item["problem"])
    return {"image": item["image"], "problem": item["problem"], "gold": parse_solution(item["solution"]), "options": list(options.values())}


def _card(name: str, axis: str, questions: int, params: Params, grpo: Grpo, facts: dict[str, Any]) -> str:
    """The model card: what it is, from what, and what it is not for."""
    return f"""---
base_model: {params.base.source}
license: apache-2.0
pipeline_tag: image-text-to-text
tags: [grpo, medical, visual-question-answering]
---

# {name}

A vision-language policy trained with GRPO (TRL) on the {axis} split `{name}`: {questions} multiple-choice questions, answer
style `{params.prompt.style}`, {grpo.num_generations} completions a prompt. Base: `{params.base.source}`, revision
`{params.base.revision}`. Corpus: `{facts["corpus"]}`. Settings and versions: `provenance.json`.

For research on training methods. Not a medical device; not for clinical use.
"""


if __name__ == "__main__":
    run_stage(main)
