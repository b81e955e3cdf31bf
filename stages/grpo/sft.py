"""Supervised fine-tuning on the answers with TRL's SFTTrainer, the baseline for GRPO.

A policy is shown, behind the words that evaluation asks with, the answer of the split and the end
of its turn; the loss is on these tokens alone. It sees the prompts of its GRPO twin, as many at a
step and in the same order. Med-R1's released SFT script differs, in its disfavour: loss on the
prompt as well, a target that begins with "None", a prompt of its own (docs/sft.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import RepeatSampler

from stages.core.errors import InputError
from stages.core.params import Grpo, Sft
from stages.corpus.dataset.problems import format_solution
from stages.grpo.parallel import join_deepspeed
from stages.grpo.resume import Resumable
from stages.grpo.trainer import (
    StepProgress,
    adapter,
    check_batch,
    check_prompts,
    shared_arguments,
    with_images,
)
from stages.policy.loading import vision_token_ids
from stages.policy.prompt_batch import backbone
from stages.policy.vision_features import embed_patches_by_product
from stages.prompts.styles import Style, chat, prompt_text


def target(gold: str) -> str:
    """The training target in every style: the split's answer, "<answer> C </answer>".

    The corpus has no thoughts, and none are made up. So a policy of a think style is taught to
    answer without them: its answers count in evaluation as any others, though GRPO's format reward
    would refuse them.
    """
    return format_solution(gold)


def sft_config(grpo: Grpo, sft: Sft, scratch: Path, run_name: str) -> SFTConfig:
    """Our settings in TRL's words; `scratch` is where it may write what is not a result."""
    return SFTConfig(
        **shared_arguments(grpo, sft.save_steps, scratch, run_name),
        per_device_train_batch_size=grpo.prompts_per_device,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.lr_scheduler,
        # below 1 it is a share of the steps
        warmup_steps=sft.warmup_share,
        weight_decay=sft.weight_decay,
        completion_only_loss=True,
        # nothing is ever cut: too long a prompt is refused
        max_length=None,
        pad_to_multiple_of=None,
    )


def sft_dataset(rows: list[dict[str, Any]], style: Style, processor: Any) -> Dataset:
    """TRL dataset rows: prompt and completion as text, image opened on use.

    As text and not as a chat, whose template adds a line break behind the end of the turn: a token
    that no policy ever writes.
    """
    words = [prompt_text(row["problem"], style, "evaluate") for row in rows]
    columns = {
        "prompt": [
            processor.apply_chat_template(chat(each), add_generation_prompt=True, tokenize=False)
            for each in words
        ],
        "completion": [target(row["gold"]) + processor.tokenizer.eos_token for row in rows],
        "image": [row["image"] for row in rows],
    }
    return Dataset.from_dict(columns).with_transform(with_images)


class _InOrder(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that sees prompts in the order of the GRPO trainer: same sampler, no repeats."""

    def __init__(self, *arguments: Any, batch: int, repeats: int, **more: Any) -> None:
        self._batch, self._repeats = batch, repeats
        super().__init__(*arguments, **more)

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        return RepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=1,
            batch_size=self._batch * self.accelerator.num_processes,
            repeat_count=self._repeats,
            shuffle=True,
            seed=self.args.seed,
        )


class MedSFTTrainer(Resumable, _InOrder):
    """TRL's trainer in GRPO's order of prompts, which goes on exactly where it was stopped."""


def build_sft_trainer(
    policy: PreTrainedModel,
    processor: Any,
    rows: list[dict[str, Any]],
    grpo: Grpo,
    sft: Sft,
    style: Style,
    *,
    scratch: Path,
    run_name: str,
) -> MedSFTTrainer:
    """A trainer ready to run, its state to go to `scratch`; rows as `sft_dataset` takes them.

    Raises InputError if there are fewer prompts than a batch, one is too long or holds tokens that
    stand for images, a policy would not end where its targets end, or several GPUs are to be used
    by one process.
    """
    check_batch(grpo, len(rows), run_name)
    _check_end(policy, processor, run_name)
    dataset = sft_dataset(rows, style, processor)
    check_prompts(
        [prompt_text(row["problem"], style, "evaluate") for row in rows],
        dataset[0]["image"],
        processor,
        policy,
        grpo,
    )
    if grpo.freeze_vision_tower:
        backbone(policy).visual.requires_grad_(False)
    # what GRPO draws at once, and how many steps it makes with it
    parts = (
        1
        if grpo.engine == "shared-prefix" and grpo.reuse_prompt_pass
        else grpo.gradient_accumulation_steps
    )
    config = sft_config(grpo, sft, scratch, run_name)
    join_deepspeed(grpo, config)
    trainer = MedSFTTrainer(
        model=policy,
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        peft_config=grpo.lora and adapter(grpo.lora, policy),
        callbacks=[StepProgress(run_name)],
        batch=grpo.prompts_per_device * parts,
        repeats=grpo.num_iterations,
    )
    if trainer.args.n_gpu > 1:
        raise InputError(
            f"{run_name}: {trainer.args.n_gpu} GPUs are visible to one process: set grpo.parallel"
            " to auto, or make one visible with CUDA_VISIBLE_DEVICES=0"
        )
    embed_patches_by_product(policy)
    trainer.remove_callback(PrinterCallback)  # StepProgress says the same in a line
    return trainer


def _check_end(policy: PreTrainedModel, processor: Any, run_name: str) -> None:
    """Check that the target's last token ends a generation.

    Otherwise the policy would never stop.
    """
    ends = policy.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    token, number = processor.tokenizer.eos_token, processor.tokenizer.eos_token_id
    if number not in ends or number in vision_token_ids(processor):
        raise InputError(
            f"{run_name}: targets end in {token!r} (token {number}), but the base's generation ends"
            f" at {ends}: set eos_token in its tokenizer_config.json to the end of a turn"
        )
