"""The trainer learns what TRL's learns, whatever is shared, skipped, kept or cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from stages.core.errors import InputError
from stages.grpo import engine
from stages.grpo.engine import MedGRPOTrainer
from stages.grpo.shared_prefix import score
from stages.policy.prompt_batch import PromptBatch
from tests.grpo.tiny import embedded_policy, processor, questions, random_policy, trainer

SAID = [[300 + row, 40 + row, 50][: 1 + row % 3] for row in range(8)]
"""Completions of three lengths, the same for every trainer."""


def steer(each: Any, monkeypatch: pytest.MonkeyPatch, rewards: list[float] | None = None) -> None:
    """Let the trainer sample `SAID`, in the order of its prompts, and give these rewards."""
    words: Iterator[list[int]] = iter(SAID * 10)
    if each.sharing.engine == "trl":
        monkeypatch.setattr(
            each, "_generate_single_turn", lambda ids, *_, **__: ([next(words) for _ in ids], None)
        )
    else:
        monkeypatch.setattr(
            "stages.grpo.engine.sample_completions",
            lambda policy, prompts, done, uniform, sampling: [
                next(words) for _ in range(len(prompts) * uniform.shape[1])
            ],
        )
    values = rewards or [float(index % 3) for index in range(8)]
    pool: Iterator[float] = iter(values * 10)
    each.reward_funcs = [lambda completions, **_: [next(pool) for _ in completions]]
    each.reward_func_names, each.reward_weights, each.reward_processing_classes = (
        ["order"],
        torch.ones(1),
        [None],
    )


def trained(each: Any) -> dict[str, torch.Tensor]:
    """The trained weights.

    Plain SGD makes the step the gradient, where Adam's first would be its sign.
    """
    each.optimizer = torch.optim.SGD(
        [p for p in each.model.parameters() if p.requires_grad], lr=each.args.learning_rate
    )
    each.args.max_grad_norm = 0.0
    each.train()
    return {name: parameter.detach().clone() for name, parameter in each.model.named_parameters()}


def assert_same_step(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: PreTrainedModel
) -> None:
    before = start.state_dict()
    moved = sum((one[name] - before[name]).pow(2).sum() for name in one)
    apart = sum((one[name] - other[name]).pow(2).sum() for name in one)
    assert moved > 0
    assert (
        apart / moved
    ) ** 0.5 <= 1e-3  # the step is small beside the weights it is the difference of


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_a_whole_step_is_trls(
    family: str, reuse: bool, loss_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"loss_type": loss_type, "learning_rate": 0.1}
    ours = trainer(tmp_path, random_policy(family), reuse_prompt_pass=reuse, **settings)
    steer(ours, monkeypatch)
    stock = trainer(
        tmp_path, random_policy(family), engine="trl", reuse_prompt_pass=False, **settings
    )
    one = trained(ours)
    steer(stock, monkeypatch)
    assert_same_step(one, trained(stock), random_policy(family))


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        ({"prompts_per_device": 1, "gradient_accumulation_steps": 2}, {}),
        (
            {"prompts_per_device": 1, "gradient_accumulation_steps": 2, "reuse_prompt_pass": False},
            {},
        ),
        (
            {
                "num_iterations": 3,
                "max_steps": 3,
                "reuse_prompt_pass": False,
                "learning_rate": 0.01,
            },
            {"num_iterations": 3, "max_steps": 3, "learning_rate": 0.01},
        ),
        ({"beta": 0.0}, {"beta": 0.0}),
        ({"fused_head": True}, {}),
        ({"freeze_vision_tower": True, "vision_cache_mb": 10}, {"freeze_vision_tower": True}),
        ({"vision_cache_mb": 10, "max_steps": 2}, {"max_steps": 2}),
        ({"gradient_checkpointing": True, "reuse_prompt_pass": False}, {}),
        ({"beta": 0.0, "skip_zero_advantage": True, "reuse_prompt_pass": False}, {"beta": 0.0}),
    ],
)
def test_cuts_and_shortcuts_give_trls_weights(
    ours: dict[str, Any], stock: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the second group learns nothing from rewards all alike
    rewards = [0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0] if ours.get("skip_zero_advantage") else None
    settings = {"learning_rate": 0.1}
    one = trainer(tmp_path, **settings | ours)
    steer(one, monkeypatch, rewards)
    first = trained(one)
    other = trainer(tmp_path, engine="trl", **settings | {"reuse_prompt_pass": False} | stock)
    steer(other, monkeypatch, rewards)
    assert_same_step(first, trained(other), embedded_policy())


def test_a_group_without_advantage_is_not_passed_through_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = trainer(tmp_path, beta=0.0, skip_zero_advantage=True, reuse_prompt_pass=False)
    steer(each, monkeypatch, [0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    scored: list[int] = []
    original = score

    def counting(policy: Any, prompts: PromptBatch, *rest: Any) -> Any:
        scored.append(len(prompts))
        return original(policy, prompts, *rest)

    monkeypatch.setattr(engine, "score", counting)
    trained(each)
    assert scored == [1]
    # nothing to learn from at all: one group still runs, so that no other process waits for this
    # one
    scored.clear()
    alike = trainer(tmp_path, beta=0.0, skip_zero_advantage=True, reuse_prompt_pass=False)
    steer(alike, monkeypatch, [1.0] * 8)
    weights = trained(alike)
    assert scored == [1]
    before = embedded_policy().state_dict()
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_a_frozen_tower_does_not_move_and_sees_an_image_once(tmp_path: Path) -> None:
    each = trainer(
        tmp_path, freeze_vision_tower=True, vision_cache_mb=10, max_steps=3, learning_rate=1e-3
    )
    seen: list[int] = []
    for model in (each.model, each.ref_model):
        model.model.visual.register_forward_hook(lambda *_: seen.append(1))
    each.train()
    assert len(seen) == 2, "two images, three steps, policy and reference"
    before = embedded_policy().state_dict()
    moved = {
        name
        for name, parameter in each.model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert moved
    assert not any("visual" in name for name in moved)


def test_features_over_the_limit_are_dropped_and_computed_again(tmp_path: Path) -> None:
    from stages.policy.prompt_batch import process_prompts
    from stages.policy.vision_features import VisionFeatures
    from tests.grpo.tiny import chats

    policy = embedded_policy()
    prompts = process_prompts(processor(), policy, chats(questions(tmp_path)), torch.device("cpu"))
    small, large = VisionFeatures(1), VisionFeatures(10**6)
    with torch.no_grad():
        direct = policy.model.get_image_features(
            prompts.pixel_values, prompts.image_grid_thw, return_dict=True
        ).pooler_output
    ids = prompts.ids
    embedded = policy.get_input_embeddings()(ids)
    places = (ids == processor().image_token_id)[..., None].expand_as(embedded)
    expected = embedded.masked_scatter(places, torch.cat(list(direct)))
    for features in (small, large, small, large):
        torch.testing.assert_close(
            features(policy, prompts)(ids)["inputs_embeds"], expected, rtol=0, atol=1e-5
        )


def test_features_alone_are_refused_for_a_model_that_needs_more(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set grpo.vision_cache_mb to 0"):
        trainer(tmp_path, random_policy("qwen3_vl"), vision_cache_mb=1).train()


def test_an_adapter_on_layers_that_are_not_there_is_refused_with_those_that_are(
    tmp_path: Path,
) -> None:
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "query"]}
    with pytest.raises(InputError, match=r"no layer 'query'; it has .*k_proj, .*q_proj"):
        trainer(tmp_path, lora=lora)


def test_an_adapter_learns_and_is_merged_into_the_checkpoint(tmp_path: Path) -> None:
    from stages.grpo.trainer import save_policy
    from stages.policy.loading import load_policy

    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    each = trainer(tmp_path, lora=lora, max_steps=3, learning_rate=1e-2)
    assert each.ref_model is None
    trainable = [
        name for name, parameter in each.model.named_parameters() if parameter.requires_grad
    ]
    assert trainable
    assert all("language_model" in name and "lora" in name for name in trainable)
    each.train()
    assert each.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-6), (
        "the adapter begins as nothing"
    )
    save_policy(each, processor(), tmp_path / "out")
    before, after = (
        embedded_policy().state_dict(),
        load_policy(tmp_path / "out", dtype="float32", attention="sdpa").state_dict(),
    )
    assert before.keys() == after.keys()
    assert {
        name.rpartition(".")[0].rpartition(".")[2]
        for name in before
        if not torch.equal(before[name], after[name])
    } == {
        "q_proj",
        "v_proj",
    }


def test_groups_stay_whole_and_images_with_their_prompts(tmp_path: Path) -> None:
    each = trainer(
        tmp_path, prompts_per_device=1, gradient_accumulation_steps=2, reuse_prompt_pass=False
    )
    assert isinstance(each, MedGRPOTrainer)
    each.model.train()
    rows = [each.train_dataset[row // 4] for row in range(8)]
    for micro_step in range(2):
        each._step = micro_step
        part = each._prepare_inputs(rows)
        assert (part["prompt_ids"] == part["prompt_ids"][0]).all()
        assert part["advantages"].sum().abs() < 1e-4
        prompts = part["prompts"]
        tokens = (prompts.ids == processor().image_token_id).sum(1)
        assert tokens.tolist() == (prompts.image_grid_thw.prod(-1) // 4).tolist()
        assert len(prompts.pixel_values) == int(prompts.image_grid_thw.prod())


def test_an_image_is_processed_once_for_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = trainer(tmp_path)
    counted: list[int] = []
    images = type(processor().image_processor)
    original = images.preprocess

    def counting(self: Any, images: list[Any], *rest: Any, **more: Any) -> Any:
        counted.append(len(images))
        return original(self, images, *rest, **more)

    monkeypatch.setattr(images, "preprocess", counting)
    each.train()
    assert sum(counted) == 2


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda completions, **_: [float("nan")] * len(completions),
            r"the reward 'broken' gave no number for completion 0",
        ),
        (
            lambda completions, **_: [None] * len(completions),
            r"the reward 'broken' gave no number for completion 0",
        ),
        (lambda completions, **_: [1.0], r"'broken' returned 1 rewards, but 8 were expected"),
    ],
)
def test_a_reward_that_gives_no_number_for_each_completion_stops_the_run(
    reward: Any, message: str, tmp_path: Path
) -> None:
    each = trainer(tmp_path)
    each.reward_funcs, each.reward_func_names = [reward], ["broken"]
    each.reward_weights, each.reward_processing_classes = torch.ones(1), [None]
    with pytest.raises((InputError, ValueError), match=message):
        each.train()


def test_rewards_see_the_image_and_every_column(tmp_path: Path) -> None:
    each = trainer(tmp_path)
    seen: dict[str, Any] = {}

    def reward(
        completions: list[Any],
        image: list[Any],
        gold: list[str],
        options: list[list[str]],
        **_: Any,
    ) -> list[float]:
        seen.update(image=image, gold=gold, options=options)
        return [0.0] * len(completions)

    each.reward_funcs, each.reward_func_names = [reward], ["looks"]
    each.reward_weights, each.reward_processing_classes = torch.ones(1), [None]
    each.train()
    assert [image.size for image in seen["image"]] in (
        [(96, 144)] * 4 + [(384, 384)] * 4,
        [(384, 384)] * 4 + [(96, 144)] * 4,
    )
    assert seen["gold"] == ["A"] * 8
