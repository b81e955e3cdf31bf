"""A reference that is stored in 16 bits computes what autocast computes from 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stages.grpo.drafts import build_trie, prefill_with_drafts
from stages.policy.autocast import store_rounded
from stages.policy.prompt_batch import process_prompts
from tests.grpo.tiny import (
    FAMILIES,
    chats,
    processor,
    questions,
    random_policy,
    set_rewards,
    tiny_trainer,
)

TRIE = build_trie([[5, 6, 7], [5, 8], [9]], (), 100)


def logits(policy: Any, folder: Path) -> Tensor:
    prompts = process_prompts(processor(), policy, chats(questions(folder)), torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return prefill_with_drafts(policy, prompts, prompts.image_inputs, TRIE).logits


def types(policy: nn.Module, kind: Any) -> set[torch.dtype]:
    layers = [each for each in policy.modules() if isinstance(each, kind)]
    assert layers
    return {parameter.dtype for each in layers for parameter in each.parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_autocast_computes_stays_the_same_to_the_bit(
    family: str, tied: bool, tmp_path: Path
) -> None:
    policy: Any = random_policy(family)
    head = policy.get_output_embeddings()
    if not tied:
        head.weight = nn.Parameter(head.weight.detach().clone())
    before = logits(policy, tmp_path)
    store_rounded(policy, torch.bfloat16)
    assert torch.equal(logits(policy, tmp_path), before)
    assert head.weight.dtype == (torch.float32 if tied else torch.bfloat16)
    inner = [each for each in policy.modules() if isinstance(each, nn.Linear) and each is not head]
    assert {parameter.dtype for each in inner for parameter in each.parameters()} == {
        torch.bfloat16
    }
    assert types(policy, (nn.Embedding, nn.Conv3d, nn.LayerNorm)) == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bf16": True}, torch.bfloat16),
        ({"bf16": False}, torch.float32),
        ({"bf16": True, "engine": "trl", "reuse_prompt_pass": False}, torch.float32),
    ],
)
def test_a_training_under_autocast_stores_its_reference_so(
    settings: dict[str, Any], expected: torch.dtype, tmp_path: Path
) -> None:
    trainer = tiny_trainer(tmp_path, random_policy("qwen2_vl"), beta=0.04, **settings)
    layers = trainer.ref_model.model.language_model.layers
    assert types(layers, nn.Linear) == {expected}
    assert types(trainer.model.model.language_model.layers, nn.Linear) == {torch.float32}


def test_a_training_learns_the_same_with_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = []
    for name in ("rounded", "as loaded"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "as loaded":
            monkeypatch.setattr("stages.grpo.engine.store_rounded", lambda *_: None)
        trainer = tiny_trainer(
            folder,
            random_policy("qwen2_vl"),
            bf16=True,
            beta=0.04,
            max_steps=3,
            learning_rate=1e-3,
            logging_steps=1,
        )
        set_rewards(
            trainer, lambda completions, **_: [float(at % 3) for at, _ in enumerate(completions)]
        )
        trainer.train()
        logs.append([log["kl"] for log in trainer.state.log_history if "kl" in log])
    assert logs[0] == logs[1]
    assert logs[0][-1] > 0
