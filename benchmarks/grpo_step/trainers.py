"""Steps of our trainer and of TRL's: the trainer's own `training_step`, then the optimiser.

Both are built by stage train's `build_trainer` from params.yaml, TRL's with `grpo.engine: trl`.
Policy, reference and optimiser are the same objects for all three implementations, so they differ
only in how a step is computed, and a GPU needs memory for one of each. Neither recomputes
activations, as Med-R1 does not (TRL's default does, for a third more forward work).
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

EXACT_SETTINGS: Final = ("draft_nodes", "reuse_prompt_pass", "fused_head", "vision_cache_mb")
"""Keys of `grpo` in params.yaml that may be set for ours: they do not change a step's result."""


def settings(group: int, completion: int, prompts: int, **changes: Any) -> Grpo:
    """`grpo` of params.yaml with these sizes and Med-R1's loss; `prompts` a pass.

    Without drafts: no trie foresees the completions of a model with random weights.
    """
    grpo = load_params(REPOSITORY / "params.yaml").grpo.model_dump() | {
        "num_generations": group,
        "max_completion_length": completion,
        "prompts_per_device": prompts,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "save_steps": 0,
        "draft_nodes": 0,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "temperature": 1.0,
        "top_p": 1.0,
        # TRL would load a reference from files: TrainerStep sets beta and the reference
        "beta": 0.0,
    }
    return Grpo.model_validate(grpo | changes)


def suppressed(processor: Any) -> list[int]:
    """Token ids never sampled: end tokens, for full-length completions, and image placeholders."""
    return sorted(processor.tokenizer.get_added_vocab().values())


class TrainerStep:
    """The step of a trainer, timed by part, in passes over `prompts_per_pass` prompts.

    In our engine, the prompt pass of the rollout also serves the loss (`grpo.reuse_prompt_pass`):
    it counts as rollout, and "policy forward" covers the completions only.
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
        self.prompts_per_pass = grpo.prompts_per_device
        # each trainer wraps the policy's forward with TRL's head: do not nest them
        vars(policy).pop("forward", None)
        self.trainer = build_trainer(
            policy, processor, dataset, grpo, "no-think", scratch=scratch, run_name="benchmark"
        )
        trainer: Any = self.trainer
        trainer.beta = BETA
        trainer.ref_model = reference
        # TRL >= 1.10 weights the KL with the ratio, which adds to its gradient even where the ratio
        # is 1; Med-R1 does not
        trainer.args.use_bias_correction_kl = False
        tokens = suppressed(processor)
        trainer.generation_config.suppress_tokens = tokens
        trainer.generation_kwargs["suppress_tokens"] = tokens
        trainer.reward_funcs = [reward]
        trainer.reward_func_names = ["cheap"]
        trainer.reward_weights = torch.ones(1)
        trainer.reward_processing_classes = [None]
        trainer.current_gradient_accumulation_steps = 1
        self.scores: dict[str, torch.Tensor] = {}
        self._time(trainer)

    def _time(self, trainer: MedGRPOTrainer) -> None:
        original = trainer._get_per_token_logps_and_entropies

        def score(model: Any, *arguments: Any, **more: Any) -> Any:
            part = "reference" if model is trainer.ref_model else "policy forward"
            with self.clock.part(part):
                result = original(model, *arguments, **more)
            self.scores[part] = result[0].detach()
            return result

        patched: Any = trainer
        patched._get_per_token_logps_and_entropies = score
        patched._tokenize_prompts = self.clock.timed("processor", trainer._tokenize_prompts)
        patched._generate_single_turn = self.clock.timed("rollout", trainer._generate_single_turn)
        patched.accelerator.backward = self.clock.timed("backward", trainer.accelerator.backward)

    def choose_embedding(self) -> None:
        """Set the patch embedding of policy and reference, which the other steps share."""
        shared_prefix = self.trainer.engine_options.engine == "shared-prefix"
        embed = embed_patches_by_product if shared_prefix else embed_patches_by_convolution
        for policy in (self.trainer.model, self.trainer.ref_model):
            embed(policy)

    def rows(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each example once per completion, as from TRL's sampler."""
        repeated = (repeat(example, self.trainer.num_generations) for example in examples)
        return list(chain.from_iterable(repeated))

    def backward(self, examples: list[dict[str, Any]]) -> None:
        """Sample, score and add the gradients of a step over these examples, pass by pass."""
        self.choose_embedding()
        size = self.prompts_per_pass
        starts = range(0, len(examples), size)
        self.trainer.current_gradient_accumulation_steps = len(starts)
        for start in starts:
            rows = self.rows(examples[start : start + size])
            self.trainer.training_step(self.trainer.model, rows, None)
