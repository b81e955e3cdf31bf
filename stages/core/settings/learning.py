"""Settings of what learns: base, prompts, training by GRPO and SFT, and its tracking."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stages.core.settings.group import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    SettingsGroup,
)


class Towers(SettingsGroup):
    """Attention, said for each part of a policy."""

    language: Literal["eager", "sdpa", "flash_attention_2"]
    """flash_attention_2 needs grpo.engine trl. Stage evaluate needs a mask per row, which it cannot
    take, and uses sdpa instead.
    """
    vision: Literal["auto", "eager", "sdpa", "sdpa_batched", "flash_attention_2"]
    """flash_attention_2 takes all images in one call, sdpa_batched those of one size, sdpa one at a
    time; auto chooses the first where it runs, else the second.
    """


class Base(SettingsGroup):
    """Stage base, and how train and evaluate open any checkpoint."""

    source: str
    """A folder with a Hugging Face checkpoint, or a model id on the hub."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    """The commit of a model id, 40 hex digits: a name or a tag could move. null for a folder."""
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] | Towers
    """One implementation for language model and vision tower, or {language: sdpa, vision: auto}.
    auto: that combination on a GPU (install flash-attn); sdpa: everywhere, batched in the vision
    tower; eager: slowest, for comparisons.
    """
    threads: PositiveInt
    """Threads of a CPU that a policy is computed with: with other numbers, sums are rounded in
    other orders.
    """
    max_pixels: PositiveInt | None
    """Largest image, in pixels, that the processor passes on; null keeps its own limit."""


class Prompt(SettingsGroup):
    """Stages train and evaluate."""

    style: Literal["think", "no-think", "think-after"]
    """Whether thoughts are asked for, and on which side of the answer."""


class Lora(SettingsGroup):
    """A low-rank adapter (arXiv 2106.09685), merged into the weights when training ends."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: list[str]
    """Ends of the names of the linear layers that get one, in the language model."""


def _not_zero(steps: int) -> int:
    if steps == 0:
        raise ValueError("a training of no steps is none: -1 leaves it to the epochs")
    return steps


