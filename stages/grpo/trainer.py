"""GRPO trainer: builds TRL's trainer from our settings, checks its data, logs and saves.

TRL counts completions where Med-R1 and our settings count prompts: its per-device batch is ours
times the group size.
"""

from __future__ import annotations

import csv
import os
import sys
from math import ceil
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, set_seed
from trl import GRPOConfig

from stages.core.errors import InputError
from stages.core.iteration.progress import progress_reporter
from stages.core.params import Grpo, Lora
from stages.core.services.tracking import TrackingRun
from stages.corpus.dataset.problems import LETTERS, format_solution
from stages.grpo.data.checks import check_batch, check_completion_length, check_prompts
from stages.grpo.data.dataset import first_image, image_counts
from stages.grpo.engine import MedGRPOTrainer
from stages.grpo.parallel import gather_weights, join_deepspeed, parallel_arguments
from stages.grpo.resume import SaveByTime
from stages.grpo.rewards import reward_functions
from stages.grpo.scoring import EngineOptions
from stages.grpo.vllm_rollout import generation_kwargs, require_vllm, vllm_arguments
from stages.grpo.watch import TrainingWatch
from stages.policy.determinism import deterministic_mode
from stages.policy.prompt_batch import backbone
from stages.policy.vision_attention import batches_images
from stages.prompts.styles import Style

LOGGED: Final[dict[str, str]] = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "reward_std",
    "rewards/accuracy/mean": "reward_accuracy",
    "rewards/format/mean": "reward_format",
    "kl": "kl",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "truncated",
    "frac_reward_zero_std": "frac_reward_zero_std",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "rollout/drafted": "drafted",
    "rollout/forwards": "decode_forwards",
}
"""TRL's name of each logged number -> its column in the training log."""


def shared_arguments(grpo: Grpo, save_steps: int, scratch: Path, run_name: str) -> dict[str, Any]:
    """Arguments that TRL's GRPO and SFT trainers share.

    `scratch` is where a trainer may write what is not a result.
    """
    return {
        "output_dir": str(scratch),
        "run_name": run_name,
        "seed": grpo.seed,
        "gradient_accumulation_steps": grpo.gradient_accumulation_steps,
        "num_train_epochs": grpo.num_train_epochs,
        "max_steps": grpo.max_steps,
        "adam_beta2": grpo.adam_beta2,
        "max_grad_norm": grpo.max_grad_norm,
        "gradient_checkpointing": grpo.gradient_checkpointing,
        "bf16": grpo.bf16,
        **parallel_arguments(grpo),
        "logging_steps": grpo.logging_steps,
        # it would log a NaN loss as the mean of those before
        "logging_nan_inf_filter": False,
        # `TrackingCallback` reports instead: transformers' own integrations would add local paths,
        # and no hashes
        "report_to": "none",
        "remove_unused_columns": False,
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 1,
        # two: a kill may leave the last one incomplete
        "save_total_limit": 2,
        "disable_tqdm": True,
        "dataloader_num_workers": grpo.loader_workers,
        # they open files and share tensors, and keep their images of the epoch before
        "dataloader_persistent_workers": grpo.loader_workers > 0,
        "dataloader_prefetch_factor": _prefetch_factor(grpo),
        # the default of Python 3.14 would copy the policy to each worker
        "dataloader_multiprocessing_context": "fork" if grpo.loader_workers else None,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "accelerator_config": {"non_blocking": torch.cuda.is_available()},
        # without it several processes on CPUs do not form a group
        "use_cpu": not torch.cuda.is_available(),
    }


def _prefetch_factor(grpo: Grpo) -> int | None:
    """Batches ahead per loader worker: those that the reference takes at once, and one more."""
    if not grpo.loader_workers:
        return None
    return ceil(grpo.batches_ahead / grpo.loader_workers) + 1


