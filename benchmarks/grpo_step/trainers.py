"""Steps of our trainer and of TRL's: the trainer's own `training_step`, then the optimiser.

Both are built by stage train's `build_trainer` from params.yaml, TRL's with `grpo.engine: trl`.
Policy, reference and optimiser are the same objects for all three implementations, so they differ
only in how a step is computed, and a GPU needs memory for one of each. Neither recomputes
activations, as Med-R1 does not (TRL's default does, for a third more forward work).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils import convert_outputs_to_fp32
from datasets import Dataset
from transformers import PreTrainedModel

from benchmarks.grpo_step.clock import Clock
from benchmarks.grpo_step.g_copies import (
    baseline_batches_images,
    embed_patches_by_convolution,
)
from benchmarks.grpo_step.models import reward
from stages.core.params import Grpo
from stages.grpo.drafts import Drafts
from stages.grpo.engine import MedGRPOTrainer
from stages.grpo.trainer import build_trainer, draft_seeds
from stages.policy.vision_attention import batch_images
from stages.policy.vision_features import embed_patches_by_product
from stages.prompts.styles import Style

EXACT_SETTINGS: Final = ("draft_nodes", "reuse_prompt_pass", "fused_head", "vision_cache_mb")
"""Keys of `grpo` in params.yaml that may be set for ours: they do not change a step's result."""
FAVOURED_LOGITS: Final = 60.0
"""Added to the logit of the token that a foreseen completion consists of."""


def settings(grpo: Grpo, group: int, completion: int, prompts: int, **changes: Any) -> Grpo:
    """`grpo` with these sizes, `prompts` a pass, no drafts, and nothing done ahead of a step.

    A single step is what is timed: a reference that takes several at once, or images that workers
    open meanwhile, would make others look cheaper. `training.Training` is timed with both.
    """
    sizes = {
        "num_generations": group,
        "max_completion_length": completion,
        # as many tokens as the images have: the context of the models is 32,768
        "max_prompt_length": 2**15,
        "prompts_per_device": prompts,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "save_steps": 0,
        "save_minutes": None,
        "draft_nodes": 0,
        "reference_steps": 1,
        "loader_workers": 0,
        # TRL would load a reference from files: TrainerStep sets beta and the reference
        "beta": 0.0,
    }
    return Grpo.model_validate(grpo.model_dump() | sizes | changes)


def suppressed(processor: Any) -> list[int]:
    """Token ids never sampled: end tokens, for full-length completions, and image placeholders."""
    return sorted(processor.tokenizer.get_added_vocab().values())


@contextmanager
def repeating(policy: Any, token: int) -> Iterator[None]:
    """Let a policy write one token only: in effect, as its logit is far above all others."""

    def favour(_: Any, __: Any, logits: torch.Tensor) -> None:
        logits[..., token] += FAVOURED_LOGITS

    hook = policy.lm_head.register_forward_hook(favour)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def prepared_for(trainer: Any) -> Iterator[None]:
    """Let policy and reference of a trainer compute in its precision, as accelerate would."""
    if not trainer.args.bf16:
        yield
        return
    models = (trainer.model, trainer.ref_model)
    before = [vars(model).get("forward") for model in models]
    for model in models:
        compute = trainer.accelerator.autocast()(model.forward)
        model.forward = convert_outputs_to_fp32(compute)
    try:
        yield
    finally:
        for model, forward in zip(models, before, strict=True):
            del model.forward
            if forward is not None:
                model.forward = forward


class TrainerStep:
    """The step of a trainer, timed by part, in passes over `prompts_per_pass` prompts.

    In our engine, the prompt pass of the rollout also serves the loss (`grpo.reuse_prompt_pass`):
    it counts as rollout, and "policy forward" covers the completions only.

    With `grpo.draft_nodes`, all completions can be foreseen, as nearly all are in a training
    without thoughts: a large logit makes the policy repeat one token, and the trie learns this from
    the first step on. Its other nodes are the answer format of each letter, as in a training.
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
        beta: float,
        *,
        style: Style = "no-think",
        foreseen: bool = True,
    ) -> None:
        """`beta`: weight of the KL, in place of that of `grpo`.

        `foreseen`: whether drafts, if there are any, foresee all completions.
        """
        self.clock = clock
        self.prompts_per_pass = grpo.prompts_per_device
        # each trainer wraps the policy's forward with TRL's head: do not nest them
        vars(policy).pop("forward", None)
        self.trainer = build_trainer(
            policy, processor, dataset, grpo, style, scratch=scratch, run_name="benchmark"
        )
        trainer: Any = self.trainer
        trainer.beta = beta
        trainer.ref_model = reference
        if grpo.engine == "shared-prefix":
            trainer.prepare_reference()  # in place: it computes the same, for the other ways too
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
        self.favoured: int | None = None
        """Token that foreseen completions consist of."""
        if grpo.draft_nodes:
            if foreseen:
                self.favoured = processor.tokenizer.convert_tokens_to_ids("A")
            seeds = draft_seeds(processor, dataset, style)
            excluded = (*trainer.eos_token_ids, *tokens)
            trainer._drafts = Drafts(seeds, excluded, grpo.draft_nodes)
        self._time(trainer)

    @property
    def sampled(self) -> dict[str, float]:
        """How the last rollout went: `drafted`, the share foreseen, and single-token `forwards`.

        Empty for TRL's engine.
        """
        metrics = self.trainer._metrics["train"]
        names = [name for name in ("drafted", "forwards") if metrics.get(f"rollout/{name}")]
        return {name: metrics[f"rollout/{name}"][-1] for name in names}

    @property
    def nodes(self) -> int:
        """Nodes of the present trie."""
        drafts = self.trainer._drafts
        return 0 if drafts is None else len(drafts.trie)

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

    def choose_tower(self) -> None:
        """Set how the vision towers of policy and reference compute, which other steps share."""
        shared_prefix = self.trainer.engine_options.engine == "shared-prefix"
        embed = embed_patches_by_product if shared_prefix else embed_patches_by_convolution
        for policy in (self.trainer.model, self.trainer.ref_model):
            embed(policy)
            batch_images(policy, shared_prefix or baseline_batches_images(policy))

    def rows(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each example once per completion, as from TRL's sampler."""
        repeated = (repeat(example, self.trainer.num_generations) for example in examples)
        return list(chain.from_iterable(repeated))

    def backward(self, examples: list[dict[str, Any]]) -> None:
        """Sample, score and add the gradients of a step over these examples, pass by pass."""
        self.choose_tower()
        size = self.prompts_per_pass
        starts = range(0, len(examples), size)
        self.trainer.current_gradient_accumulation_steps = len(starts)
        with self.foreseen(), self.prepared():
            for start in starts:
                rows = self.rows(examples[start : start + size])
                self.trainer.training_step(self.trainer.model, rows, None)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """As `prepared_for`, only for the block, as G copies share policy and reference."""
        with prepared_for(self.trainer):
            yield

    @contextmanager
    def foreseen(self) -> Iterator[None]:
        """Let the policy repeat one token, if completions are to be foreseen."""
        if self.favoured is None:
            yield
            return
        with repeating(self.trainer.model, self.favoured):
            yield
