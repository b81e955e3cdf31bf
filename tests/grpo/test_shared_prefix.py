"""A group computed once gives what its members give computed apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.corpus import phantoms
from stages.grpo.policy import load_policy, load_processor
from stages.grpo.shared_prefix import SharedPrefixGRPOTrainer, continue_positions, share_prefix
from stages.grpo.trainer import build_trainer, train_dataset
from stages.params import load_params

REPOSITORY = Path(__file__).parents[2]
BASE = REPOSITORY / "infra" / "base"


def trainer(engine: str, group: int, folder: Path, **more: Any) -> Any:
    rng = np.random.default_rng(3)
    rows = []
    for number, problem in enumerate(["Scan? A)CT, B)MRI", "How severe is the lesion? A)Mild, B)Moderate, C)Severe, D)None of these"]):
        image = folder / f"{number}.png"
        # two sizes of picture, and so two numbers of image tokens
        phantoms.draw(phantoms.sample_phantom(rng), ((384, 384), (96, 144))[number], rng).save(image)
        rows.append({"image": str(image), "problem": problem, "gold": "A", "options": ["CT", "MRI"]})
    settings = {"engine": engine, "num_generations": group, "prompts_per_device": 2} | more
    grpo = load_params(REPOSITORY / "params.yaml").grpo.model_copy(update=settings)
    policy, processor = load_policy(BASE, dtype="float32", attention="sdpa"), load_processor(BASE)
    dataset = train_dataset(rows, "no-think")
    return build_trainer(policy, processor, dataset, grpo, "no-think", scratch=folder, log=folder / "log.csv", run_name="x")


def scored(each: Any, group: int, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities, entropies, mask and gradients for random completions of these lengths, cycled over the rows."""
    processor, dataset = each.processing_class, each.train_dataset
    from stages.grpo.prompts import chat

    texts = [
        processor.apply_chat_template(chat(dataset[row // group]["prompt"][0]["content"]), add_generation_prompt=True, tokenize=False)
        for row in range(2 * group)
    ]
    inputs = processor(text=texts, images=[dataset[row // group]["image"] for row in range(2 * group)], padding=True, return_tensors="pt")
    width = max(lengths)
    generator = torch.Generator().manual_seed(7)
    completions = torch.randint(20, 700, (2 * group, width), generator=generator)
    mask = torch.stack([torch.arange(width) < lengths[row % len(lengths)] for row in range(2 * group)]).long()
    each.model.zero_grad()
    logps, entropies, _ = each._get_per_token_logps_and_entropies(
        each.model,
        torch.cat([inputs["input_ids"], completions], dim=1),
        torch.cat([inputs["attention_mask"], mask], dim=1),
        width,
        compute_entropy=True,
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
        num_images=[1] * (2 * group),
        mm_token_type_ids=torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(completions)], dim=1),
    )
    advantages = torch.linspace(-1, 1, 2 * group)[:, None]
    (advantages * (logps * mask) / mask.sum(1, keepdim=True)).mean().backward()
    return logps.detach(), entropies.detach(), mask.bool(), {name: p.grad.clone() for name, p in each.model.named_parameters()}


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("lengths", [[8], [1, 8, 3], [1]])
def test_log_probabilities_and_gradients_are_those_of_separate_rows(group: int, lengths: list[int], tmp_path: Path) -> None:
    apart = scored(trainer("trl", group, tmp_path), group, lengths)
    shared = scored(trainer("shared-prefix", group, tmp_path), group, lengths)
    mask = apart[2]
    torch.testing.assert_close(apart[0][mask], shared[0][mask], rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(apart[1][mask], shared[1][mask], rtol=1e-4, atol=1e-5)
    # over all parameters together: single tensors of tiny norm, such as a bias, would compare rounding
    difference = sum((apart[3][name] - shared[3][name]).pow(2).sum() for name in apart[3])
    norm = sum(gradient.pow(2).sum() for gradient in apart[3].values())
    assert (difference / norm) ** 0.5 <= 1e-5


def one_step(each: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights after one optimiser step on two groups of four completions, the same words and rewards for every trainer."""
    said = [[300 + row, 40 + row] for row in range(8)]
    monkeypatch.setattr(each, "_generate_single_turn", lambda *_, **__: (said, None))
    each.reward_funcs = [lambda completions, **_: [float(index % 3) for index in range(len(completions))]]
    each.reward_func_names, each.reward_weights, each.reward_processing_classes = ["order"], torch.ones(1), [None]
    each.args.max_steps = 1
    each.train()
    return {name: parameter.detach().clone() for name, parameter in each.model.named_parameters()}


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("trl", {}),
        ("shared-prefix", {"prompts_per_device": 1, "gradient_accumulation_steps": 2}),
    ],
)
def test_one_training_step_is_trls_however_it_is_cut(
    engine: str, settings: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = one_step(trainer("shared-prefix", 4, tmp_path), monkeypatch)
    other = one_step(trainer(engine, 4, tmp_path, **settings), monkeypatch)
    base = load_policy(BASE, dtype="float32", attention="sdpa").state_dict()
    moved = sum((whole[name] - base[name]).pow(2).sum() for name in whole)
    apart = sum((whole[name] - other[name]).pow(2).sum() for name in whole)
    assert moved > 0
    # Adam's first step has the size of the learning rate whatever the gradient's, so rounding near zero shows
    assert (apart / moved) ** 0.5 <= 0.05


def test_groups_stay_whole_and_pictures_with_their_prompts(tmp_path: Path) -> None:
    each = trainer("shared-prefix", 4, tmp_path)
    assert isinstance(each, SharedPrefixGRPOTrainer)
    each.model.train()
    batch = each._prepare_inputs([each.train_dataset[row // 4] for row in range(8)])
    for group in (slice(0, 4), slice(4, 8)):
        assert (batch["prompt_ids"][group] == batch["prompt_ids"][group][0]).all()
        assert batch["advantages"][group].sum().abs() < 1e-4
    tokens = (batch["prompt_ids"] == each.processing_class.image_token_id).sum(1)
    assert tokens.tolist() == (batch["image_grid_thw"].prod(-1) // 4).tolist()


def test_a_completion_sees_its_prompt_and_itself_and_nothing_else() -> None:
    prompt, completions = torch.tensor([[0, 5, 6]]), torch.tensor([[[7, 8], [9, 0]]])
    rows = share_prefix(prompt, torch.tensor([[0, 1, 1]]), completions, torch.tensor([[[1, 1], [1, 0]]]))
    assert rows.input_ids.tolist() == [[0, 5, 6, 7, 8, 9, 0]]
    seen = [row.nonzero().flatten().tolist() for row in rows.mask[0, 0]]
    assert seen == [[0], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 5], [1, 2, 5, 6]]
    assert rows.predicting.tolist() == [2, 3, 2, 5]


def test_positions_start_again_behind_the_prompt_for_every_completion() -> None:
    positions = continue_positions(torch.tensor([[[0, 1, 4]], [[0, 2, 4]], [[0, 3, 4]]]), 2, 2)
    assert positions.tolist() == [[[0, 1, 4, 5, 6, 5, 6]], [[0, 2, 4, 5, 6, 5, 6]], [[0, 3, 4, 5, 6, 5, 6]]]