def grpo_config(grpo: Grpo, scratch: Path, run_name: str) -> GRPOConfig:
    """Our settings as TRL's; `scratch` is where it may write what is not a result."""
    return GRPOConfig(
        **shared_arguments(grpo, grpo.save_steps, scratch, run_name),
        num_generations=grpo.num_generations,
        per_device_train_batch_size=grpo.prompts_per_device * grpo.num_generations,
        learning_rate=grpo.learning_rate,
        lr_scheduler_type=grpo.lr_scheduler,
        warmup_steps=grpo.warmup_steps,
        weight_decay=grpo.weight_decay,
        beta=grpo.beta,
        epsilon=grpo.epsilon,
        # TRL's default multiplies the KL by the ratio, which changes its gradient: not so in Med-R1
        use_bias_correction_kl=False,
        num_iterations=grpo.num_iterations,
        # a prompt pass can be reused for one loss only; None: as many as are accumulated
        steps_per_generation=1 if reuses_prompt_pass(grpo) else None,
        loss_type=grpo.loss_type,
        scale_rewards=grpo.scale_rewards,
        reward_weights=list(grpo.rewards.values()),
        temperature=grpo.temperature,
        top_p=grpo.top_p,
        top_k=grpo.top_k,
        max_completion_length=grpo.max_completion_length,
        **vllm_arguments(grpo),
    )


def reuses_prompt_pass(grpo: Grpo) -> bool:
    """Whether the pass over the prompts that starts a rollout serves its loss, too."""
    return grpo.engine == "shared-prefix" and grpo.reuse_prompt_pass


def build_trainer(
    policy: PreTrainedModel,
    processor: Any,
    dataset: Dataset,
    grpo: Grpo,
    style: Style,
    *,
    scratch: Path,
    run_name: str,
) -> MedGRPOTrainer:
    """Build a trainer that is ready to run and keeps its state in `scratch`.

    Raises InputError if there are fewer prompts than one step takes, if one is too long or contains
    an image token, or if a package or GPU that the settings need is missing.
    """
    check_batch(grpo, len(dataset), run_name)
    questions = [prompt[0]["content"] for prompt in dataset.with_format(None)["prompt"]]
    check_prompts(questions, image_counts(dataset), first_image(dataset), processor, policy, grpo)
    check_completion_length(processor, grpo, style)
    if grpo.rollout != "policy":
        require_vllm(grpo.rollout)
    config = grpo_config(grpo, scratch, run_name)
    join_deepspeed(grpo, config)
    implementations = {
        name: getattr(policy.config, name)._attn_implementation
        for name in ("text_config", "vision_config")
    }
    if batches_images(policy):
        implementations["vision_config"] = "sdpa"  # the engine changes it after loading
    if len(set(implementations.values())) > 1:
        # TRL would load the reference with the language model's for both
        config.model_init_kwargs = {"attn_implementation": implementations}
    config.generation_kwargs = generation_kwargs(processor, grpo.rollout)
    if grpo.freeze_vision_tower:
        backbone(policy).visual.requires_grad_(False)
    trainer = MedGRPOTrainer(
        model=policy,
        reward_funcs=reward_functions(list(grpo.rewards), style),
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        peft_config=grpo.lora and lora_config(grpo.lora, policy),
        callbacks=[
            StepProgress(run_name),
            TrainingWatch(run_name, grpo.max_completion_length),
            *save_callbacks(grpo),
        ],
        engine_options=EngineOptions(
            engine=grpo.engine,
            draft_nodes=grpo.draft_nodes if grpo.rollout == "policy" else 0,
            draft_seeds=draft_seeds(processor, dataset, style),
            reuse_prompt_pass=grpo.reuse_prompt_pass,
            reference_steps=grpo.reference_steps,
            skip_zero_advantage=grpo.skip_zero_advantage,
            fused_head=grpo.fused_head,
            vision_cache_bytes=grpo.vision_cache_mb * 2**20,
            compile=grpo.compile,
            cuda_graphs=grpo.cuda_graphs,
        ),
    )
    trainer.remove_callback(PrinterCallback)  # StepProgress prints the same in one line
    make_backward_strict(trainer)
    return trainer


def save_callbacks(grpo: Grpo) -> list[TrainerCallback]:
    """What saves states by time, if anything does."""
    return [SaveByTime(grpo.save_minutes)] if grpo.save_minutes else []


def draft_seeds(processor: Any, dataset: Dataset, style: Style) -> tuple[tuple[int, ...], ...]:
    """Token ids of completions that are likely from the start: the answer format of each letter.

    With thoughts first, only their beginning is known.
    """
    options = max(map(len, dataset.with_format(None)["options"]))
    texts = [format_solution(letter) for letter in LETTERS[:options]]
    if style == "think":
        texts = ["<think>"]
    return tuple(tuple(ids) for ids in processor.tokenizer(texts)["input_ids"])


