"""Drafted completions are those of step-by-step sampling, token for token, with the same scores."""

from __future__ import annotations

import gc
import random
import weakref
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from stages.grpo.drafts import (
    MAX_DEPTH,
    DraftPass,
    Drafts,
    DraftTrie,
    build_trie,
    prefill_with_drafts,
    score_drafted,
    without_drafts,
)
from stages.grpo.rollout import PackedRows, Sampled, draws, sample_completions, sample_drafted
from stages.grpo.shared_prefix import CompletionScorer, score
from stages.policy.decoding import Sampling
from stages.policy.loading import vision_token_ids
from stages.policy.prefill import prefill_prompts
from stages.policy.prompt_batch import PromptBatch, process_prompts
from tests.grpo.tiny import (
    FAMILIES,
    chats,
    embedded_policy,
    processor,
    questions,
    random_policy,
    tiny_trainer,
)

EOS_IDS = (844, 842)
TOKENS = 12


def policy_of(family: str) -> PreTrainedModel:
    return embedded_policy() if family == "embedded" else random_policy(family)


def prompts_for(policy: PreTrainedModel, folder: Path) -> PromptBatch:
    """Two prompts of unequal length."""
    prompts = process_prompts(processor(), policy, chats(questions(folder)), torch.device("cpu"))
    assert not bool(prompts.mask.all())
    return prompts


def sampling_of(**options: Any) -> Sampling:
    """The settings of a trainer, with changes."""
    never = tuple(vision_token_ids(processor()))
    own: dict[str, Any] = {
        "max_tokens": TOKENS,
        "eos_ids": EOS_IDS,
        "pad": 842,
        "suppressed": never,
    }
    return Sampling(**own | options)


def step_by_step(
    policy: PreTrainedModel, prompts: PromptBatch, uniform: torch.Tensor, sampling: Sampling
) -> list[list[int]]:
    with torch.no_grad():
        prompt_pass = prefill_prompts(policy, prompts, prompts.image_inputs)
    return sample_completions(policy, prompts, prompt_pass, uniform, sampling)


def drafted(
    policy: PreTrainedModel,
    prompts: PromptBatch,
    uniform: torch.Tensor,
    sampling: Sampling,
    trie: DraftTrie,
) -> Sampled:
    with torch.no_grad():
        draft_pass = prefill_with_drafts(policy, prompts, prompts.image_inputs, trie)
    return sample_drafted(policy, prompts, draft_pass, uniform, sampling)


def tries_of(completions: list[list[int]], sampling: Sampling) -> dict[str, DraftTrie]:
    """Tries that hold all of the completions, some of them, their beginnings, and none."""
    noise = random.Random(3)
    strangers = [[noise.randrange(800) for _ in range(5)] for _ in range(6)]
    excluded = (*sampling.eos_ids, *sampling.suppressed)
    return {
        "all": build_trie(completions, excluded, 1000),
        "some": build_trie(completions[::3] + strangers, excluded, 40),
        "beginnings": build_trie([each[:2] for each in completions], excluded, 1000),
        "none": build_trie(strangers, excluded, 1000),
        "longer": build_trie([each + [7] * 30 for each in completions], excluded, 1000),
    }


SAMPLING: list[tuple[int, dict[str, Any]]] = [
    (2, {"temperature": 0.7}),
    (8, {"temperature": 1.5}),
    (3, {"temperature": 0.0}),
    (4, {"top_k": 3}),
    (4, {"top_p": 0.6, "temperature": 1.2}),
    (4, {"suppressed": tuple(range(600, 900))}),
    (4, {"max_tokens": 1}),
    (4, {"max_tokens": 3}),
    (4, {"eos_ids": ()}),
]
"""Group sizes and settings that are applied to logits, whatever the family that gave them."""


