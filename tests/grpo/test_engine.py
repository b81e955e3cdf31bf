"""The engine learns what TRL learns, whatever is shared, skipped, cached or split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from stages.core.errors import InputError
from stages.grpo import scoring
from stages.grpo.data.dataset import train_dataset
from stages.grpo.engine import MedGRPOTrainer
from stages.grpo.rollout import Sampled
from stages.grpo.shared_prefix import score
from stages.grpo.trainer import build_trainer, save_policy
from stages.policy.loading import load_policy
from stages.policy.prompt_batch import PromptBatch, process_prompts
from stages.policy.vision_features import VisionFeatures
from tests.grpo.tiny import (
    SIZES,
    changed_names,
    chats,
    count_processed_images,
    embedded_policy,
    grpo_settings,
    layer_names,
    parameters,
    processor,
    questions,
    random_policy,
    set_rewards,
    tiny_trainer,
)

COMPLETIONS = [[300 + row, 40 + row, 50][: 1 + row % 3] for row in range(8)]
"""Of three lengths, the same for every trainer."""
ONE_GROUP_WITHOUT_ADVANTAGE = [0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0]


def steer(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, rewards: list[float] | None = None
) -> None:
    """Make the trainer sample `COMPLETIONS`, in the order of its prompts, with these rewards."""
    completions: Iterator[list[int]] = iter(COMPLETIONS * 10)
    if trainer.engine_options.engine == "trl":
        monkeypatch.setattr(
            trainer,
            "_generate_single_turn",
            lambda ids, *_, **__: ([next(completions) for _ in ids], None),
        )
    else:
        monkeypatch.setattr(
            "stages.grpo.engine.sample_drafted",
            lambda policy, prompts, draft_pass, uniform, sampling, **_: Sampled(
                [next(completions) for _ in range(len(prompts) * uniform.shape[1])]
            ),
        )
    values = rewards or [float(index % 3) for index in range(8)]
    pool: Iterator[float] = iter(values * 10)
    set_rewards(trainer, lambda completions, **_: [next(pool) for _ in completions])


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    """The trained weights.

    Plain SGD makes the step the gradient, where Adam's first would be its sign.
    """
    trainer.optimizer = torch.optim.SGD(
        [p for p in trainer.model.parameters() if p.requires_grad], lr=trainer.args.learning_rate
    )
    trainer.args.max_grad_norm = 0.0
    trainer.train()
    return parameters(trainer)


def assert_same_step(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: PreTrainedModel
) -> None:
    before = start.state_dict()
    step = sum((one[name] - before[name]).pow(2).sum() for name in one)
    difference = sum((one[name] - other[name]).pow(2).sum() for name in one)
    assert step > 0
    # loose: the step is a small difference of large weights
    assert (difference / step) ** 0.5 <= 1e-3


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_a_step_equals_trls(
    family: str, loss_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(**settings: Any) -> dict[str, torch.Tensor]:
        settings |= {"loss_type": loss_type, "learning_rate": 0.1}
        trainer = tiny_trainer(tmp_path, random_policy(family), **settings)
        steer(trainer, monkeypatch)
        return trained(trainer)

    stock = train(engine="trl", reuse_prompt_pass=False)
    for reuse in (True, False):
        assert_same_step(train(reuse_prompt_pass=reuse), stock, random_policy(family))


@pytest.fixture(scope="module")
def trls_weights(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[dict[str, Any], list[float] | None], dict[str, torch.Tensor]]:
    """Weights that TRL's engine gives with some settings and rewards, trained once for each."""
    found: dict[str, dict[str, torch.Tensor]] = {}

    def train(settings: dict[str, Any], rewards: list[float] | None) -> dict[str, torch.Tensor]:
        key = repr((sorted(settings.items()), rewards))
        if key not in found:
            trainer = tiny_trainer(
                tmp_path_factory.mktemp("trl"), engine="trl", reuse_prompt_pass=False, **settings
            )
            with pytest.MonkeyPatch.context() as patch:
                steer(trainer, patch, rewards)
                found[key] = trained(trainer)
        return found[key]

    return train


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
def test_splits_and_shortcuts_give_trls_weights(
    ours: dict[str, Any],
    stock: dict[str, Any],
    trls_weights: Callable[[dict[str, Any], list[float] | None], dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rewards = ONE_GROUP_WITHOUT_ADVANTAGE if ours.get("skip_zero_advantage") else None
    settings = {"learning_rate": 0.1}
    one = tiny_trainer(tmp_path, **settings | ours)
    steer(one, monkeypatch, rewards)
    expected = trls_weights(settings | stock, rewards)
    assert_same_step(trained(one), expected, embedded_policy())


def test_a_group_without_advantage_is_not_scored_by_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []

    def counting(policy: Any, prompts: PromptBatch, *rest: Any) -> Any:
        scored.append(len(prompts))
        return score(policy, prompts, *rest)

    monkeypatch.setattr(scoring, "score", counting)
    settings = {"beta": 0.0, "skip_zero_advantage": True, "reuse_prompt_pass": False}
    trainer = tiny_trainer(tmp_path, **settings)
    steer(trainer, monkeypatch, ONE_GROUP_WITHOUT_ADVANTAGE)
    trained(trainer)
    assert scored == [1]
    # without any advantage one group is scored all the same, so that no other process hangs
    scored.clear()
    trainer = tiny_trainer(tmp_path, **settings)
    steer(trainer, monkeypatch, [1.0] * 8)
    weights = trained(trainer)
    assert scored == [1]
    assert not changed_names(embedded_policy().state_dict(), weights)


def test_a_frozen_tower_does_not_change_and_encodes_an_image_once(tmp_path: Path) -> None:
    trainer = tiny_trainer(
        tmp_path, freeze_vision_tower=True, vision_cache_mb=10, max_steps=3, learning_rate=1e-3
    )
    calls: list[int] = []
    for model in (trainer.model, trainer.ref_model):
        model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 2, "two images, three steps, policy and reference"
    changed = changed_names(embedded_policy().state_dict(), parameters(trainer))
    assert changed
    assert not any("visual" in name for name in changed)


def test_features_over_the_cache_limit_are_recomputed(tmp_path: Path) -> None:
    policy = embedded_policy()
    prompts = process_prompts(processor(), policy, chats(questions(tmp_path)), torch.device("cpu"))
    small = VisionFeatures(1)
    large = VisionFeatures(10**6)
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
            features.inputs_for(policy, prompts)(ids)["inputs_embeds"], expected, rtol=0, atol=1e-5
        )


def test_features_are_known_by_the_path_of_their_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = embedded_policy()
    prompts = process_prompts(processor(), policy, chats(questions(tmp_path)), torch.device("cpu"))
    named = dataclasses.replace(prompts, image_paths=("a.png", "b.png"))
    features = VisionFeatures(10**6)
    with monkeypatch.context() as patch:
        patch.delattr("stages.policy.vision_features.hashlib")
        features.inputs_for(policy, named)
        other = dataclasses.replace(named, pixel_values=torch.zeros_like(named.pixel_values))
        kept = features.inputs_for(policy, other)(named.ids)["inputs_embeds"]
    # without paths the pixels say which image it is
    plain = features.inputs_for(policy, prompts)(prompts.ids)["inputs_embeds"]
    assert torch.equal(kept, plain)
    assert len(features._features) == 4


def test_cached_features_are_refused_for_a_model_with_deepstack(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"grpo\.vision_cache_mb"):
        tiny_trainer(tmp_path, random_policy("qwen3_vl"), vision_cache_mb=1).train()


def test_an_adapter_on_a_missing_layer_is_refused_with_the_existing_ones(tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "query"]}
    with pytest.raises(InputError, match=r"'query'.*k_proj, .*q_proj"):
        tiny_trainer(tmp_path, lora=lora)


