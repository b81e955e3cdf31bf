"""Activations that a training stores for its backward pass, per prompt and per completion token.

    python -m benchmarks.activations [--quick] [--json FILE]

Measured without a GPU: the tensors that autograd saves (torch.autograd.graph.saved_tensors_hooks)
in our engine's own passes, under bfloat16 autocast with float32 weights, by models of an eighth of
the width of Qwen2-VL-2B and Qwen2.5-VL-3B. Bytes are proportional to widths, so eight times as many
are those of the full model; and to prompts and completions, so the difference of two sizes leaves
out what does not grow: copies of weights. Logits are left out, as `stages.profiles.needs` counts
them apart.

They are more than those of a model in bfloat16. The residual stream and the output of a norm are
float32, and each linear map saves a bfloat16 copy of its input of its own: queries, keys and values
three, gate and up two. `prompt_mb` and `token_mb` of infra/profiles come from here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.command_line import build_parser, silence_libraries
from benchmarks.grpo_step.clock import Clock
from benchmarks.grpo_step.models import SHAPES, Shape, build_policy, build_processor, question_rows
from stages.core.cli import run_stage
from stages.core.outputs import write_json
from stages.core.provenance import collect_provenance
from stages.grpo.batch import PromptCollator
from stages.grpo.data.dataset import train_dataset
from stages.grpo.shared_prefix import CompletionScorer, score
from stages.policy.prefill import PromptPass, prefill_prompts
from stages.policy.prompt_batch import PromptBatch
from stages.policy.vision_attention import batch_images
from stages.policy.vision_features import embed_patches_by_product

NARROWER: Final = 8
GROUP: Final = 4
LIMIT: Final = 256
"""Tokens of the completions: `grpo.max_completion_length` of the profiles."""
MODELS: Final = ("qwen2-vl-2b", "qwen2.5-vl-3b")


def main() -> None:
    """Measure, print, write the JSON."""
    parser = build_parser("activations", __doc__, quick="a quarter of the depth, times four")
    arguments = parser.parse_args()
    silence_libraries()
    results = {name: measure(name, 4 if arguments.quick else 1) for name in MODELS}
    for name, result in results.items():
        for precision, sizes in result.items():
            print(
                f"{name}, {precision}: {sizes['prompt_mb']:,.0f} MB per prompt with an image,"
                f" {sizes['token_mb']:.2f} MB per completion token"
            )
    if arguments.json:
        write_json(arguments.json, {"models": results, "provenance": collect_provenance({})})


def measure(name: str, shallower: int = 1) -> dict[str, dict[str, float]]:
    """`prompt_mb` and `token_mb` of a model, 10^6 bytes, by precision.

    `autocast`: float32 weights under bfloat16 autocast; `bfloat16`: weights in bfloat16. Of a
    model `shallower` times as shallow, times that.
    """
    shape = narrow(SHAPES[name], shallower)
    scale = NARROWER * shallower / 1e6
    results = {}
    for precision, dtype in (("autocast", torch.float32), ("bfloat16", torch.bfloat16)):
        policy: Any = build_policy(shape, torch.device("cpu"), 0, dtype)
        embed_patches_by_product(policy)
        batch_images(policy)
        context = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "autocast" else None
        bench = _Bench(policy, context or nullcontext())
        one, two = (bench.prompt_bytes(count) for count in (1, 2))
        few, many = (bench.completion_bytes(group) for group in (GROUP // 2, GROUP))
        results[precision] = {
            "prompt_mb": scale * (two - one),
            # keys and values of the prompt, repeated for each completion, are among them
            "token_mb": scale * (many - few) / (GROUP // 2 * LIMIT),
        }
    return results


def narrow(shape: Shape, shallower: int) -> Shape:
    """The shape with an eighth of the widths, and fewer layers."""
    width = "embed_dim" if "embed_dim" in shape.vision else "hidden_size"
    vision = shape.vision | {
        width: shape.vision[width] // NARROWER,
        "depth": shape.vision["depth"] // shallower,
        # heads of 80 features as before, so that rotations divide
        "num_heads": shape.vision["num_heads"] // NARROWER,
    }
    for key in ("hidden_size", "out_hidden_size", "intermediate_size"):
        if key in shape.vision:
            vision[key] = shape.vision[key] // NARROWER
    text = shape.text | {
        "hidden_size": shape.text["hidden_size"] // NARROWER,
        "intermediate_size": shape.text["intermediate_size"] // NARROWER,
        "num_hidden_layers": shape.text["num_hidden_layers"] // shallower,
        "vocab_size": 900,
    }
    # heads of 16 features
    text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [2, 3, 3]}
    return replace(shape, text=text, vision=vision, std=0.05)


class _Bench:
    """A policy whose passes are measured, in a context of its precision."""

    def __init__(self, policy: Any, context: AbstractContextManager[Any]) -> None:
        self._policy = policy
        self._context = context

    def prompts(self, count: int) -> PromptBatch:
        """So many prompts of one length, each with an image."""
        with tempfile.TemporaryDirectory(prefix="activations-") as folder:
            rows = question_rows(Path(folder), count)
            for row in rows:
                row["problem"] = rows[0]["problem"]
            dataset = train_dataset(rows, "no-think")
            examples = [dataset[index] for index in range(count)]
            processor = build_processor(Clock(torch.device("cpu")))
            return PromptCollator(processor, self._policy, 1)(examples).prompts

    def prompt_bytes(self, count: int) -> int:
        """Bytes saved by a pass over so many prompts."""
        prompts = self.prompts(count)
        return self._saved(lambda: prefill_prompts(self._policy, prompts, prompts.image_inputs))

    def completion_bytes(self, group: int) -> int:
        """Bytes saved by the pass over so many completions at the limit, behind one prompt."""
        prompts = self.prompts(1)
        with self._context:
            prompt_pass: PromptPass = prefill_prompts(self._policy, prompts, prompts.image_inputs)
        ids = torch.full((1, group, LIMIT), 5)
        scorer = CompletionScorer(1.0, packed=False)
        return self._saved(
            lambda: score(
                self._policy,
                prompts,
                prompts.image_inputs,
                ids,
                torch.ones_like(ids),
                scorer,
                prompt_pass,
            )
        )

    def _saved(self, work: Callable[[], Any]) -> int:
        """Bytes of the memory that work saves for its backward pass, counted once, no logits."""
        vocabulary = self._policy.config.text_config.vocab_size
        saved: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.shape[-1:] != (vocabulary,):
                # kept, so that no later tensor gets its place
                saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), self._context:
            result = work()
        total = sum(each.untyped_storage().nbytes() for each in saved.values())
        del result
        return total


if __name__ == "__main__":
    run_stage(main)