@pytest.mark.parametrize(
    ("family", "group", "options"),
    [
        *((family, 4, {}) for family in (*FAMILIES, "embedded")),
        *(("embedded", *each) for each in SAMPLING),
        *((FAMILIES[at % 3], *each) for at, each in enumerate(SAMPLING)),
    ],
)
def test_completions_are_those_of_step_by_step_sampling(
    family: str, group: int, options: dict[str, Any], tmp_path: Path
) -> None:
    policy = policy_of(family)
    prompts = prompts_for(policy, tmp_path)
    sampling = sampling_of(**options)
    uniform = draws(5, [0, 1], group, sampling.max_tokens)
    expected = step_by_step(policy, prompts, uniform, sampling)
    for name, trie in tries_of(expected, sampling).items():
        found = drafted(policy, prompts, uniform, sampling, trie)
        assert found.completions == expected, name
        if name == "all":
            assert (found.drafted, found.forwards) == (len(expected), 0)
        if name == "none":
            assert found.forwards == max(map(len, expected)) - 1


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_steps_of_one_width_give_the_same_completions(family: str, tmp_path: Path) -> None:
    """As on a GPU, where such a step is captured once and replayed."""
    policy = policy_of(family)
    prompts = prompts_for(policy, tmp_path)
    sampling = sampling_of(temperature=1.3)
    uniform = draws(5, [0, 1], 4, sampling.max_tokens)
    expected = step_by_step(policy, prompts, uniform, sampling)
    trie = build_trie([each[:2] for each in expected], EOS_IDS, 100)
    shapes = set()

    def note(_: Any, __: Any, options: dict[str, Any]) -> None:
        if options["input_ids"].shape[1] == 4:
            shapes.add((options["input_ids"].shape, options["attention_mask"].shape))

    with torch.no_grad():
        draft_pass = prefill_with_drafts(policy, prompts, prompts.image_inputs, trie)
    policy.register_forward_pre_hook(note, with_kwargs=True)
    found = sample_drafted(policy, prompts, draft_pass, uniform, sampling, fixed_width=True)
    assert found.completions == expected
    assert found.forwards > 2
    assert len(shapes) == 1


@pytest.mark.parametrize("fixed_width", [False, True])
def test_the_cache_is_freed_with_the_rows_and_in_the_type_that_attention_computes_in(
    fixed_width: bool, tmp_path: Path
) -> None:
    policy = policy_of("qwen2_vl")
    prompts = prompts_for(policy, tmp_path)
    path = torch.zeros(len(prompts), 4, 0, dtype=torch.bool)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        draft_pass = without_drafts(prefill_prompts(policy, prompts, prompts.image_inputs))
        rows = PackedRows(policy, prompts, draft_pass, path, 4, 2, fixed_width=fixed_width)
        rows.forward(torch.ones(8, dtype=torch.long), torch.ones(8, dtype=torch.long))
    layers = [weakref.ref(layer.keys) for layer in rows._cache.layers]
    assert {layer.keys.dtype for layer in rows._cache.layers} == {torch.bfloat16}
    gc.collect()
    gc.disable()  # a GPU's memory does not wait for the next collection
    try:
        del rows
        assert all(layer() is None for layer in layers)
    finally:
        gc.enable()


def test_many_completions_of_the_trained_policy_need_no_forward_pass(tmp_path: Path) -> None:
    policy = embedded_policy()
    prompts = prompts_for(policy, tmp_path)
    formats = processor().tokenizer([f"<answer> {letter} </answer>" for letter in "ABCD"])
    drafts = Drafts(formats["input_ids"], EOS_IDS, 64)
    forwards = same = 0
    for call in range(16):
        uniform = draws(9, [2 * call, 2 * call + 1], 8, TOKENS)
        expected = step_by_step(policy, prompts, uniform, sampling_of())
        found = drafted(policy, prompts, uniform, sampling_of(), drafts.trie)
        drafts.learn(found.completions)
        same += found.completions == expected
        forwards += found.forwards
    assert same == 16
    assert forwards <= 16, "step by step takes seven and more a call"


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_and_gradients_are_those_of_a_pass_over_the_completions(
    family: str, temperature: float, tmp_path: Path
) -> None:
    policy = policy_of(family)
    prompts = prompts_for(policy, tmp_path)
    uniform = draws(5, [0, 1], 4, TOKENS)
    rows = step_by_step(policy, prompts, uniform, sampling_of())
    trie = build_trie(rows, EOS_IDS, 1000)
    length = max(map(len, rows))
    ids = torch.tensor([row + [842] * (length - len(row)) for row in rows]).view(2, 4, length)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]).view(
        2, 4, length
    )
    weights = torch.linspace(-1, 1, 8)[:, None] * mask.flatten(0, 1)
    results = []
    for way in ("drafted", "scored"):
        policy.zero_grad()
        if way == "drafted":
            draft_pass = prefill_with_drafts(policy, prompts, prompts.image_inputs, trie)
            found = score_drafted(draft_pass, ids, mask, temperature, entropy=True)
            assert found is not None
        else:
            prompt_pass = prefill_prompts(policy, prompts, prompts.image_inputs)
            scorer = CompletionScorer(temperature, entropy=True)
            found = score(policy, prompts, prompts.image_inputs, ids, mask, scorer, prompt_pass)
        logps, entropies = found
        assert entropies is not None
        (logps * weights).sum().backward()
        gradients = torch.cat(
            [each.grad.flatten() for each in policy.parameters() if each.grad is not None]
        )
        real = mask.flatten(0, 1).bool()
        results.append((logps[real], entropies[real], gradients))
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6