def test_an_adapter_is_trained_and_merged_into_the_checkpoint(tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    trainer = tiny_trainer(tmp_path, lora=lora, max_steps=3, learning_rate=1e-2)
    assert trainer.ref_model is None
    trainable = [name for name, each in trainer.model.named_parameters() if each.requires_grad]
    assert trainable
    assert all("language_model" in name and "lora" in name for name in trainable)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-6), (
        "a new adapter changes nothing"
    )
    save_policy(trainer, processor(), tmp_path / "out")
    before = embedded_policy().state_dict()
    after = load_policy(tmp_path / "out", dtype="float32", attention="sdpa").state_dict()
    assert before.keys() == after.keys()
    assert layer_names(changed_names(before, after)) == {"q_proj", "v_proj"}


def test_groups_stay_together_and_images_with_their_prompts(tmp_path: Path) -> None:
    trainer = tiny_trainer(
        tmp_path, prompts_per_device=1, gradient_accumulation_steps=2, reuse_prompt_pass=False
    )
    assert isinstance(trainer, MedGRPOTrainer)
    trainer.model.train()
    rows = [trainer.train_dataset[row // 4] for row in range(8)]
    for micro_step in range(2):
        trainer._step = micro_step
        part = trainer._prepare_inputs(rows)
        assert (part["prompt_ids"] == part["prompt_ids"][0]).all()
        assert part["advantages"].sum().abs() < 1e-4
        prompts = part["rollout"].prompts
        tokens = (prompts.ids == processor().image_token_id).sum(1)
        assert tokens.tolist() == (prompts.image_grid_thw.prod(-1) // 4).tolist()
        assert len(prompts.pixel_values) == int(prompts.image_grid_thw.prod())


def test_reuse_and_accumulation_see_the_same_batches(tmp_path: Path) -> None:
    """10 questions, 2 in a pass, 2 passes in a step: an epoch has 2 whole steps either way."""
    rows = [
        row | {"problem": f"{number}: {row['problem']}"}
        for number, row in enumerate(questions(tmp_path) * 5)
    ]
    orders, steps, weights = [], [], []
    for reuse in (True, False):
        grpo = grpo_settings(
            num_generations=2,
            prompts_per_device=2,
            gradient_accumulation_steps=2,
            reuse_prompt_pass=reuse,
            max_steps=-1,
            num_train_epochs=1.0,
            save_steps=0,
        )
        trainer = build_trainer(
            embedded_policy(),
            processor(),
            train_dataset(rows, "no-think"),
            grpo,
            "no-think",
            scratch=tmp_path / str(reuse),
            run_name="x",
        )
        order = list(trainer._get_train_sampler())
        orders.append(list(dict.fromkeys(order)))
        weights.append(trained(trainer))
        steps.append(trainer.state.global_step)
    assert orders[0] == orders[1]
    assert len(orders[0]) == 8
    assert steps == [2, 2]
    assert_same_step(weights[0], weights[1], embedded_policy())


def test_an_image_is_processed_once_per_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(tmp_path)
    counts = count_processed_images(monkeypatch)
    trainer.train()
    assert sum(counts) == 2


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda completions, **_: [float("nan")] * len(completions), "'broken'.* completion 0"),
        (lambda completions, **_: [None] * len(completions), "'broken'.* completion 0"),
        (lambda completions, **_: [1.0], "'broken'.* 1 .* 8 "),
    ],
)
def test_a_reward_without_a_number_per_completion_stops_the_run(
    reward: Any, message: str, tmp_path: Path
) -> None:
    trainer = tiny_trainer(tmp_path)
    set_rewards(trainer, reward, "broken")
    with pytest.raises((InputError, ValueError), match=message):
        trainer.train()