def lora_config(lora: Lora, policy: PreTrainedModel) -> Any:
    """The peft configuration of `grpo.lora`, for layers of the language model only.

    Raises InputError if peft is missing, or if the language model has no such layers.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise InputError(
            "grpo.lora needs the package peft: install the extra `lora`, or set grpo.lora to null"
        ) from None
    # the vision tower's layers may have the same names
    modules = rf".*language_model\..*\.({'|'.join(lora.target_modules)})"
    names = {
        name.rpartition(".")[2]
        for name, layer in policy.named_modules()
        if ".language_model." in name and isinstance(layer, torch.nn.Linear)
    }
    if unknown := sorted(set(lora.target_modules) - names):
        raise InputError(
            f"grpo.lora.target_modules: the language model has no layer {unknown[0]!r}; it has"
            f" {', '.join(sorted(names))}"
        )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        task_type="CAUSAL_LM",
    )


def write_log(history: list[dict[str, Any]], path: Path) -> None:
    """Write one CSV row per logged step, from the trainer's history.

    It contains no wall-clock times, so two equal runs write the same bytes.
    """
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=["step", *LOGGED.values()], lineterminator="\n")
        writer.writeheader()
        for logs in history:
            if "loss" in logs:  # the last entry has totals only
                columns = {ours: logs.get(theirs) for theirs, ours in LOGGED.items()}
                writer.writerow({"step": logs["step"]} | columns)


class StepProgress(TrainerCallback):  # type: ignore[misc]
    """Progress of a training: a bar on a terminal, lines elsewhere, with reward or loss."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        hidden = not sys.stderr.isatty() or not state.is_world_process_zero
        self._bar = tqdm(
            total=state.max_steps,
            desc=self._name,
            initial=state.global_step,
            unit="step",
            disable=hidden,
        )
        self._report = progress_reporter(
            self._name, state.max_steps, "step", done=state.global_step
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Advance to the logged step."""
        metric = next((name for name in ("reward", "loss") if logs and name in logs), None)
        if logs and metric and state.is_world_process_zero:
            note = f"{metric} {logs[metric]:.2f}"
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(state.global_step - self._bar.n)
            if self._bar.disable:
                self._report(state.global_step, f"{note}, ")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self._bar.close()


class TrackingCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Reports the columns of the training log to a tracking run, as `train/<column>`."""

    def __init__(self, run: TrackingRun) -> None:
        self._run = run

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Report one step."""
        logs = logs or {}
        values = {
            f"train/{ours}": logs[theirs] for theirs, ours in LOGGED.items() if theirs in logs
        }
        if values:
            self._run.log(values, state.global_step)


def deterministic(seed: int) -> None:
    """Seed everything, and use deterministic algorithms; torch warns where it has none.

    On CUDA, cuBLAS is deterministic with a fixed workspace, which must be set before its first use.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # otherwise torch fills every new tensor, to show reads of memory that nothing was written to
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_backward_strict(trainer: Any) -> None:
    """Let torch raise an error in backward passes for what is not deterministic, not only warn.

    In this mode alone CUDA's attention is deterministic: where torch is to warn, it takes the
    faster kernel.
    """
    backward = trainer.accelerator.backward

    def strict(*arguments: Any, **options: Any) -> None:
        with deterministic_mode(enabled=torch.are_deterministic_algorithms_enabled()):
            backward(*arguments, **options)

    trainer.accelerator.backward = strict


def save_policy(trainer: Any, processor: Any, folder: Path) -> None:
    """Write the trained policy as a plain transformers checkpoint; all processes must call it.

    It has safetensors, processor and generation config; an adapter is merged.
    """
    state = gather_weights(trainer)
    if not trainer.accelerator.is_main_process:
        return
    policy = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if hasattr(policy, "merge_and_unload"):
        if trainer.is_deepspeed_enabled and trainer.args.bf16:
            # else the adapter would be merged rounded to 16 bits
            policy.float().load_state_dict(state)
        policy.merge_and_unload().save_pretrained(folder)
    else:
        policy.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)
