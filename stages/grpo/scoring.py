"""Scoring of completions by the policy and the reference, for TRL's trainer.

What is known from an earlier pass is taken from there: from the rollout's, if the loss reuses it,
and from tables of the reference, which are computed for several steps at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from trl import GRPOTrainer

from stages.grpo.batch import Rollout
from stages.grpo.drafts import Drafts, DraftTrie, score_drafted
from stages.grpo.reference import ReferenceAhead
from stages.grpo.shared_prefix import CompletionScorer, concatenate, fits_one_row, score
from stages.policy.prefill import ImageInputs
from stages.policy.prompt_batch import PromptBatch
from stages.policy.vision_features import VisionFeatures

Scores = tuple[Tensor, Tensor | None, Tensor | None]
"""What TRL expects of scoring: log-probabilities and entropies (N, C), and an auxiliary loss."""


@dataclass(frozen=True)
class EngineOptions:
    """Options of the engine; none changes a result beyond rounding.

    `engine`: `shared-prefix`, or `trl` for TRL's own path. `draft_nodes`: tokens of likely
    completions in the pass over the prompts, at first of `draft_seeds`; 0 drafts none.
    `reuse_prompt_pass`: the pass over the prompts that starts a rollout has gradients and serves
    the loss too. `reference_steps`: batches whose prompts and drafts the reference takes at once.
    `skip_zero_advantage`: groups without advantage are not scored by the policy. `fused_head`:
    logits of completions are not stored. `vision_cache_bytes`: bytes of cached features of a vision
    tower that does not change. `compile`: layers are compiled. `cuda_graphs`: decoding steps are
    captured.
    """

    engine: Literal["shared-prefix", "trl"] = "shared-prefix"
    draft_nodes: int = 0
    draft_seeds: tuple[tuple[int, ...], ...] = ()
    reuse_prompt_pass: bool = False
    reference_steps: int = 1
    skip_zero_advantage: bool = False
    fused_head: bool = False
    vision_cache_bytes: int = 0
    compile: bool = False
    cuda_graphs: bool = False


class SharedScoring(GRPOTrainer):  # type: ignore[misc]
    """The part of the engine that scores the B * G completions of a `Rollout`."""

    engine_options: EngineOptions
    _rollout: Rollout | None
    _drafts: Drafts | None
    _ahead: ReferenceAhead | None
    _features: VisionFeatures | None
    _tower_frozen: bool

    @property
    def _uses_shared_prefix(self) -> bool:
        """Whether this batch takes the shared path: only in training, TRL evaluates by its own."""
        return self.engine_options.engine == "shared-prefix" and bool(self.model.training)

    @property
    def _current(self) -> Rollout:
        """What is being generated or scored."""
        assert self._rollout is not None
        return self._rollout

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
    ) -> Scores:
        """Score completions: (N, C), N = B * G rows in whole groups, C = `logits_to_keep`."""
        if not self._uses_shared_prefix:
            scores: Scores = super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **fields,
            )
            return scores
        rollout = self._current
        prompts = rollout.prompts
        group_size = self.num_generations
        ids = input_ids[:, -logits_to_keep:].view(len(prompts), group_size, -1)  # (B, G, C)
        mask = attention_mask[:, -logits_to_keep:].view(len(prompts), group_size, -1)
        scorer = CompletionScorer(
            self.temperature,
            self.engine_options.fused_head,
            compute_entropy,
            packed=fits_one_row(group_size, self._max_over_processes(logits_to_keep)),
        )
        with self.accelerator.autocast():
            if self._ahead is not None and model is self.ref_model:
                return self._score_reference(self._ahead, rollout, ids, mask, scorer), None, None
            # without gradients the reference is scored, or the policy before an update
            if rollout.draft_pass is not None and torch.is_grad_enabled():
                logps, entropies = self._score_reused(model, rollout, ids, mask, scorer)
            elif rollout.active_groups is not None and torch.is_grad_enabled():
                active = rollout.active_groups
                logps, entropies = self._score(model, active, ids, mask, scorer)
                logps = _scatter_groups(logps, active, len(prompts))
                if entropies is not None:
                    entropies = _scatter_groups(entropies, active, len(prompts))
            else:
                size = max((batch_size or len(input_ids)) // group_size, 1)  # groups per pass
                chunks = [
                    range(start, min(start + size, len(prompts)))
                    for start in range(0, len(prompts), size)
                ]
                logps, entropies = concatenate(
                    self._score(model, chunk, ids, mask, scorer) for chunk in chunks
                )
        return logps, entropies, None

    def _score_reference(
        self,
        ahead: ReferenceAhead,
        rollout: Rollout,
        ids: Tensor,
        mask: Tensor,
        scorer: CompletionScorer,
    ) -> Tensor:
        """The reference's log-probabilities (B * G, C) of completions (B, G, C): from a table.

        Groups with a completion that it does not have are scored by a pass of their own.
        """
        trie = self._drafts.trie if self._drafts is not None else DraftTrie()
        prompts = rollout.prompts
        table = ahead.table(self.ref_model, prompts, trie, scorer.temperature, self._image_inputs)
        if table is None:
            logps, _ = self._score(self.ref_model, range(len(prompts)), ids, mask, scorer)
            return logps
        logps, missing = table.score(ids, mask)
        if missing:
            own, _ = self._score(self.ref_model, missing, ids, mask, scorer)
            logps[missing] = own.view(len(missing), *ids.shape[1:])
        return logps.flatten(0, 1)

    def _score_reused(
        self, model: Any, rollout: Rollout, ids: Tensor, mask: Tensor, scorer: CompletionScorer
    ) -> tuple[Tensor, Tensor | None]:
        """Score completions (B, G, C) from the rollout's pass: alone, if all of them were drafted.

        With several processes, those of all: the wrapped policy's passes are collectives.
        """
        draft_pass, prompts = rollout.draft_pass, rollout.prompts
        assert draft_pass is not None
        drafted = score_drafted(draft_pass, ids, mask, scorer.temperature, entropy=scorer.entropy)
        someone_left = self._max_over_processes(int(drafted is None))
        if drafted is not None and not someone_left:
            return drafted
        return score(
            model, prompts, prompts.image_inputs, ids, mask, scorer, draft_pass.prompt_pass
        )

    def _score(
        self, model: Any, groups: Sequence[int], ids: Tensor, mask: Tensor, scorer: CompletionScorer
    ) -> tuple[Tensor, Tensor | None]:
        """Score some of the groups (B, G, C)."""
        prompts = self._current.prompts.select(groups)
        index = torch.tensor(list(groups), device=ids.device)
        image_inputs = self._image_inputs(model, prompts)
        return score(model, prompts, image_inputs, ids[index], mask[index], scorer)

    def _max_over_processes(self, number: int) -> int:
        """The largest value of a number that processes may disagree on.

        What decides the number of forward passes must be equal on all: under DDP and ZeRO-3 each
        pass is a collective.
        """
        if self.accelerator.num_processes == 1:
            return number
        numbers = torch.tensor([number], device=self.accelerator.device)
        return int(self.accelerator.gather(numbers).max())

    def _image_inputs(self, model: Any, prompts: PromptBatch) -> ImageInputs:
        """Images of prompts for a forward: cached features if the tower is frozen, or pixels."""
        frozen = self._tower_frozen or model is self.ref_model
        if self._features is not None and frozen:
            return self._features.inputs_for(self.accelerator.unwrap_model(model), prompts)
        return prompts.image_inputs


def _scatter_groups(values: Tensor, active: list[int], groups: int) -> Tensor:
    """Put the scores (A * G, C) of the A active groups in their places among all: (B * G, C).

    The other groups get a placeholder without gradient: the mean over the active groups, padding
    included. Their advantage is 0, so the loss does not depend on it; a logged mean of it, such as
    the entropy, is an estimate from the active groups.
    """
    values = values.view(len(active), -1, values.shape[1])
    scattered = values.detach().mean().expand(groups, *values.shape[1:]).clone()
    scattered[active] = values
    return scattered.flatten(0, 1)
