"""TRL's GRPOTrainer, in which a group's prompt and image are processed, seen and scored once.

One class for both engines: `trl` leaves everything to TRL. What TRL does around it stays for both:
rewards, advantages, losses, accumulation, several updates a batch, callbacks, logging, PEFT,
DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.data_utils import prepare_multimodal_messages
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import split_tensor_dict

from stages.core.errors import InputError
from stages.grpo.resume import ResumableRollout
from stages.grpo.rollout import Sampling, draws, sample_completions
from stages.grpo.shared_prefix import LMHeadOptions, concatenate, score
from stages.grpo.vllm_rollout import verify_prompts
from stages.policy.prefill import ImageInputs, PromptPass, prefill_prompts
from stages.policy.prompt_batch import PromptBatch, backbone, process_prompts
from stages.policy.vision_features import VisionFeatures, embed_patches_by_product


@dataclass(frozen=True)
class Sharing:
    """What the engine shares, and what it leaves out. None of it changes a result beyond rounding.

    `engine`: `shared-prefix`, or `trl` for TRL's own path. `reuse_prompt_pass`: the pass over the
    prompts that begins a rollout has gradients and serves the loss too. `skip_zero_advantage`: no
    pass of the policy for groups without advantage. `fused_head`: no logits are kept.
    `vision_cache`: bytes of features of an unchanging vision tower to keep.
    """

    engine: Literal["shared-prefix", "trl"] = "shared-prefix"
    reuse_prompt_pass: bool = False
    skip_zero_advantage: bool = False
    fused_head: bool = False
    vision_cache: int = 0


class MedGRPOTrainer(ResumableRollout, GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer; groups stay whole, and a group's prompt is processed, seen and scored once."""

    _buffered_inputs: list[dict[str, Any]] | None

    def __init__(self, *arguments: Any, sharing: Sharing, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.sharing = sharing
        self._prompts: PromptBatch | None = None  # of the rows being generated or scored
        self._prompt_cache: PromptPass | None = (
            None  # of those, with gradients, where it is to be used again
        )
        self._active_groups: list[int] | None = None  # those of them that the policy has to score
        if sharing.engine == "shared-prefix":
            for policy in filter(None, (self.accelerator.unwrap_model(self.model), self.ref_model)):
                embed_patches_by_product(policy)
        if self.use_vllm:
            verify_prompts(self.vllm_generation, backbone(self.model).config.image_token_id)
        self._features = VisionFeatures(sharing.vision_cache) if sharing.vision_cache else None
        self._tower_frozen = not any(
            p.requires_grad for name, p in self.model.named_parameters() if ".visual." in f".{name}"
        )

    @property
    def _shares(self) -> bool:
        return self.sharing.engine == "shared-prefix" and bool(self.model.training)

    # -- batches
    # ----------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's, without its shuffle, which would take the members of a group apart."""
        if not self._shares:
            return super()._prepare_inputs(generation_batch)
        if (
            self._step % (self.args.steps_per_generation * self.num_iterations) == 0
            or self._buffered_inputs is None
        ):
            self._buffered_inputs = _whole_groups(
                self._generate_and_score_completions(generation_batch),
                self.args.steps_per_generation,
            )
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's method on prompts without images, so that it processes none.

        They return as `prompts`.
        """
        if not self._shares:
            return super()._generate_and_score_completions(inputs)
        self._examples = inputs
        scored = super()._generate_and_score_completions(
            [_without_images(example) for example in inputs]
        )
        return scored | {"prompts": self._prompts}

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Process one prompt a group, with its images; every member gets its ids."""
        if not self._shares:
            return super()._tokenize_prompts(prompts)
        group = self.num_generations
        chats = [
            prepare_multimodal_messages(prompt, images=_images(example))
            for prompt, example in zip(prompts[::group], self._examples[::group], strict=True)
        ]
        self._prompts = process_prompts(
            self.processing_class, self.model, chats, self.accelerator.device
        )
        ids = [
            row[real.bool()].tolist()
            for row, real in zip(self._prompts.ids, self._prompts.mask, strict=True)
        ]
        return [row for row in ids for _ in range(group)], None, {}

    # -- rollout
    # ----------------------------------------------------------------------------------------------

    def _generate_single_turn(
        self,
        prompt_ids: Any,
        images: Any,
        fields: Any,
        num_generations: int,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """Sample a group behind each prompt, which passes the policy once."""
        if not self._shares or self.use_vllm:
            images = [_images(example) for example in self._examples] if self._shares else images
            return super()._generate_single_turn(
                prompt_ids, images, fields, num_generations, *rest, **more
            )
        prompts = self._prompts
        assert prompts is not None
        config, count = self.generation_config, len(prompts)
        sampling = Sampling(
            max_tokens=self.max_completion_length,
            ends=tuple(self.eos_token_ids),
            pad=self._tokenizer.pad_token_id,
            temperature=config.temperature if config.do_sample else 0.0,
            top_p=config.top_p or 1.0,
            top_k=config.top_k or 0,
            suppressed=tuple(config.suppress_tokens or ()),
        )
        # numbered as the sampler orders them, over all processes and batches: the draws do not
        # depend on how they are cut
        generation = self._step // (self.args.steps_per_generation * self.num_iterations)
        first = (
            generation * self.accelerator.num_processes + self.accelerator.process_index
        ) * count
        uniform = draws(
            self.args.seed, range(first, first + count), num_generations, sampling.max_tokens
        )
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as policy,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
        ):
            with nullcontext() if self.sharing.reuse_prompt_pass else torch.no_grad():
                passed = prefill_prompts(policy, prompts, self._image_inputs(policy, prompts))
            self._prompt_cache = passed if self.sharing.reuse_prompt_pass else None
            return sample_completions(policy, prompts, passed.detached(), uniform, sampling), None

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """TRL's method; rewards see the whole example, and a reward that is not a number raises."""
        inputs = self._examples if self._shares else inputs
        rewards: Tensor = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        if bad := rewards.isnan().nonzero().tolist():
            row, column = bad[0]
            raise InputError(
                f"the reward {self.reward_func_names[column]!r} gave no number for completion {row}"
                f" of the batch at step {self.state.global_step}: it must return a float for every"
                " completion"
            )
        return rewards

    # -- scoring
    # ----------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self._shares:
            loss: Tensor = super()._compute_loss(model, inputs)
            return loss
        self._prompts = inputs["prompts"]
        if self.sharing.skip_zero_advantage:
            groups = inputs["advantages"].view(len(self._prompts), -1)
            # at least one: every process has to run its pass
            self._active_groups = (groups != 0).any(1).nonzero().flatten().tolist() or [0]
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._prompt_cache = self._active_groups = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities and entropies (N, C) of completions, N = B * G rows in whole groups."""
        if not self._shares:
            scored: tuple[Tensor, Tensor | None, Tensor | None] = (
                super()._get_per_token_logps_and_entropies(
                    model,
                    input_ids,
                    attention_mask,
                    logits_to_keep,
                    batch_size,
                    compute_entropy,
                    compute_aux_loss,
                    **fields,
                )
            )
            return scored
        prompts, group = self._prompts, self.num_generations
        assert prompts is not None
        ids, real = (
            values[:, -logits_to_keep:].view(len(prompts), group, -1)
            for values in (input_ids, attention_mask)
        )
        head = LMHeadOptions(self.temperature, self.sharing.fused_head, compute_entropy)
        with self.accelerator.autocast():
            if self._prompt_cache is not None and torch.is_grad_enabled():
                return (
                    *score(
                        model, prompts, prompts.image_inputs, ids, real, head, self._prompt_cache
                    ),
                    None,
                )
            if self._active_groups is not None:
                logps, entropies = self._score(model, self._active_groups, ids, real, head)
                spread = (
                    None
                    if entropies is None
                    else _scatter_groups(entropies, self._active_groups, len(prompts))
                )
                return _scatter_groups(logps, self._active_groups, len(prompts)), spread, None
            size = max((batch_size or len(input_ids)) // group, 1)
            chunks = [
                range(start, min(start + size, len(prompts)))
                for start in range(0, len(prompts), size)
            ]
            return (
                *concatenate(self._score(model, chunk, ids, real, head) for chunk in chunks),
                None,
            )

    def _score(
        self, model: Any, groups: Sequence[int], ids: Tensor, real: Tensor, head: LMHeadOptions
    ) -> tuple[Tensor, Tensor | None]:
        assert self._prompts is not None
        prompts, index = self._prompts.select(groups), torch.tensor(list(groups), device=ids.device)
        return score(
            model, prompts, self._image_inputs(model, prompts), ids[index], real[index], head
        )

    def _image_inputs(self, model: Any, prompts: PromptBatch) -> ImageInputs:
        """Image inputs of a forward: features if the vision tower is frozen, otherwise pixels."""
        unchanging = self._tower_frozen or model is self.ref_model
        if self._features is not None and unchanging:
            return self._features(self.accelerator.unwrap_model(model), prompts)
        return prompts.image_inputs


def _whole_groups(scored: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """Cut a generation batch into consecutive micro-batches, prompts with their completions."""
    prompts: PromptBatch = scored.pop("prompts")
    size = len(prompts) // parts
    cut = split_tensor_dict(scored, parts)
    return [
        part | {"prompts": prompts.select(range(number * size, (number + 1) * size))}
        for number, part in enumerate(cut)
    ]


def _without_images(example: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in example.items() if name not in ("image", "images")}


def _images(example: dict[str, Any]) -> list[Any]:
    if example.get("image") is not None:
        return [example["image"]]
    return list(example.get("images") or ())


def _scatter_groups(values: Tensor, live: list[int], groups: int) -> Tensor:
    """Scatter scores (len(live) * G, C) of active groups into all groups.

    Other places get the mean, so that logged means do not change.
    """
    values = values.view(len(live), -1, values.shape[1])
    whole = values.detach().mean().expand(groups, *values.shape[1:]).clone()
    whole[live] = values
    return whole.flatten(0, 1)
