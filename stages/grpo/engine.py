"""TRL's GRPOTrainer with shared prefixes: a group's prompt and image are computed once.

One class serves both engines. With `trl`, nothing is overridden. With `shared-prefix`, this class
prepares prompts, samples and scores; TRL does the rest: rewards, advantages, loss, accumulation,
several updates per batch, callbacks, logging, PEFT, DeepSpeed. TRL's loss per completion token,
from these scores:

    -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A) + beta * (exp(d) - d - 1)

with ratio = exp(logp - logp when sampled), d = reference logp - logp, and the advantage of the
completion A = (reward - mean of its group) / (standard deviation of its group + 1e-4), if scaled.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from stages.core.errors import InputError
from stages.grpo.batch import (
    ExampleBatch,
    PromptCollator,
    Rollout,
    images_of,
    whole_groups,
    without_images,
)
from stages.grpo.drafts import (
    DraftPass,
    Drafts,
    prefill_with_drafts,
    without_drafts,
)
from stages.grpo.reference import ReferenceAhead
from stages.grpo.resume import ResumableRollout
from stages.grpo.rollout import draws, sample_drafted
from stages.grpo.scoring import EngineOptions, SharedScoring
from stages.grpo.vllm_rollout import patch_generate
from stages.policy.autocast import store_rounded
from stages.policy.compilation import compile_layers, uncompiled
from stages.policy.decoding import Sampling
from stages.policy.prefill import prefill_prompts
from stages.policy.prompt_batch import PromptBatch, backbone
from stages.policy.vision_attention import batch_images, batches_images
from stages.policy.vision_features import VisionFeatures, embed_patches_by_product


class MedGRPOTrainer(ResumableRollout, SharedScoring):
    """GRPOTrainer that processes, prefills and scores the prompt of a group once.

    TRL works on N = B * G rows, one per completion; here the G rows of each of the B prompts stay
    adjacent, from sampling to the loss.
    """

    _buffered_inputs: list[dict[str, Any]] | None
    data_collator: Any

    def __init__(self, *arguments: Any, engine_options: EngineOptions, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.engine_options = engine_options
        # the rows that are being generated or scored
        self._rollout: Rollout | None = None
        self._drafts: Drafts | None = None
        self._ahead: ReferenceAhead | None = None
        ahead = engine_options.engine == "shared-prefix" and engine_options.reference_steps > 1
        if ahead and self.ref_model is not None:
            self._ahead = ReferenceAhead(engine_options.reference_steps, self.eos_token_ids)
        if engine_options.engine == "shared-prefix" and engine_options.draft_nodes:
            excluded = (*self.eos_token_ids, *(self.generation_config.suppress_tokens or ()))
            self._drafts = Drafts(engine_options.draft_seeds, excluded, engine_options.draft_nodes)
        if engine_options.engine == "shared-prefix":
            self._make_faster(self.accelerator.unwrap_model(self.model))
            if self.ref_model is not None:
                self.prepare_reference()
        if self.use_vllm:
            patch_generate(self.vllm_generation, backbone(self.model).config.image_token_id)
        cache_bytes = engine_options.vision_cache_bytes
        self._features = VisionFeatures(cache_bytes) if cache_bytes else None
        self._tower_frozen = not any(
            p.requires_grad for name, p in self.model.named_parameters() if ".visual." in f".{name}"
        )

    def prepare_reference(self) -> None:
        """Let the reference compute as the policy does; for one that is set after this trainer."""
        self._make_faster(self.ref_model)
        if batches_images(self.model):
            batch_images(self.ref_model)
        if self.args.bf16 and not self.is_deepspeed_enabled:  # which rounds all weights
            store_rounded(self.ref_model, torch.bfloat16)

    def _make_faster(self, policy: Any) -> None:
        embed_patches_by_product(policy)
        if self.engine_options.compile:
            compile_layers(policy)

    # -- batches -----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """As TRL's, with prompts that are processed where they are loaded."""
        if self.engine_options.engine != "shared-prefix":
            return super().get_train_dataloader()
        collator: Any = self.data_collator
        self.data_collator = self._collator()
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """As transformers', with batches loaded ahead for the reference."""
        if self._ahead is not None:
            epoch_iterator = self._ahead.watch(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _collator(self) -> PromptCollator:
        policy = self.accelerator.unwrap_model(self.model)
        return PromptCollator(self.processing_class, policy, self.num_generations)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """As TRL's for completions that are drawn for a whole optimiser step at once.

        With `reuse_prompt_pass` they are drawn for each pass; without this, the last step of an
        epoch could have fewer passes, and an epoch more steps.
        """
        sampler = super()._get_train_sampler(dataset)
        if self.engine_options.reuse_prompt_pass and isinstance(sampler, RepeatSampler):
            sampler.batch_size *= self.args.gradient_accumulation_steps
        return sampler

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's, but without its shuffle, which would separate the members of a group."""
        if not self._uses_shared_prefix:
            return super()._prepare_inputs(generation_batch)
        if (
            self._step % (self.args.steps_per_generation * self.num_iterations) == 0
            or self._buffered_inputs is None
        ):
            self._buffered_inputs = whole_groups(
                self._generate_and_score_completions(generation_batch),
                self.args.steps_per_generation,
            )
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's, which gets the examples without images, and so processes none.

        What the loss needs besides is added to its result as `rollout`.
        """
        if not self._uses_shared_prefix:
            return super()._generate_and_score_completions(inputs)
        if not isinstance(inputs, ExampleBatch):  # of a loader that is not ours
            inputs = self._collator()(inputs).to(self.accelerator.device)
        self._rollout = Rollout(list(inputs), inputs.prompts)
        scored = super()._generate_and_score_completions(
            [without_images(example) for example in inputs]
        )
        return scored | {"rollout": self._rollout}

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Token ids of N rows, from the prompts that the loader has processed."""
        if not self._uses_shared_prefix:
            return super()._tokenize_prompts(prompts)
        batch = self._current.prompts
        rows: list[list[int]] = []
        for ids, mask in zip(batch.ids.tolist(), batch.mask.bool().tolist(), strict=True):
            rows += [list(compress(ids, mask))] * self.num_generations
        return rows, None, {}

    # -- rollout -----------------------------------------------------------------------------------

    def _generate_single_turn(
        self,
        prompt_ids: Any,
        images: Any,
        fields: Any,
        num_generations: int,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Sample a group per prompt, which passes through the policy once."""
        if self._uses_shared_prefix and not self.use_vllm:
            return self._sample_groups(), None
        if self._uses_shared_prefix:  # for vLLM: TRL was given the examples without images
            images = [images_of(example) for example in self._current.examples]
        return super()._generate_single_turn(
            prompt_ids, images, fields, num_generations, *rest, **options
        )

    def _sample_groups(self) -> list[list[int]]:
        """Sample a group per prompt: N lists of token ids."""
        rollout = self._current
        prompts = rollout.prompts
        sampling = self._sampling()
        uniform = self._draws(len(prompts), sampling.max_tokens)
        reuses = self.engine_options.reuse_prompt_pass
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
            with nullcontext() if reuses else torch.no_grad():
                # a pass that has gradients goes through the wrapped policy, which then waits for
                # those of all processes
                draft_pass = self._prefill(self.model_wrapped if reuses else policy, prompts)
            rollout.draft_pass = draft_pass if reuses else None
            with uncompiled(self.engine_options.compile):
                sampled = sample_drafted(
                    policy,
                    prompts,
                    draft_pass.detached(),
                    uniform,
                    sampling,
                    fixed_width=self.engine_options.cuda_graphs,
                )
        if self._drafts is not None:
            self._drafts.learn(sampled.completions)
        metrics = self._metrics["train"]
        metrics["rollout/drafted"].append(sampled.drafted / len(sampled.completions))
        metrics["rollout/forwards"].append(float(sampled.forwards))
        return sampled.completions

    def _prefill(self, policy: Any, prompts: PromptBatch) -> DraftPass:
        """The policy's pass over prompts, with the present drafts behind each."""
        image_inputs = self._image_inputs(policy, prompts)
        if self._drafts is None or not len(self._drafts.trie):
            return without_drafts(prefill_prompts(policy, prompts, image_inputs))
        return prefill_with_drafts(policy, prompts, image_inputs, self._drafts.trie)

    def _sampling(self) -> Sampling:
        config = self.generation_config
        return Sampling(
            max_tokens=self.max_completion_length,
            eos_ids=tuple(self.eos_token_ids),
            pad=self._tokenizer.pad_token_id,
            temperature=config.temperature if config.do_sample else 0.0,
            top_p=config.top_p or 1.0,
            top_k=config.top_k or 0,
            suppressed=tuple(config.suppress_tokens or ()),
        )

    def _draws(self, prompt_count: int, tokens: int) -> Tensor:
        """Uniform numbers (B, G, tokens) for the prompts of this process.

        Prompts are numbered in the order of the sampler, over all processes and batches, so the
        draws do not depend on how the batch is split.
        """
        generation = self._step // (self.args.steps_per_generation * self.num_iterations)
        processes = self.accelerator.num_processes
        first = (generation * processes + self.accelerator.process_index) * prompt_count
        numbers = range(first, first + prompt_count)
        return draws(self.args.seed, numbers, self.num_generations, tokens)

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """As TRL's, but a reward gets the whole example, image included.

        Raises InputError for a NaN or missing reward, which TRL would leave out of the sum.
        """
        inputs = self._current.examples if self._uses_shared_prefix else inputs
        rewards: Tensor = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        if invalid := rewards.isnan().nonzero().tolist():
            row, column = invalid[0]
            raise InputError(
                f"the reward {self.reward_func_names[column]!r} returned None or NaN for completion"
                f" {row} of the batch at step {self.state.global_step}: it must return a float for"
                " every completion"
            )
        return rewards

    # -- loss --------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self._uses_shared_prefix:
            loss: Tensor = super()._compute_loss(model, inputs)
            return loss
        rollout: Rollout = inputs["rollout"]
        self._rollout = rollout
        if self.engine_options.skip_zero_advantage:
            advantages = inputs["advantages"].view(len(rollout.prompts), -1)  # (B, G)
            active = (advantages != 0).any(1).nonzero().flatten().tolist()
            # at least one group: all processes must run the same number of forward passes
            rollout.active_groups = active or [0]
        try:
            return super()._compute_loss(model, inputs)
        finally:
            rollout.draft_pass = None