class Grpo(SettingsGroup):
    """Stage train: GRPO (arXiv 2402.03300) as TRL's GRPOTrainer runs it."""

    engine: Literal["shared-prefix", "trl"]
    """Compute a prompt and its image once for its group, or once for each completion as TRL does:
    the same numbers.
    """
    draft_nodes: Annotated[int, Field(ge=0, le=1024)]
    """Tokens of likely completions that are computed in the prompt's pass, so that they need none
    of their own; completions are the same. Engine shared-prefix; 0: none.
    """
    reuse_prompt_pass: bool
    """The pass over a prompt that begins its rollout keeps its gradients and serves the loss too: a
    fifth less work. It holds the activations of all prompts of a forward pass while completions
    are sampled.
    """
    reference_steps: Annotated[int, Field(ge=1, le=64)]
    """Batches whose prompts, with their drafts, the reference takes in one pass, ahead of their
    steps: fewer and larger passes, with the images of all of them in memory. Above 1 it needs
    reuse_prompt_pass. 1: each batch after its rollout, as always without drafts and with lora.
    """
    compile: bool
    """Compile vision tower and layers with torch.compile: minutes at the start, then fewer and
    larger kernels. Rounding changes. Needs a C++ compiler, on a GPU Triton.
    """
    cuda_graphs: bool
    """Capture a decoding step once and replay it, for completions that drafts do not foresee: on a
    GPU, where launching a step takes longer than the step. Completions are the same.
    """
    skip_zero_advantage: bool
    """No pass of the policy for groups whose completions were all worth the same. Needs beta 0,
    without which they have a gradient, and excludes reuse_prompt_pass.
    """
    fused_head: bool
    """Log-probabilities tile by tile, without keeping logits: for large vocabularies and long
    completions on a GPU.
    """
    freeze_vision_tower: bool
    """Train the language model alone; gradients end at the features of the image. Choose it to save
    the tower's backward pass, over half of a step of short answers, where the base sees such images
    well enough; with `vision_cache_mb` an image is seen once.
    """
    vision_cache_mb: NonNegativeInt
    """Memory for features of images, in MiB: of the reference's tower, and of the policy's if
    frozen. 0: none are kept.
    """
    lora: Lora | None
    """Train an adapter instead of all weights; the reference is then the policy without it. Choose
    it where gradients and optimiser do not fit beside the weights: it saves their memory, and the
    reference's. It needs the extra `lora`. null: all weights, as published.
    """
    seed: Seed
    num_generations: Annotated[int, Field(ge=2, le=1024)]
    """Completions sampled for each prompt: the group an advantage is relative to."""
    prompts_per_device: PositiveInt
    """Prompts a device takes in one forward pass, each with its whole group."""
    gradient_accumulation_steps: PositiveInt
    num_train_epochs: PositiveFloat
    max_steps: Annotated[int, Field(ge=-1, lt=2**31), AfterValidator(_not_zero)]
    """Optimiser steps; -1: as many as the epochs take."""
    learning_rate: PositiveFloat
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_steps: NonNegativeInt
    weight_decay: NonNegativeFloat
    adam_beta2: Annotated[float, Field(gt=0, lt=1)]
    max_grad_norm: PositiveFloat
    beta: NonNegativeFloat
    """Weight of the KL divergence from the base; 0 runs without a reference and logs no KL."""
    epsilon: PositiveFloat
    """The ratio of new to old probability is clipped to 1 +- epsilon."""
    num_iterations: PositiveInt
    """Optimiser updates made with one batch of completions."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"]
    scale_rewards: Literal["group", "batch", "none"]
    """What the advantage is divided by: the standard deviation of its group, of the batch, or
    nothing.
    """
    rewards: dict[Literal["accuracy", "format"], Annotated[float, Field(ge=-1000, le=1000)]]
    """Reward name -> weight."""
    temperature: PositiveFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: NonNegativeInt
    """Tokens of the highest probabilities that are drawn from; 0: all."""
    max_prompt_length: PositiveInt
    """Tokens, those of the image among them."""
    max_completion_length: PositiveInt
    """Tokens."""
    gradient_checkpointing: bool
    """Compute activations a second time instead of keeping them: a third more work, far less
    memory. Choose it when a step of one prompt a device does not fit, before ZeRO-3.
    """
    bf16: bool
    """Mixed precision: compute in bfloat16. Choose it on any GPU that has it (Ampere and newer); on
    a CPU it is slower.
    """
    parallel: Literal["auto", "none", "ddp", "zero2", "zero3"]
    """How the GPUs of a slot share a training, one process on each. auto: by DDP if there are
    several, else plainly. none: plainly, on the first. ddp: refused where there is but one. zero2:
    DeepSpeed cuts optimiser and gradients into a part for each GPU; choose it when a 2B or 3B
    model's do not fit beside the weights. zero3: the weights too, gathered for each pass; slowest,
    so only when a model does not fit otherwise. infra/deepspeed/ has their configurations; they
    need the extra `gpu`. docs/launch.md
    """
    timeout_minutes: Annotated[float, Field(gt=0, le=100_000)]
    """Minutes that a rank waits for the others before the training ends. Raise it if one may be
    slow alone, e.g. writing its state to a slow disk; lower it to notice hangs sooner.
    """
    rollout: Literal["policy", "vllm-colocate", "vllm-server"]
    """What samples completions. policy: the policy itself, behind its own pass over the prompt;
    choose it for answers of some ten tokens. vllm-colocate: vLLM on the same GPUs; choose it for
    thoughts of hundreds of tokens. vllm-server: vLLM on GPUs of its own, `vllm_server`. Both need a
    GPU and the extra `vllm`, and cannot give the same draws again.
    """
    vllm_memory_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of a GPU's memory that vLLM takes beside a training (vllm-colocate)."""
    vllm_server: Annotated[str, Field(pattern=r"^https?://[^/@\s]+$")] | None
    """Address of the server of vllm-server, as http://host:8000."""
    loader_workers: Annotated[int, Field(ge=0, le=64)]
    """Processes that open and process images while the step before computes; 0: the training does
    it itself, in between. Choose 2 where a GPU would wait; results are the same.
    """
    logging_steps: PositiveInt
    save_steps: NonNegativeInt
    """Optimiser steps between two states of the training, from which a killed run resumes; 0: none
    by steps.
    """
    save_minutes: PositiveFloat | None
    """A state is also saved after so many minutes, at the next logged step; of SFT too."""

    @property
    def batches_ahead(self) -> int:
        """`reference_steps` where they have an effect, else 1."""
        drafted = self.engine == "shared-prefix" and self.draft_nodes > 0
        return self.reference_steps if drafted and self.lora is None else 1

    @model_validator(mode="after")
    def _has_rewards(self) -> Self:
        if not self.rewards:
            raise ValueError("at least one reward is needed: accuracy, format")
        if not any(self.rewards.values()):
            raise ValueError("rewards: every weight is 0, so nothing can be learnt: raise one")
        return self

    @model_validator(mode="after")
    def _settings_are_compatible(self) -> Self:
        if self.engine == "shared-prefix":
            self._check_sharing()
        self._check_parallel()
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps {self.save_steps} is not a multiple of logging_steps"
                f" {self.logging_steps}"
            )
        return self

    def _check_sharing(self) -> None:
        if self.skip_zero_advantage and self.beta:
            raise ValueError(
                f"skip_zero_advantage needs beta 0, not {self.beta}: the KL of a group without"
                " advantage has a gradient"
            )
        if self.reuse_prompt_pass:
            wrong = {
                "skip_zero_advantage": self.skip_zero_advantage,
                "gradient_checkpointing": self.gradient_checkpointing,
                f"parallel {self.parallel}": self.parallel == "zero3",
                f"rollout {self.rollout}": self.rollout != "policy",
                "num_iterations above 1": self.num_iterations > 1,
            }
            if refused := [name for name, present in wrong.items() if present]:
                raise ValueError(
                    f"reuse_prompt_pass excludes {', '.join(refused)}: set it to false"
                )

        elif self.reference_steps > 1:
            raise ValueError(
                f"reference_steps {self.reference_steps} needs reuse_prompt_pass: set it to 1"
            )

    def _check_parallel(self) -> None:
        if self.parallel == "zero3" and self.lora:
            raise ValueError(
                "lora excludes parallel zero3, which cuts the weights an adapter is merged into:"
                " set parallel to auto or zero2"
            )
        if self.parallel == "zero3" and self.vision_cache_mb:
            raise ValueError(
                "vision_cache_mb excludes parallel zero3: a process that has an image's features"
                " would not gather the tower's weights, and the others would wait for it. Set it"
                " to 0"
            )
        if (self.rollout == "vllm-server") != (self.vllm_server is not None):
            raise ValueError(
                f"rollout {self.rollout} with vllm_server {self.vllm_server}: the address belongs"
                " to vllm-server, and it needs one"
            )


