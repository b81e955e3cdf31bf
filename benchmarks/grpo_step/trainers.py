"""Steps of our trainer and of TRL's, driven as `train()` drives them.

The trainer's own `training_step`, then the optimiser.

Both are built by the train stage's `build_trainer` from params.yaml, the one with `grpo.engine:
trl`. Policy, reference and optimiser are the same objects for all three ways, so that they differ
in nothing but how a step is computed, and a GPU holds one of each. Neither recomputes activations
(Med-R1 does not; TRL's own default does, for a third more forward work).
"""

from __future__ import annotations

from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from benchmarks.grpo_step.clock import Clock
from benchmarks.grpo_step.g_copies import BETA, embed_patches_by_convolution
from benchmarks.grpo_step.models import REPOSITORY, reward
from stages.core.params import Grpo, load_params
from stages.grpo.engine import MedGRPOTrainer
from stages.grpo.trainer import build_trainer
from stages.policy.vision_features import embed_patches_by_product

FREE: Final = ("reuse_prompt_pass", "fused_head", "vision_cache_mb")
"""Keys of `grpo` in params.yaml that may be set for ours: they change how a step is computed, and
not what it computes.
"""


def settings(group: int, completion: int, prompts: int, **changes: Any) -> Grpo:
    """params.yaml's, with these sizes; Med-R1's loss. A step takes all its prompts in one pass."""
    grpo = load_params(REPOSITORY / "params.yaml").grpo.model_dump() | {
        "num_generations": group,
        "max_completion_length": completion,
        "prompts_per_device": prompts,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "save_steps": 0,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "temperature": 1.0,
        "top_p": 1.0,
        # the reference is ours to give: TRL would open it from files
        "beta": 0.0,
    }
    return Grpo.model_validate(grpo | changes)


def suppressed(processor: Any) -> list[int]:
    """Token ids never sampled: end tokens, for full-length completions, and image placeholders."""
    return sorted(processor.tokenizer.get_added_vocab().values())


class TrainerStep:
    """The step of a trainer whose parts are timed.

    With us a rollout begins with the pass over the prompts, which serves the loss too
    (`grpo.reuse_prompt_pass`): it counts as rollout, and the policy's forward is then over the
    completions alone.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        processor: Any,
        dataset: Dataset,
        grpo: Grpo,
        clock: Clock,
        scratch: Path,
    ) -> None:
        self.clock = clock
        # each trainer puts TRL's head into the policy: not one around another
        vars(policy).pop("forward", None)
        self.trainer = build_trainer(
            policy, processor, dataset, grpo, "no-think", scratch=scratch, run_name="benchmark"
        )
        trainer: Any = self.trainer
        trainer.beta, trainer.ref_model = BETA, reference
        # TRL >= 1.10 weighs the KL with the ratio, which adds to its gradient even where the ratio
        # is 1; Med-R1 does not
        trainer.args.use_bias_correction_kl = False
        trainer.generation_config.suppress_tokens = trainer.generation_kwargs["suppress_tokens"] = (
            suppressed(processor)
        )
        trainer.reward_funcs, trainer.reward_func_names = [reward], ["cheap"]
        trainer.reward_weights, trainer.reward_processing_classes = torch.ones(1), [None]
        trainer.current_gradient_accumulation_steps = 1
        self.scores: dict[str, torch.Tensor] = {}
        self._time(trainer)

    def _time(self, trainer: MedGRPOTrainer) -> None:
        scored = trainer._get_per_token_logps_and_entropies

        def score(model: Any, *arguments: Any, **more: Any) -> Any:
            part = "reference" if model is trainer.ref_model else "policy forward"
            with self.clock.part(part):
                result = scored(model, *arguments, **more)
            self.scores[part] = result[0].detach()
            return result

        replaced: Any = trainer
        replaced._get_per_token_logps_and_entropies = score
        replaced._tokenize_prompts = self.clock.timed("processor", trainer._tokenize_prompts)
        replaced._generate_single_turn = self.clock.timed("rollout", trainer._generate_single_turn)
        replaced.accelerator.backward = self.clock.timed("backward", trainer.accelerator.backward)

    def choose_embedding(self) -> None:
        """Policy and reference are shared with ways that embed patches otherwise."""
        embed = (
            embed_patches_by_product
            if self.trainer.sharing.engine == "shared-prefix"
            else embed_patches_by_convolution
        )
        for policy in (self.trainer.model, self.trainer.ref_model):
            embed(policy)

    def rows(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As TRL's sampler hands them out: each example once for each of its completions."""
        repeated = (repeat(example, self.trainer.num_generations) for example in examples)
        return list(chain.from_iterable(repeated))

    def backward(self, examples: list[dict[str, Any]]) -> None:
        """Sample, score and add the gradients of a step over these examples."""
        self.choose_embedding()
        self.trainer.training_step(self.trainer.model, self.rows(examples), None)
