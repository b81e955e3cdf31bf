"""Sampling a group behind one pass over its prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from stages.grpo.rollout import Sampling, draws, sample_completions
from stages.policy.loading import vision_token_ids
from stages.policy.prefill import PromptPass, prefill_prompts
from stages.policy.prompt_batch import PromptBatch, process_prompts
from tests.grpo.tiny import FAMILIES, chats, embedded_policy, processor, questions, random_policy

ENDS = (844, 842)


def rollout(
    policy: PreTrainedModel,
    prompts: PromptBatch,
    numbers: list[int],
    group: int = 4,
    seed: int = 5,
    **options: object,
) -> list[list[int]]:
    sampling = Sampling(**{"max_tokens": 12, "ends": ENDS, "pad": 842} | more)  # type: ignore[arg-type]
    with torch.no_grad():
        done = prefill_prompts(policy, prompts, prompts.image_inputs)
    return sample_completions(
        policy, prompts, done, draws(seed, numbers, group, sampling.max_tokens), sampling
    )


def prompts_for(policy: PreTrainedModel, folder: Path) -> PromptBatch:
    return process_prompts(processor(), policy, chats(questions(folder)), torch.device("cpu"))


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_greedy_completions_are_those_of_generate(family: str, tmp_path: Path) -> None:
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
        assert completion[-1] in ENDS or len(completion) == 12


def test_completions_of_a_prompt_do_not_depend_on_who_shares_the_call(tmp_path: Path) -> None:
    policy = embedded_policy()
    prompts = prompts_for(policy, tmp_path)
    together = rollout(policy, prompts, [3, 4], temperature=1.5)
    alone = rollout(policy, prompts.select([0]), [3], temperature=1.5) + rollout(
        policy, prompts.select([1]), [4], temperature=1.5
    )
    assert together == alone
    assert len({tuple(each) for each in together[:4]}) > 1, "members of a group differ"
    assert together == rollout(policy, prompts, [3, 4], temperature=1.5)
    assert together != rollout(policy, prompts, [3, 4], temperature=1.5, seed=6)


def test_placeholders_of_images_are_never_sampled(tmp_path: Path) -> None:
    policy = random_policy("qwen2_vl")
    prompts = prompts_for(policy, tmp_path)
    forbidden = set(vision_token_ids(processor()))
    # hot enough that every token is nearly as likely as any other
    free = rollout(policy, prompts, [0, 1], group=64, temperature=1e4)
    assert forbidden & {token for row in free for token in row}, "would be sampled if allowed"
    kept = rollout(policy, prompts, [0, 1], group=64, temperature=1e4, suppressed=tuple(forbidden))
    assert not forbidden & {token for row in kept for token in row}


class Constant:
    """A policy that always gives the same logits."""

    def __init__(self, logits: list[float]) -> None:
        self.logits = torch.tensor(logits)

    def __call__(self, input_ids: torch.Tensor, **_: object) -> Constant:
        self.calls = getattr(self, "calls", 0) + 1
        return type(self)(self.logits.expand(*input_ids.shape, -1).tolist())


def sample_constant(
    probabilities: list[float], tokens: int, group: int, **options: object
) -> tuple[list[list[int]], int]:
    policy = Constant(torch.tensor(probabilities).log().tolist())
    ones = torch.ones(1, 1, dtype=torch.long)
    prompts = PromptBatch(
        ones, ones, torch.zeros(3, 1, 1, dtype=torch.long), torch.zeros(0), torch.zeros(0, 3), (0,)
    )
    sampling = Sampling(**{"max_tokens": tokens, "ends": (0,), "pad": 9} | more)  # type: ignore[arg-type]
    done = PromptPass((), policy.logits[None])
    rows = sample_completions(policy, prompts, done, draws(1, [0], group, tokens), sampling)  # type: ignore[arg-type]
    return rows, getattr(policy, "calls", 0)


def test_tokens_come_with_their_probabilities() -> None:
    rows, _ = sample_constant([0.0, 0.5, 0.3, 0.2, 0.0], tokens=10, group=2000)
    shares = torch.bincount(torch.tensor(rows).flatten(), minlength=5) / 20000
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.5, 0.3, 0.2, 0.0]), atol=0.02, rtol=0)


def test_top_p_top_k_and_temperature_are_respected() -> None:
    rows, _ = sample_constant([0.0, 0.5, 0.3, 0.2], tokens=10, group=200, top_p=0.7)
    assert {token for row in rows for token in row} == {1, 2}
    rows, _ = sample_constant([0.0, 0.5, 0.3, 0.2], tokens=10, group=200, top_k=1)
    assert {token for row in rows for token in row} == {1}
    cold, _ = sample_constant([0.0, 0.5, 0.3, 0.2], tokens=10, group=200, temperature=0.05)
    assert {token for row in cold for token in row} == {1}


def test_a_completion_ends_with_its_end_token_and_decoding_when_all_have() -> None:
    rows, calls = sample_constant([1.0, 0.0], tokens=10, group=3)
    assert rows == [[0]] * 3
    assert calls == 0
    rows, calls = sample_constant([0.5, 0.5], tokens=50, group=8)
    assert all(row[-1] == 0 and 0 not in row[:-1] for row in rows)
    assert calls == max(map(len, rows)) - 1


def test_draws_belong_to_prompts_not_to_calls() -> None:
    assert torch.equal(draws(1, [4, 7], 2, 3)[1], draws(1, [7], 2, 3)[0])
    assert not torch.equal(draws(1, [4], 2, 3), draws(2, [4], 2, 3))
