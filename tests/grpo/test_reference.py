"""The reference's log-probabilities of several steps at once are those of a pass after each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.grpo import reference
from stages.grpo.batch import ExampleBatch
from stages.grpo.drafts import DraftTrie, build_trie
from stages.grpo.reference import ReferenceAhead, ReferenceTable, build_table
from stages.grpo.shared_prefix import CompletionScorer, score
from stages.policy.prompt_batch import PromptBatch, concatenate_prompts, process_prompts
from tests.grpo.tiny import (
    FAMILIES,
    assert_resumes_exactly,
    chats,
    processor,
    questions,
    random_policy,
    tiny_trainer,
    train_and_log,
)

EOS = 844
COMPLETIONS = [[5, 6, EOS], [5, 7, 8, EOS], [9, EOS], [5, 6, 7, 7]]
SETTINGS = {"max_steps": 7, "learning_rate": 1e-4, "logging_steps": 1, "prompts_per_device": 1}


def padded(rows: list[list[int]], prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, G, C), the same rows for each prompt."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [842] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids.expand(prompts, -1, -1), mask.expand(prompts, -1, -1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_table_gives_the_scores_of_a_pass(
    family: str, temperature: float, tmp_path: Path
) -> None:
    policy = random_policy(family)
    rows = chats(questions(tmp_path))
    apart = [process_prompts(processor(), policy, [row], torch.device("cpu")) for row in rows]
    prompts = concatenate_prompts(apart)
    assert not bool(prompts.mask.all()), "of unequal length"
    trie = build_trie(COMPLETIONS, (EOS,), 100)
    table = build_table(policy, prompts, trie, (EOS,), temperature, prompts.image_inputs)
    ids, mask = padded(COMPLETIONS, 2)
    found, missing = table.score(ids, mask)
    assert missing == []
    with torch.no_grad():
        scorer = CompletionScorer(temperature)
        expected, _ = score(policy, prompts, prompts.image_inputs, ids, mask, scorer)
    real = mask.flatten(0, 1).bool()
    torch.testing.assert_close(found.flatten(0, 1)[real], expected[real], rtol=1e-4, atol=1e-4)


def test_a_table_says_which_prompts_it_cannot_score() -> None:
    trie = build_trie([[5, 6], [5, 7]], (EOS,), 100)
    tokens = torch.tensor([5, 6, 7, EOS])
    table = ReferenceTable(trie, tokens, torch.zeros(4, len(trie) + 1, 4))
    ids = torch.tensor(
        [
            [[5, 6, EOS], [5, EOS, 1]],
            [[5, 6, 5], [5, 6, 3]],
            [[6, 6, 6], [5, 6, 7]],
            [[5, 5, 5]] * 2,
        ]
    )
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1] * 3] * 2, [[1] * 3] * 2, [[1, 1, 0]] * 2])
    _, missing = table.score(ids, mask)
    # the second ends with a token of no draft, the third leaves the trie before its end; the last
    # ends in one that is in the trie, after a node that it does not follow
    assert missing == [1, 2]


def train(folder: Path, **settings: Any) -> tuple[list[dict[str, Any]], list[int]]:
    """The log, and the prompts of each pass for a table."""
    passes: list[int] = []
    original = reference.build_table

    def counting(policy: Any, prompts: PromptBatch, *rest: Any) -> ReferenceTable:
        passes.append(len(prompts))
        return original(policy, prompts, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "build_table", counting)
        trainer = tiny_trainer(folder, **SETTINGS | settings)
        trainer.train()
    return [row for row in trainer.state.log_history if "kl" in row], passes


def test_a_training_is_the_same_with_fewer_passes(tmp_path: Path) -> None:
    logs, passes = {}, {}
    for steps in (1, 3, 8):
        logs[steps], passes[steps] = train(tmp_path, reference_steps=steps)
    assert passes[1] == []
    # an epoch has two batches, and no table reaches beyond
    assert passes[3] == passes[8] == [2, 2, 2, 2]
    for steps in (3, 8):
        for one, other in zip(logs[1], logs[steps], strict=True):
            assert one["reward"] == other["reward"]
            assert one["kl"] == pytest.approx(other["kl"], abs=1e-5)
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_completions_that_leave_the_trie_are_scored_by_themselves(tmp_path: Path) -> None:
    usual, _ = train(tmp_path, reference_steps=1, temperature=1.5)
    found, _ = train(tmp_path, reference_steps=4, temperature=1.5, draft_nodes=3)
    for one, other in zip(usual, found, strict=True):
        assert one["kl"] == pytest.approx(other["kl"], abs=1e-5)
    assert any(row["rollout/drafted"] < 1 for row in found)


def test_a_training_resumes_with_the_tables_it_had(tmp_path: Path) -> None:
    settings = SETTINGS | {"reference_steps": 2, "save_steps": 1}

    def run(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
        return train_and_log(tiny_trainer(folder, **settings), folder, **options)

    assert_resumes_exactly(run, tmp_path, 3, 4, 5)


def test_batches_come_in_order_and_a_new_epoch_begins_again() -> None:
    def batch(number: int) -> ExampleBatch:
        return ExampleBatch([{"number": number}], None)  # type: ignore[arg-type]

    ahead = ReferenceAhead(3, (EOS,))
    for epoch in range(2):
        source = iter([batch(10 * epoch + number) for number in range(5)])
        seen = [each[0]["number"] for each in ahead.watch(source)]
        assert seen == [10 * epoch + number for number in range(5)]


def test_without_a_trie_there_is_no_table(tmp_path: Path) -> None:
    policy = random_policy("qwen2_vl")
    prompts = process_prompts(processor(), policy, chats(questions(tmp_path)), torch.device("cpu"))
    ahead = ReferenceAhead(2, (EOS,))
    images: Callable[..., Any] = lambda _, batch: batch.image_inputs  # noqa: E731
    assert ahead.table(policy, prompts, DraftTrie(), 1.0, images) is None, "not from here"
    next(ahead.watch(iter([ExampleBatch([], prompts)])))
    assert ahead.table(policy, prompts, DraftTrie(), 1.0, images) is None