def test_rewards_get_the_image_and_every_column(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    columns: dict[str, Any] = {}

    def reward(
        completions: list[Any],
        image: list[Any],
        gold: list[str],
        options: list[list[str]],
        **_: Any,
    ) -> list[float]:
        columns.update(image=image, gold=gold, options=options)
        return [0.0] * len(completions)

    set_rewards(trainer, reward)
    trainer.train()
    sizes = [image.size for image in columns["image"]]
    assert sizes in ([SIZES[0]] * 4 + [SIZES[1]] * 4, [SIZES[1]] * 4 + [SIZES[0]] * 4)
    assert columns["gold"] == ["A"] * 8


def weights_after(folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    small = {"max_steps": 3, "learning_rate": 1e-4, "prompts_per_device": 1, "logging_steps": 1}
    trainer = tiny_trainer(folder, **small | settings)
    trainer.train()
    return parameters(trainer)


@pytest.mark.slow
def test_loader_workers_process_the_prompts_and_change_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"gradient_accumulation_steps": 2, "max_steps": 2}
    here = weights_after(tmp_path, **settings)
    counts = count_processed_images(monkeypatch)
    assert not changed_names(here, weights_after(tmp_path, loader_workers=2, **settings))
    # one image before the start, for the length of the prompts; the others in the workers
    assert counts == [1]


@pytest.mark.slow
def test_compiled_layers_learn_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = weights_after(tmp_path)
    compiled: list[str] = []

    def trace(module: torch.nn.Module, *, isolate_recompiles: bool) -> None:
        """As torch's, without the compiler of generated code, which takes minutes."""
        compiled.append(type(module).__name__)
        original(module, backend="eager", isolate_recompiles=isolate_recompiles)

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    found = weights_after(tmp_path, compile=True)
    layers = embedded_policy().config
    # policy and reference; the last decoder layer stays as it is
    assert compiled.count("Qwen2VLVisionBlock") == 2 * layers.vision_config.depth
    assert compiled.count("Qwen2VLDecoderLayer") == 2 * (layers.text_config.num_hidden_layers - 1)
    assert usual.keys() == found.keys()
    for name, weight in usual.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)