def test_a_completion_that_leaves_the_trie_is_not_scored_from_it(tmp_path: Path) -> None:
    policy = embedded_policy()
    prompts = prompts_for(policy, tmp_path).select([0])
    trie = build_trie([[1, 2, 3]], EOS_IDS, 10)
    with torch.no_grad():
        draft_pass = prefill_with_drafts(policy, prompts, prompts.image_inputs, trie)

    def scored(ids: list[list[int]], mask: list[list[int]]) -> bool:
        one, other = (torch.tensor(each)[None] for each in (ids, mask))
        return score_drafted(draft_pass, one, other, 1.0, entropy=False) is not None

    ones = [1, 1, 1]
    assert scored([[1, 2, 3], [1, 2, 844]], [ones, ones])
    assert scored([[1, 2, 3], [9, 842, 842]], [ones, [1, 0, 0]]), "the last token may be any"
    assert not scored([[1, 2, 3], [1, 9, 844]], [ones, ones])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=40),
    st.integers(0, 30),
    st.sets(st.integers(0, 5), max_size=2),
)
def test_a_trie_holds_the_most_frequent_beginnings(
    completions: list[list[int]], max_nodes: int, ends: set[int]
) -> None:
    trie = build_trie(completions, tuple(ends), max_nodes)
    assert len(trie) <= max_nodes
    assert not ends & set(trie.tokens)
    assert all(parent <= node for node, parent in enumerate(trie.parents))
    depths = trie.depths
    sees = trie.ancestry()
    for node in range(len(trie)):
        assert int(sees[node].sum()) == depths[node + 1], "as many ancestors as it is deep"
    # every beginning in it is one of a completion
    paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(trie.tokens, trie.parents, strict=True):
        paths.append((*paths[parent], token))
    assert len(set(paths)) == len(paths)
    assert all(any(tuple(each[: len(path)]) == path for each in completions) for path in paths[1:])


def test_a_trie_forgets_what_is_no_longer_written() -> None:
    drafts = Drafts([[1, 2, 3]], EOS_IDS, 8)
    assert list(drafts.trie.tokens) == [1, 2, 3]
    for _ in range(40):
        drafts.learn([[5, 6, 844]] * 8)
    assert list(drafts.trie.tokens) == [5, 6]
    again = Drafts([], EOS_IDS, 8)
    again.restore(drafts.recent)
    assert again.trie == drafts.trie
    drafts.learn([list(range(10, 10 + 3 * MAX_DEPTH))] * 256)
    assert max(len(each) for each in drafts.recent) == MAX_DEPTH + 1
    assert not Drafts([], EOS_IDS, 8).trie.tokens


def test_a_whole_training_is_the_same_with_and_without_drafts(tmp_path: Path) -> None:
    logs = []
    for nodes in (64, 0):
        trainer = tiny_trainer(
            tmp_path, draft_nodes=nodes, max_steps=6, learning_rate=1e-4, logging_steps=1
        )
        trainer.train()
        history = [row for row in trainer.state.log_history if "reward" in row]
        logs.append([(row["reward"], round(row["loss"], 4)) for row in history])
        shares = [row["rollout/drafted"] for row in history]
        forwards = [row["rollout/forwards"] for row in history]
        if nodes:
            assert sum(shares) / len(shares) > 0.9
            assert sum(forwards) < 7 * len(forwards)
        else:
            assert set(shares) == {0.0}
    assert logs[0] == logs[1]


def test_an_empty_pass_is_that_over_the_prompts(tmp_path: Path) -> None:
    policy = embedded_policy()
    prompts = prompts_for(policy, tmp_path)
    trie = build_trie([[4, 5]], EOS_IDS, 10)
    with torch.no_grad():
        plain = prefill_prompts(policy, prompts, prompts.image_inputs)
        draft_pass: DraftPass = prefill_with_drafts(policy, prompts, prompts.image_inputs, trie)
    found = draft_pass.prompt_pass
    pairs = zip(chain(*found.keys_values), chain(*plain.keys_values), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, plain.logits, rtol=1e-4, atol=1e-4)
