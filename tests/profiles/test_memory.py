"""Memory of a training: what autocast copies, and what gradients take the place of."""

from __future__ import annotations

from typing import Any

from stages.profiles.needs import memory
from tests.profiles.test_times import MODEL, params_with

WEIGHTS = MODEL.parameters
LANGUAGE = MODEL.parameters - MODEL.vision_parameters


def of(**grpo: Any) -> dict[str, int]:
    return memory(params_with(grpo=grpo), MODEL)


def test_the_pass_over_completions_has_bfloat16_copies_of_its_own() -> None:
    assert of()["weights in bfloat16"] == 2 * (WEIGHTS + LANGUAGE)
    one_pass = {"reuse_prompt_pass": False, "reference_steps": 1}
    assert of(**one_pass)["weights in bfloat16"] == 2 * WEIGHTS
    assert of(bf16=False)["weights in bfloat16"] == 0
    stored = memory(params_with(base={"dtype": "bfloat16"}), MODEL)
    assert stored["weights in bfloat16"] == 0


def test_under_autocast_the_reference_is_stored_in_bfloat16_but_for_embeddings() -> None:
    assert MODEL.embedding_parameters is not None
    assert of()["reference"] == 2 * WEIGHTS + 2 * MODEL.embedding_parameters
    unknown = MODEL.model_copy(update={"embedding_parameters": None})
    assert memory(params_with(), unknown)["reference"] == 4 * WEIGHTS
    assert of(bf16=False)["reference"] == 4 * WEIGHTS
    assert of(engine="trl", reuse_prompt_pass=False, reference_steps=1)["reference"] == 4 * WEIGHTS
    assert of(beta=0.0)["reference"] == 0
    adapter = {"rank": 8, "alpha": 16, "dropout": 0.0, "target_modules": ["q_proj"]}
    assert of(lora=adapter, reuse_prompt_pass=False, reference_steps=1)["reference"] == 0
    stored = memory(params_with(base={"dtype": "bfloat16"}), MODEL)
    assert stored["reference"] == 2 * WEIGHTS


def test_gradients_take_the_place_of_activations_unless_steps_accumulate() -> None:
    assert of()["gradients"] == 0
    assert of()["Adam"] == 2 * 4 * WEIGHTS
    twice = of(prompts_per_device=2, gradient_accumulation_steps=2)
    assert twice["gradients"] == 4 * WEIGHTS
    few = of(prompts_per_device=1, num_generations=2, max_completion_length=16)
    stored = few["activations"] + few["logits"]
    assert few["gradients"] == 4 * WEIGHTS - stored > 0


def test_two_trainings_fit_on_one_h200() -> None:
    """As docs/full-scale.md says."""
    assert 2 * sum(of().values()) < 150_754_820_096


def test_a_fused_head_saves_as_much_as_half_the_prompts_and_no_pass_more() -> None:
    """As docs/full-scale.md recommends for more room."""
    fused = sum(of(fused_head=True).values())
    half = sum(of(prompts_per_device=2, gradient_accumulation_steps=2).values())
    assert abs(fused - half) < 2**30
