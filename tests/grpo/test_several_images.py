"""Prompts with several images: the same scores, gradients and completions as of separate rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.corpus.sample import phantoms
from stages.corpus.sample.drawing import draw
from stages.grpo.drafts import build_trie, prefill_with_drafts, score_drafted
from stages.grpo.reference import build_table
from stages.grpo.rollout import draws, sample_completions, sample_drafted
from stages.policy.decoding import Sampling
from stages.policy.prefill import prefill_prompts
from stages.policy.prompt_batch import PromptBatch, concatenate_prompts, process_prompts
from stages.policy.vision_attention import batch_images
from stages.policy.vision_features import VisionFeatures
from tests.grpo.test_shared_prefix import (
    TEMPERATURE,
    assert_same,
    draw_completions,
    gradients,
    score_separately,
    ways_to_score,
)
from tests.grpo.tiny import FAMILIES, QUESTIONS, processor, random_policy

COUNTS = [(1, 2), (8, 1), (3, 8)]
"""Images of the two prompts."""
SIZES = ((96, 96), (96, 144), (48, 96))
EOS_IDS = (844, 842)


def prepared(
    family: str, counts: tuple[int, int]
) -> tuple[PreTrainedModel, list[list[dict[str, Any]]], PromptBatch]:
    """A policy, and chats whose images, of several sizes, stand before the question."""
    rng = np.random.default_rng(3)
    rows = []
    for question, count in zip(QUESTIONS, counts, strict=True):
        images = [
            draw(phantoms.sample_phantom(rng), SIZES[number % len(SIZES)], rng)
            for number in range(count)
        ]
        content = [{"type": "image", "image": image} for image in images]
        rows.append([{"role": "user", "content": [*content, {"type": "text", "text": question}]}])
    policy = random_policy(family)
    batch_images(policy)
    prompts = process_prompts(processor(), policy, rows, torch.device("cpu"))
    assert prompts.image_counts == counts
    return policy, rows, prompts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("counts", COUNTS)
def test_scores_and_gradients_equal_those_of_separate_rows(
    family: str, counts: tuple[int, int]
) -> None:
    policy, rows, prompts = prepared(family, counts)
    ids, mask = draw_completions(3, [5, 1, 4])
    separate = gradients(policy, lambda: score_separately(policy, rows, ids), mask)

    def drafted() -> Tensor:
        rows = [
            each[: int(real.sum())]
            for each, real in zip(ids.flatten(0, 1).tolist(), mask.flatten(0, 1), strict=True)
        ]
        trie = build_trie(rows, (), 1000)
        draft_pass = prefill_with_drafts(policy, prompts, prompts.image_inputs, trie)
        found = score_drafted(draft_pass, ids, mask, TEMPERATURE, entropy=False)
        assert found is not None
        return found[0]

    for way in (*ways_to_score(policy, prompts, ids, mask), drafted):
        assert_same(gradients(policy, way, mask), separate)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("counts", COUNTS)
def test_completions_do_not_depend_on_who_shares_the_batch(
    family: str, counts: tuple[int, int]
) -> None:
    policy, _, prompts = prepared(family, counts)
    sampling = Sampling(max_tokens=6, eos_ids=EOS_IDS, pad=842)

    def sample(numbers: list[int], drafted: bool) -> list[list[int]]:
        some = prompts.select(numbers)
        uniform = draws(5, numbers, 4, 6)
        with torch.no_grad():
            if not drafted:
                prompt_pass = prefill_prompts(policy, some, some.image_inputs)
                return sample_completions(policy, some, prompt_pass, uniform, sampling)
            trie = build_trie(together[::2], EOS_IDS, 100)
            draft_pass = prefill_with_drafts(policy, some, some.image_inputs, trie)
        return sample_drafted(policy, some, draft_pass, uniform, sampling).completions

    together = sample([0, 1], drafted=False)
    assert sample([0], drafted=False) + sample([1], drafted=False) == together
    assert sample([0, 1], drafted=True) == together


@pytest.mark.parametrize("counts", COUNTS)
def test_features_and_paths_stay_with_their_images(counts: tuple[int, int]) -> None:
    policy, _, prompts = prepared("qwen2_vl", counts)
    names = tuple(f"{number}.png" for number in range(sum(counts)))
    named = PromptBatch(**vars(prompts) | {"image_paths": names})
    assert named.select([0]).image_paths == names[: counts[0]]
    assert named.select([1, 0]).image_paths == (*names[counts[0] :], *names[: counts[0]])
    assert prompts.select([1]).image_paths == ()
    apart = [named.select([0]), named.select([1])]
    assert concatenate_prompts(apart).image_paths == names
    assert concatenate_prompts([apart[0], prompts.select([1])]).image_paths == ()
    features = VisionFeatures(10**8)
    cached = features.inputs_for(policy, named)(named.ids)["inputs_embeds"]
    again = features.inputs_for(policy, named.select([1, 0]))(named.ids.flip(0))["inputs_embeds"]
    assert torch.equal(again.flip(0), cached)
    assert set(features._features) == set(names)


def test_lengths_stay_those_of_the_prompts() -> None:
    _, _, prompts = prepared("qwen2_vl", (1, 2))
    assert prompts.is_padded
    short, long = prompts.select([0]), prompts.select([1])
    others = [short, long, prompts.select([1, 0]), concatenate_prompts([long, short, prompts])]
    for batch in (prompts, *others):
        assert batch.lengths == tuple(batch.mask.sum(1).tolist())
        assert batch.is_padded == (not bool(batch.mask.all()))
    assert not long.is_padded


def test_tables_of_several_steps_hold_prompts_with_several_images() -> None:
    policy, _, prompts = prepared("qwen2_vl", (8, 1))
    trie = build_trie([[5, 6, 7]], EOS_IDS, 10)
    apart = concatenate_prompts([prompts.select([0]), prompts.select([1])])
    tables = [
        build_table(policy, each, trie, EOS_IDS, 1.0, each.image_inputs)
        for each in (prompts, apart)
    ]
    torch.testing.assert_close(tables[0].logps, tables[1].logps)
