"""Sampling a group behind one pass over its prompt."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from stages.grpo.rollout import draws, sample_completions
from stages.policy.decoding import Sampling
from stages.policy.loading import vision_token_ids
from stages.policy.prefill import PromptPass, prefill_prompts
from stages.policy.prompt_batch import PromptBatch, process_prompts
from tests.grpo.tiny import FAMILIES, chats, embedded_policy, processor, questions, random_policy

EOS_IDS = (844, 842)


def rollout(
    policy: PreTrainedModel,
    prompts: PromptBatch,
    numbers: list[int],
    group: int = 4,
    seed: int = 5,
    **options: Any,
) -> list[list[int]]:
    sampling = Sampling(max_tokens=12, eos_ids=EOS_IDS, pad=842, **options)
    with torch.no_grad():
        prompt_pass = prefill_prompts(policy, prompts, prompts.image_inputs)
    uniform = draws(seed, numbers, group, sampling.max_tokens)
    return sample_completions(policy, prompts, prompt_pass, uniform, sampling)


def prompts_for(policy: PreTrainedModel, folder: Path) -> PromptBatch:
    return process_prompts(processor(), policy, chats(questions(folder)), torch.device("cpu"))


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_greedy_completions_equal_those_of_generate(family: str, tmp_path: Path) -> None:
    policy = embedded_policy() if family == "embedded" else random_policy(family)
    prompts = prompts_for(policy, tmp_path)
    ours = rollout(policy, prompts, [0, 1], group=2, temperature=0.0)
    rows = chats(questions(tmp_path))
    inputs = processor().apply_chat_template(
        rows,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    width = inputs["input_ids"].shape[1]
    theirs = policy.generate(**inputs, max_new_tokens=12, do_sample=False)[:, width:].tolist()
    for row, completion in enumerate(ours):
        assert completion == theirs[row // 2][: len(completion)]
        assert completion[-1] in EOS_IDS or len(completion) == 12


def test_completions_of_a_prompt_do_not_depend_on_the_rest_of_the_batch(tmp_path: Path) -> None:
    policy = embedded_policy()
    prompts = prompts_for(policy, tmp_path)
    together = rollout(policy, prompts, [3, 4], temperature=1.5)
    first = rollout(policy, prompts.select([0]), [3], temperature=1.5)
    second = rollout(policy, prompts.select([1]), [4], temperature=1.5)
    assert together == first + second
    assert len({tuple(completion) for completion in together[:4]}) > 1, "members of a group differ"
    assert together == rollout(policy, prompts, [3, 4], temperature=1.5)
    assert together != rollout(policy, prompts, [3, 4], temperature=1.5, seed=6)


def test_image_tokens_are_never_sampled(tmp_path: Path) -> None:
    policy = random_policy("qwen2_vl")
    prompts = prompts_for(policy, tmp_path)
    forbidden = set(vision_token_ids(processor()))
    # so hot that all tokens are nearly equally likely
    hot = partial(rollout, policy, prompts, [0, 1], group=64, temperature=1e4)
    assert forbidden & set(chain.from_iterable(hot())), "would be sampled if not suppressed"
    assert not forbidden & set(chain.from_iterable(hot(suppressed=tuple(forbidden))))


class ConstantPolicy:
    """A policy that always returns the same logits."""

    dtype = torch.float32

    def __init__(self, logits: list[float]) -> None:
        self.logits = torch.tensor(logits)
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        self.calls += 1
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def sample_constant(
    probabilities: list[float], tokens: int, group: int, **options: Any
) -> tuple[list[list[int]], int]:
    """Completions of a policy with constant probabilities, and how often it was called."""
    policy: Any = ConstantPolicy(torch.tensor(probabilities).log().tolist())
    ones = torch.ones(1, 1, dtype=torch.long)
    positions = torch.zeros(3, 1, 1, dtype=torch.long)
    prompts = PromptBatch(ones, ones, positions, torch.zeros(0), torch.zeros(0, 3), (0,), (1,))
    sampling = Sampling(max_tokens=tokens, eos_ids=(0,), pad=9, **options)
    prompt_pass = PromptPass((), policy.logits[None])
    uniform = draws(1, [0], group, tokens)
    return sample_completions(policy, prompts, prompt_pass, uniform, sampling), policy.calls


def test_tokens_are_sampled_with_their_probabilities() -> None:
    rows, _ = sample_constant([0.0, 0.5, 0.3, 0.2, 0.0], tokens=10, group=2000)
    shares = torch.bincount(torch.tensor(rows).flatten(), minlength=5) / 20000
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.5, 0.3, 0.2, 0.0]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("options", "sampled"),
    [({"top_p": 0.7}, {1, 2}), ({"top_k": 1}, {1}), ({"temperature": 0.05}, {1})],
)
def test_top_p_top_k_and_temperature_are_respected(
    options: dict[str, float], sampled: set[int]
) -> None:
    rows, _ = sample_constant([0.0, 0.5, 0.3, 0.2], tokens=10, group=200, **options)
    assert set(chain.from_iterable(rows)) == sampled


def test_completions_end_with_an_end_token_and_decoding_with_the_last_completion() -> None:
    rows, calls = sample_constant([1.0, 0.0], tokens=10, group=3)
    assert rows == [[0]] * 3
    assert calls == 0
    rows, calls = sample_constant([0.5, 0.5], tokens=50, group=8)
    assert all(row[-1] == 0 and 0 not in row[:-1] for row in rows)
    assert calls == max(map(len, rows)) - 1


def test_draws_belong_to_prompts_and_not_to_calls() -> None:
    assert torch.equal(draws(1, [4, 7], 2, 3)[1], draws(1, [7], 2, 3)[0])
    assert not torch.equal(draws(1, [4], 2, 3), draws(2, [4], 2, 3))
