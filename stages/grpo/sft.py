"""Supervised fine-tuning on the answers, by TRL's SFTTrainer: the baseline for GRPO.

The target, after the prompt that evaluation uses, is the split's answer and the end of the turn;
the loss covers these tokens only. A policy sees the prompts of its GRPO twin, as many per step and
in the same order. Med-R1's released SFT script differs, to its disadvantage: loss on the prompt as
well, a target that begins with "None", another prompt (docs/sft.md).
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
from stages.corpus.dataset.split_files import images_of
from stages.grpo.data.checks import check_batch, check_prompts
from stages.grpo.data.dataset import (
    first_image,
    image_columns,
    image_counts,
    with_images,
    words_of,
)
from stages.grpo.parallel import join_deepspeed
from stages.grpo.resume import Resumable
from stages.grpo.trainer import (
    StepProgress,
    lora_config,
    make_backward_strict,
    save_callbacks,
    shared_arguments,
)
from stages.grpo.watch import TrainingWatch
from stages.policy.loading import vision_token_ids
from stages.policy.prompt_batch import backbone
from stages.policy.vision_features import embed_patches_by_product
from stages.prompts.styles import Style, chat


def target(gold: str) -> str:
    """Target completion of every style: "<answer> C </answer>", as in the split.

    The corpus has no thoughts, and none are invented. So a policy of a think style is taught to
    answer without them: evaluation accepts that, though GRPO's format reward would not.
    """
    return format_solution(gold)


def sft_config(grpo: Grpo, sft: Sft, scratch: Path, run_name: str) -> SFTConfig:
    """Our settings as TRL's; `scratch` is where it may write what is not a result."""
    return SFTConfig(
        **shared_arguments(grpo, sft.save_steps, scratch, run_name),
        per_device_train_batch_size=grpo.prompts_per_device,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.lr_scheduler,
        # below 1: a share of the steps
        warmup_steps=sft.warmup_share,
        weight_decay=sft.weight_decay,
        completion_only_loss=True,
        # no truncation: `check_prompts` refuses prompts that are too long
        max_length=None,
        pad_to_multiple_of=None,
    )


def sft_dataset(rows: list[dict[str, Any]], style: Style, processor: Any) -> Dataset:
    """Rows as in `train_dataset`, without options, as TRL's columns; images open on use.

    Prompt and completion are text and not a chat, whose template adds a line break after the end
    of the turn: a token that no policy ever generates.
    """
    chats = [
        chat(words, images=len(images_of(row)))
        for row, words in zip(rows, words_of(rows, style, "evaluate"), strict=True)
    ]
    columns = {
        "prompt": [
            processor.apply_chat_template(each, add_generation_prompt=True, tokenize=False)
            for each in chats
        ],
        "completion": [target(row["gold"]) + processor.tokenizer.eos_token for row in rows],
        **image_columns(rows),
    }
    return Dataset.from_dict(columns).with_transform(with_images)


class _SampledAsGRPO(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with the sampler of TRL's GRPO trainer, without its G repeats per prompt.

    `prompts_per_draw`: prompts per process that the GRPO twin draws at once; `repeats`: times that
    each draw is trained on.
    """

    def __init__(
        self, *arguments: Any, prompts_per_draw: int, repeats: int, **options: Any
    ) -> None:
        self._prompts_per_draw = prompts_per_draw
        self._repeats = repeats
        super().__init__(*arguments, **options)

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        return RepeatSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=1,
            batch_size=self._prompts_per_draw * self.accelerator.num_processes,
            repeat_count=self._repeats,
            shuffle=True,
            seed=self.args.seed,
        )


class MedSFTTrainer(Resumable, _SampledAsGRPO):
    """SFTTrainer with GRPO's order of prompts that resumes exactly."""


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
    """Build a trainer that is ready to run and keeps its state in `scratch`.

    Rows as in `sft_dataset`. Raises InputError if there are fewer prompts than one step takes, if
    one is too long or contains an image token, if generation would not stop where targets end, or
    if one process would use several GPUs.
    """
    check_batch(grpo, len(rows), run_name)
    _check_end(policy, processor, run_name)
    dataset = sft_dataset(rows, style, processor)
    check_prompts(
        words_of(rows, style, "evaluate"),
        image_counts(dataset),
        first_image(dataset),
        processor,
        policy,
        grpo,
    )
    if grpo.freeze_vision_tower:
        backbone(policy).visual.requires_grad_(False)
    config = sft_config(grpo, sft, scratch, run_name)
    join_deepspeed(grpo, config)
    trainer = MedSFTTrainer(
        model=policy,
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        peft_config=grpo.lora and lora_config(grpo.lora, policy),
        callbacks=[
            StepProgress(run_name),
            TrainingWatch(run_name, None),
            *save_callbacks(grpo),
        ],
        # the GRPO twin draws the prompts of an optimiser step together
        prompts_per_draw=grpo.prompts_per_device * grpo.gradient_accumulation_steps,
        repeats=grpo.num_iterations,
    )
    if trainer.args.n_gpu > 1:
        raise InputError(
            f"{run_name}: {trainer.args.n_gpu} GPUs are visible to one process: set grpo.parallel"
            " to auto, or make one visible with CUDA_VISIBLE_DEVICES=0"
        )
    embed_patches_by_product(policy)
    trainer.remove_callback(PrinterCallback)  # StepProgress prints the same in one line
    make_backward_strict(trainer)
    return trainer


def _check_end(policy: PreTrainedModel, processor: Any, run_name: str) -> None:
    """Raise InputError unless the end token of targets ends a generation, too.

    Otherwise the trained policy would never stop.
    """
    eos = policy.generation_config.eos_token_id
    eos_ids = eos if isinstance(eos, list) else [eos]
    tokenizer = processor.tokenizer
    number = tokenizer.eos_token_id
    if number in vision_token_ids(processor):
        raise InputError(
            f"{run_name}: the end token {tokenizer.eos_token!r} (token {number}) stands for an"
            " image and is never generated: set eos_token in the base's tokenizer_config.json to"
            " the end of a turn"
        )
    if number not in eos_ids:
        raise InputError(
            f"{run_name}: targets end in {tokenizer.eos_token!r} (token {number}), but generation"
            f" of the base ends at {eos_ids}: set eos_token in its tokenizer_config.json to the end"
            " of a turn"
        )