class Sft(SettingsGroup):
    """Supervised fine-tuning with TRL's SFTTrainer, for checkpoints with `method: sft`.

    All else is `grpo`'s, so that the two differ in the method alone: seed, prompts a step and their
    order, steps, norm of the gradients, Adam's second moment, frozen tower, adapter, precision,
    DeepSpeed, logging. What belongs to completions is unused.
    """

    learning_rate: PositiveFloat
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of the optimiser steps in which the learning rate rises from zero."""
    weight_decay: NonNegativeFloat
    save_steps: NonNegativeInt
    """Optimiser steps between two states of the training, from which a killed run resumes; 0 keeps
    none.
    """


class Tracking(SettingsGroup):
    """Runs of stages train and evaluate in Weights & Biases.

    No stage depends on it: turning it on makes nothing stale.
    """

    wandb: Literal["none", "offline", "online"]
    """none: off; offline keeps runs in .scratch/wandb for `wandb sync`, for workers without
    network; online needs WANDB_API_KEY and falls back to offline if the server does not answer.
    WANDB_MODE overrides it.
    """
    project: Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")]
    entity: str | None
    """Team or user that the project belongs to; null: the account's own."""


class Checkpoint(SettingsGroup):
    """One policy to train."""

    axis: Literal["modality", "task"]
    split: str
    """What it learns from: a modality or a question type. Left out, it is the checkpoint's name;
    dvc.yaml wants it written out.
    """
    method: Literal["grpo", "sft"] = "grpo"
    """How it learns. A checkpoint by GRPO has the name of its split, one by SFT is called
    sft-<split>. dvc.yaml wants it written out.
    """
    images: str
    """Folder of the images its split needs; dvc.yaml makes it a dependency."""
    start: str = "models/base"
    """Folder of the initial policy, also the reference: the base, or an earlier checkpoint.
    dvc.yaml needs it written out.
    """
    grpo: dict[str, Any] = Field(default_factory=dict)
    """Keys of `grpo` that differ for this checkpoint."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Keys of `sft` that differ for this checkpoint."""
