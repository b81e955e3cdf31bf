"""Shared-prefix scores and gradients equal those of separate rows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from stages.grpo.shared_prefix import (
    PACK_MAX_TOKENS,
    CompletionScorer,
    pack_rows,
    score,
    score_packed,
    score_packed_on_cache,
    score_separately_on_cache,
)
from stages.policy.last_layer import narrow_last_layer
from stages.policy.prefill import prefill_prompts
from stages.policy.prompt_batch import PromptBatch, process_prompts
from stages.policy.vision_features import embed_patches_by_product
from tests.grpo.tiny import FAMILIES, chats, processor, questions, random_policy

TEMPERATURE = 0.7


def draw_completions(group: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Random completions (2, G, C) and their mask; `lengths` are cycled over the rows."""
    width = max(lengths)
    ids = torch.randint(20, 700, (2, group, width), generator=torch.Generator().manual_seed(7))
    mask = torch.stack(
        [torch.arange(width) < lengths[row % len(lengths)] for row in range(2 * group)]
    ).long()
    return ids, mask.view(2, group, width)


def score_separately(
    policy: PreTrainedModel, rows: list[list[dict[str, Any]]], ids: Tensor
) -> Tensor:
    """Log-probabilities (2 * G, C) from one full row, with an image, per completion."""
    group, length = ids.shape[1:]
    repeated = list(chain.from_iterable([row] * group for row in rows))
    inputs = processor().apply_chat_template(
        repeated,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    flat = ids.flatten(0, 1)
    for name, values in (
        ("input_ids", flat),
        ("attention_mask", torch.ones_like(flat)),
        ("mm_token_type_ids", torch.zeros_like(flat)),
    ):
        inputs[name] = torch.cat([inputs[name], values], dim=1)
    logits = policy(**inputs, use_cache=False).logits[:, -length - 1 : -1] / TEMPERATURE
    return logits.log_softmax(-1).gather(-1, flat[..., None])[..., 0]


def gradients(
    policy: PreTrainedModel, score: Callable[[], Tensor], mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradients of their mean weighted with advantages of both signs."""
    policy.zero_grad()
    logps = score()
    flat = mask.flatten(0, 1)
    advantages = torch.linspace(-1, 1, len(flat))[:, None]
    (advantages * logps * flat / flat.sum(1, keepdim=True)).mean().backward()
    return logps.detach()[flat.bool()], {
        name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None
    }


def assert_same(
    one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]
) -> None:
    assert (one[0] - other[0]).abs().max() <= 1e-5
    assert one[1].keys() == other[1].keys()
    # over all parameters together: a single tensor of tiny norm, such as a bias, is all rounding
    difference = sum((one[1][name] - other[1][name]).pow(2).sum() for name in one[1])
    norm = sum(gradient.pow(2).sum() for gradient in one[1].values())
    assert norm > 0
    assert (difference / norm) ** 0.5 <= 1e-5


def prepared(
    family: str, folder: Path
) -> tuple[PreTrainedModel, list[list[dict[str, Any]]], PromptBatch]:
    policy = random_policy(family)
    rows = chats(questions(folder))
    return policy, rows, process_prompts(processor(), policy, rows, torch.device("cpu"))


def ways_to_score(
    policy: PreTrainedModel, prompts: PromptBatch, ids: Tensor, mask: Tensor
) -> tuple[Callable[[], Tensor], ...]:
    """The log-probabilities (2 * G, C) in one row, on a cache, and in rows apart."""
    head = CompletionScorer(TEMPERATURE)

    def packed() -> Tensor:
        return score_packed(policy, prompts, prompts.image_inputs, ids, mask, head)[0]

    def segments() -> Tensor:
        prompt_pass = prefill_prompts(policy, prompts, prompts.image_inputs)
        return score_packed_on_cache(policy, prompts, prompt_pass, ids, mask, head)[0]

    def members() -> Tensor:
        prompt_pass = prefill_prompts(policy, prompts, prompts.image_inputs)
        return score_separately_on_cache(policy, prompts, prompt_pass, ids, mask, head)[0]

    return packed, segments, members


# every two values of family, group and lengths together
@pytest.mark.parametrize(
    ("family", "group", "lengths"),
    [
        (FAMILIES[(row + column) % 3], group, lengths)
        for (row, group), (column, lengths) in product(
            enumerate([2, 4, 8]), enumerate([[8], [1, 8, 3], [1]])
        )
    ],
)
def test_log_probabilities_and_gradients_equal_those_of_separate_rows(
    family: str, group: int, lengths: list[int], tmp_path: Path
) -> None:
    policy, rows, prompts = prepared(family, tmp_path)
    assert len(set(prompts.image_grid_thw.prod(-1).tolist())) == 2, "two sizes of image"
    ids, mask = draw_completions(group, lengths)
    separate = gradients(policy, lambda: score_separately(policy, rows, ids), mask)
    for score_shared in ways_to_score(policy, prompts, ids, mask):
        assert_same(gradients(policy, score_shared, mask), separate)


@pytest.mark.parametrize("length", [8, 80])
@pytest.mark.parametrize("prefilled", [True, False])
def test_the_method_is_chosen_by_length_and_gives_the_same(
    length: int, prefilled: bool, tmp_path: Path
) -> None:
    policy, rows, prompts = prepared("qwen2_vl", tmp_path)
    ids, mask = draw_completions(4, [length, 2])
    assert (ids[0].numel() > PACK_MAX_TOKENS) == (length == 80)

    head = CompletionScorer(TEMPERATURE)

    def chosen() -> Tensor:
        images = prompts.image_inputs
        prompt_pass = prefill_prompts(policy, prompts, images) if prefilled else None
        return score(policy, prompts, images, ids, mask, head, prompt_pass)[0]

    separate = gradients(policy, lambda: score_separately(policy, rows, ids), mask)
    assert_same(gradients(policy, chosen, mask), separate)


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_embedded_by_a_product_equal_those_of_the_convolution(
    family: str, tmp_path: Path
) -> None:
    policy, _, prompts = prepared(family, tmp_path)
    tower = policy.model.visual.patch_embed
    before = tower(prompts.pixel_values)
    embed_patches_by_product(policy)
    torch.testing.assert_close(tower(prompts.pixel_values), before, rtol=1e-4, atol=1e-4)
    assert not policy.load_state_dict(policy.state_dict()).missing_keys


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fused_head_gives_the_same_scores(family: str, tmp_path: Path) -> None:
    policy, _, prompts = prepared(family, tmp_path)
    add_fused_lm_head(policy, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
    ids, mask = draw_completions(4, [1, 8, 3])

    def scores(head: CompletionScorer) -> tuple[Tensor, Tensor | None]:
        return score_packed(policy, prompts, prompts.image_inputs, ids, mask, head)

    plain = CompletionScorer(TEMPERATURE, entropy=True)
    fused = CompletionScorer(TEMPERATURE, fused=True, entropy=True)
    assert_same(
        gradients(policy, lambda: scores(fused)[0], mask),
        gradients(policy, lambda: scores(plain)[0], mask),
    )
    torch.testing.assert_close(scores(fused)[1], scores(plain)[1], rtol=1e-4, atol=1e-5)
    prompt_pass = prefill_prompts(policy, prompts, prompts.image_inputs)
    segments, _ = score_packed_on_cache(policy, prompts, prompt_pass, ids, mask, fused)
    real = mask.flatten(0, 1).bool()
    torch.testing.assert_close(segments[real], scores(plain)[0][real], rtol=0, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    policy, _, prompts = prepared("qwen2_vl", tmp_path)
    ids, mask = draw_completions(4, [8, 3])
    head = CompletionScorer(TEMPERATURE)

    def packed() -> Tensor:
        return score_packed(policy, prompts, prompts.image_inputs, ids, mask, head)[0]

    plain = gradients(policy, packed, mask)
    policy.train()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(gradients(policy, packed, mask), plain)


def test_selected_prompts_are_scored_as_in_the_whole_batch(tmp_path: Path) -> None:
    policy, _, prompts = prepared("qwen2_vl", tmp_path)
    ids, mask = draw_completions(4, [8, 3])
    head = CompletionScorer(TEMPERATURE)
    second = prompts.select([1])
    with torch.no_grad():
        together, _ = score_packed(policy, prompts, prompts.image_inputs, ids, mask, head)
        alone, _ = score_packed(policy, second, second.image_inputs, ids[1:], mask[1:], head)
    real = mask[1].bool()
    torch.testing.assert_close(alone[real], together[4:][real], rtol=0, atol=1e-5)


def text_batch(ids: Tensor, mask: Tensor, positions: Tensor) -> PromptBatch:
    lengths = tuple(mask.sum(1).tolist())
    return PromptBatch(ids, mask, positions, torch.zeros(0), torch.zeros(0, 3), (0,), lengths)


def test_a_completion_attends_to_its_prompt_and_itself_only() -> None:
    prompt = text_batch(
        torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]), torch.zeros(3, 1, 3, dtype=torch.long)
    )
    rows = pack_rows(
        prompt, torch.tensor([[[7, 8, 3], [9, 3, 0]]]), torch.tensor([[[1, 1, 1], [1, 1, 0]]])
    )
    # each segment starts with the prompt's last token and omits the completion's last
    assert rows.input_ids.tolist() == [[0, 5, 6, 7, 8, 6, 9, 3]]
    attended = [row.nonzero().flatten().tolist() for row in rows.mask[0, 0]]
    assert attended == [
        *([0], [1]),
        *([1, 2], [1, 2, 3], [1, 2, 3, 4]),
        *([1, 5], [1, 5, 6], [1, 5, 6, 7]),
    ]


def test_positions_continue_the_prompt_for_every_completion() -> None:
    positions = torch.tensor([[[0, 1, 4]], [[0, 2, 4]], [[0, 3, 4]]])
    prompt = text_batch(torch.tensor([[4, 5, 6]]), torch.ones(1, 3, dtype=torch.long), positions)
    rows = pack_rows(
        prompt, torch.tensor([[[7, 8], [9, 3]]]), torch.ones(1, 2, 2, dtype=torch.long)
    )
    assert rows.positions.tolist() == [
        [[0, 1, 4, 5, 4, 5]],
        [[0, 2, 4, 5, 4, 5]],
        [[0, 3, 4, 5, 4, 5]],
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_runs_only_for_tokens_that_predict(family: str, tmp_path: Path) -> None:
    policy, _, prompts = prepared(family, tmp_path)
    layers = policy.model.language_model.layers
    tokens: list[tuple[int, int]] = []
    for index in (0, -1):
        layers[index].mlp.register_forward_hook(
            lambda _, inputs, __, index=index: tokens.append((index, inputs[0].shape[1]))
        )
    ids, mask = draw_completions(2, [3])
    prompt_pass = prefill_prompts(policy, prompts, prompts.image_inputs)
    score_packed(policy, prompts, prompts.image_inputs, ids, mask, CompletionScorer(TEMPERATURE))
    width = prompts.ids.shape[1]
    assert tokens == [(0, width), (-1, 1), (0, width - 1 + 6), (-1, 6)]
    assert prompt_pass.keys_values[-1][0].shape[2] == width, (
        "keys of all tokens, for those behind them"
    )
    with pytest.raises(ZeroDivisionError), narrow_last_layer(policy, 1):
        raise ZeroDivisionError
    assert "forward" not in vars(layers[-1]), "restored after an error"


def test_a_recomputed_or_wrapped_last_layer_is_not_narrowed() -> None:
    policy = random_policy("qwen2_vl")
    with narrow_last_layer(policy, 1) as narrowed:
        assert narrowed
    policy.gradient_checkpointing_enable()
    with narrow_last_layer(policy, 1) as narrowed:
        assert not narrowed, "its activations are recomputed after the context"
    with torch.no_grad(), narrow_last_layer(policy, 1) as narrowed:
        assert narrowed
    policy.gradient_checkpointing_disable()
    layer = policy.model.language_model.layers[-1]
    layer.forward = wrapped = layer.forward
    with narrow_last_layer(policy, 1) as narrowed:
        assert not narrowed
        assert layer.forward is wrapped
