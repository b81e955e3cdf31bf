"""Images of one size in one call of attention: the same features as one image at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.params import Towers
from stages.policy import vision_attention
from stages.policy.loading import load_policy
from stages.policy.vision_attention import BATCHED, batch_images, batches_images
from tests.grpo.tiny import BASE, FAMILIES, random_policy, tiny_trainer

GRIDS = {
    "one": [(1, 8, 8)],
    "equal": [(1, 8, 12)] * 3,
    "unequal": [(1, 8, 8), (1, 4, 6), (1, 8, 8), (1, 2, 2)],
    "windows with edges": [(1, 14, 14), (1, 14, 14)],
    "frames": [(3, 4, 4), (1, 4, 4)],
}


def features_and_gradients(policy: Any, grid: Tensor, attention: str) -> list[Tensor]:
    visual = policy.model.visual
    visual.set_attn_implementation("sdpa")
    if attention == BATCHED:
        batch_images(policy)
    assert batches_images(policy) == (attention == BATCHED)
    visual.zero_grad()
    width = visual.config.in_channels * visual.config.temporal_patch_size
    torch.manual_seed(0)
    patches = torch.randn(int(grid.prod(-1).sum()), width * visual.config.patch_size**2)
    features = visual(patches, grid_thw=grid, return_dict=True).pooler_output
    (features * torch.linspace(-1, 1, features.shape[1])).sum().backward()
    gradients = [each.grad for each in visual.parameters() if each.grad is not None]
    return [features.detach(), *(each.clone() for each in gradients)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("images", GRIDS)
def test_features_are_those_of_one_image_at_a_time(family: str, images: str) -> None:
    policy = random_policy(family)
    grid = torch.tensor(GRIDS[images])
    batched = features_and_gradients(policy, grid, BATCHED)
    apart = features_and_gradients(policy, grid, "sdpa")
    assert torch.equal(batched[0], apart[0])
    assert len(batched) == len(apart) > 10
    for one, other in zip(batched[1:], apart[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_images_of_several_sizes_are_brought_into_order_by_one_index_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of queries, keys, values and the result: not one for each size, whose gradients are added."""
    policy = random_policy("qwen2_5_vl")
    applied: list[int] = []
    original = vision_attention._Permute.apply

    def counting(states: Tensor, dim: int, *places: Tensor) -> Any:
        applied.append(dim)
        return original(states, dim, *places)

    monkeypatch.setattr(vision_attention._Permute, "apply", counting)
    features_and_gradients(policy, torch.tensor(GRIDS["windows with edges"]), BATCHED)
    windowed = len(policy.model.visual.blocks) - 1
    assert applied == [1, 1, 1, 0] * windowed


def test_equal_images_take_one_call_and_lengths_are_asked_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = random_policy("qwen2_vl")
    layers = len(policy.model.visual.blocks)
    calls: list[int] = []
    original = vars(vision_attention)["sdpa_attention_forward"]

    def counting(module: Any, query: Tensor, *rest: Any, **options: Any) -> Any:
        calls.append(len(query))
        return original(module, query, *rest, **options)

    monkeypatch.setattr(vision_attention, "sdpa_attention_forward", counting)
    features_and_gradients(policy, torch.tensor(GRIDS["equal"]), BATCHED)
    assert calls == [3] * layers
    calls.clear()
    features_and_gradients(policy, torch.tensor(GRIDS["unequal"]), BATCHED)
    assert calls == [2, 1, 1] * layers


@pytest.mark.parametrize(
    ("attention", "batched"),
    [
        ("sdpa", True),
        ("auto", True),
        ("eager", False),
        (Towers(language="sdpa", vision="sdpa"), False),
        (Towers(language="sdpa", vision="sdpa_batched"), True),
    ],
)
def test_the_setting_turns_it_off(attention: str | Towers, batched: bool) -> None:
    policy = load_policy(BASE, dtype="float32", attention=attention)
    assert batches_images(policy) == batched


def test_the_reference_computes_as_the_policy(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    assert batches_images(trainer.model)
    assert batches_images(trainer.ref_model)
    trainer.model.save_pretrained(tmp_path / "saved")
    assert BATCHED not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
