"""Training on questions about several images, with and without context, by both engines and SFT."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel

from stages.core.errors import InputError
from stages.core.params import Sft, Towers, load_params
from stages.grpo.batch import ExampleBatch, PromptCollator
from stages.grpo.data.dataset import image_counts, train_dataset
from stages.grpo.sft import build_sft_trainer
from stages.grpo.trainer import build_trainer, deterministic
from stages.policy.loading import load_policy
from stages.prompts.styles import Purpose, chat, prompt_text
from tests.grpo.test_engine import assert_same_step, steer, trained
from tests.grpo.tiny import (
    FAMILIES,
    REPOSITORY,
    assert_resumes_exactly,
    changed_names,
    embedded_policy,
    grpo_settings,
    parameters,
    processor,
    questions,
    questions_about_several,
    random_policy,
    set_rewards,
    tiny_trainer,
    train_and_log,
)

CONTEXTS = ("63-year-old man with a cough for 3 weeks.", None)
MIXES: list[tuple[tuple[int, int], tuple[str | None, ...]]] = [
    ((1, 2), ()),
    ((8, 1), CONTEXTS),
    ((2, 2), (None, "Follow-up.")),
    ((1, 1), CONTEXTS),
]
"""Images and contexts of the two prompts of a step."""


def words_of(row: dict[str, Any], purpose: Purpose) -> str:
    return prompt_text(row["problem"], "no-think", purpose, row["context"])


def encoded(row: dict[str, Any], purpose: Purpose) -> Any:
    """The prompt as evaluation makes it: the chat as text, then the processor."""
    text = processor().apply_chat_template(
        chat(words_of(row, purpose), images=len(row["images"])),
        add_generation_prompt=True,
        tokenize=False,
    )
    images = [Image.open(path) for path in row["images"]]
    return processor()(text=[text], images=images, return_tensors="pt")


def as_of_one_image(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same questions in the form of stage train."""
    return [
        {name: value for name, value in row.items() if name != "image"}
        | {"images": (row["image"],), "context": None}
        for row in rows
    ]


def test_questions_with_an_image_and_no_context_have_the_columns_of_before(tmp_path: Path) -> None:
    rows = as_of_one_image(questions(tmp_path))
    dataset = train_dataset(rows, "no-think")
    assert dataset.with_format(None).to_dict() == {
        "prompt": [
            [{"role": "user", "content": prompt_text(row["problem"], "no-think", "train")}]
            for row in rows
        ],
        "image": [row["images"][0] for row in rows],
        "gold": ["A", "A"],
        "options": [["CT", "MRI"]] * 2,
    }
    example = dataset[0]
    assert set(example) == {"prompt", "image", "image_path", "gold", "options"}
    assert example["prompt"][0]["content"].startswith("Scan? A)CT, B)MRI Your task: 1.")
    assert example["image_path"] == rows[0]["images"][0]
    assert image_counts(dataset) == [1, 1]


@pytest.mark.parametrize(("counts", "contexts"), MIXES)
def test_both_engines_and_sft_see_the_prompts_of_evaluation(
    counts: tuple[int, int], contexts: tuple[str | None, ...], tmp_path: Path
) -> None:
    rows = questions_about_several(tmp_path, counts, contexts)
    dataset = train_dataset(rows, "no-think")
    assert image_counts(dataset) == list(counts)
    policy = embedded_policy()
    expected = [encoded(row, "train") for row in rows]
    batch = PromptCollator(processor(), policy, 1)([dataset[0], dataset[1]])
    assert isinstance(batch, ExampleBatch)
    assert batch.prompts.image_counts == counts
    assert batch.prompts.image_paths == (*rows[0]["images"], *rows[1]["images"])
    pixels = torch.cat([each["pixel_values"] for each in expected])
    assert torch.equal(batch.prompts.pixel_values, pixels)
    for ids, mask, each in zip(batch.prompts.ids, batch.prompts.mask, expected, strict=True):
        assert torch.equal(ids[mask.bool()], each["input_ids"][0])

    stock = tiny_trainer(
        tmp_path, policy, rows=rows, engine="trl", reuse_prompt_pass=False, num_generations=2
    )
    seen: list[list[int]] = []

    def sample(ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        seen.extend(ids)
        return [[50]] * 4, None

    stock._generate_single_turn = sample
    set_rewards(stock, lambda completions, **_: [float(row % 2) for row in range(4)])
    stock.model.train()
    found = stock._prepare_inputs([dataset[0], dataset[0], dataset[1], dataset[1]])
    assert [list(ids) for ids in seen[::2]] == [each["input_ids"][0].tolist() for each in expected]
    assert sorted(found["num_images"]) == sorted(counts * 2)

    sft = sft_trainer(tmp_path, rows)
    collated = sft.data_collator([sft.train_dataset[index] for index in range(2)])
    evaluated = [encoded(row, "evaluate") for row in rows]
    assert torch.equal(
        collated["pixel_values"], torch.cat([each["pixel_values"] for each in evaluated])
    )
    prompt = collated["attention_mask"].bool() & (collated["labels"] == -100)
    for ids, mask, each in zip(collated["input_ids"], prompt, evaluated, strict=True):
        assert torch.equal(ids[mask], each["input_ids"][0])


def test_one_image_among_questions_with_several_is_processed_as_alone(tmp_path: Path) -> None:
    rows = questions_about_several(tmp_path, (1, 3))
    collator = PromptCollator(processor(), embedded_policy(), 1)
    mixed = collator([train_dataset(rows, "no-think")[0]]).prompts
    alone = collator([train_dataset(rows[:1], "no-think")[0]]).prompts
    assert mixed.image_paths == alone.image_paths
    for name in ("ids", "mask", "positions", "pixel_values", "image_grid_thw"):
        assert torch.equal(getattr(mixed, name), getattr(alone, name)), name


def weights_after_two_steps(
    folder: Path, policy: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> dict[str, torch.Tensor]:
    trainer = tiny_trainer(folder, policy, max_steps=2, learning_rate=0.1, **settings)
    steer(trainer, monkeypatch)
    return trained(trainer)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("counts", "contexts"), MIXES[:2])
def test_two_steps_equal_trls(
    family: str,
    counts: tuple[int, int],
    contexts: tuple[str | None, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = questions_about_several(tmp_path, counts, contexts)
    train = partial(weights_after_two_steps, tmp_path, monkeypatch=monkeypatch, rows=rows)
    stock = train(random_policy(family), engine="trl", reuse_prompt_pass=False)
    for reuse in (True, False):
        ours = train(random_policy(family), reuse_prompt_pass=reuse)
        assert_same_step(ours, stock, random_policy(family))


def test_splits_and_shortcuts_give_trls_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = questions_about_several(tmp_path, (8, 1), CONTEXTS)
    train = partial(weights_after_two_steps, tmp_path, monkeypatch=monkeypatch, rows=rows)

    def policy() -> PreTrainedModel:
        return random_policy("qwen2_vl")

    stock = train(policy(), engine="trl", reuse_prompt_pass=False)
    for settings in (
        {"prompts_per_device": 1, "gradient_accumulation_steps": 2},
        {
            "prompts_per_device": 1,
            "gradient_accumulation_steps": 2,
            "reuse_prompt_pass": False,
            "fused_head": True,
        },
        {"vision_cache_mb": 10},
        {"reference_steps": 2},
        {"gradient_checkpointing": True, "reuse_prompt_pass": False},
        {"loader_workers": 1},
    ):
        assert_same_step(train(policy(), **settings), stock, policy())


def test_images_of_one_size_pass_the_tower_together_without_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = questions_about_several(tmp_path, (8, 2))
    random_policy("qwen2_5_vl").save_pretrained(tmp_path / "base")
    steps = []
    for vision in ("sdpa_batched", "eager"):
        policy = load_policy(
            tmp_path / "base", dtype="float32", attention=Towers(language="sdpa", vision=vision)
        )
        grpo = grpo_settings(
            num_generations=4, prompts_per_device=2, max_steps=1, save_steps=0, learning_rate=0.1
        )
        trainer = build_trainer(
            policy,
            processor(),
            train_dataset(rows, "no-think"),
            grpo,
            "no-think",
            scratch=tmp_path / vision,
            run_name="x",
        )
        steer(trainer, monkeypatch)
        steps.append(trained(trainer))
    assert_same_step(steps[0], steps[1], random_policy("qwen2_5_vl"))


def test_a_frozen_tower_encodes_each_of_several_images_once(tmp_path: Path) -> None:
    rows = questions_about_several(tmp_path, (3, 1))
    # a picture that both questions show
    rows[1]["images"] = (rows[0]["images"][1],)
    settings = {"freeze_vision_tower": True, "max_steps": 3, "learning_rate": 1e-3}
    trainer = tiny_trainer(tmp_path, rows=rows, vision_cache_mb=10, **settings)
    calls: list[int] = []
    for model in (trainer.model, trainer.ref_model):
        model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    assert len(calls) == 3, "three pictures, three steps, policy and reference"
    plain = tiny_trainer(tmp_path, rows=rows, **settings)
    plain.train()
    for one, other in zip(trainer.state.log_history, plain.state.log_history, strict=True):
        assert one.get("loss") == pytest.approx(other.get("loss"), abs=1e-5)


def resumed_run(folder: Path, settings: dict[str, Any], **options: Any) -> dict[str, torch.Tensor]:
    deterministic(1)
    small = {
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "prompts_per_device": 1,
        "num_train_epochs": 9.0,
    }
    rows = questions_about_several(folder, (3, 1), CONTEXTS)
    trainer = tiny_trainer(folder, rows=rows, **small | settings)
    return train_and_log(trainer, folder, **options)


@pytest.mark.parametrize(
    ("settings", "stop_after"),
    [
        ({"prompts_per_device": 2, "vision_cache_mb": 10}, 3),
        ({"reference_steps": 2, "save_steps": 1}, 3),
        # a checkpoint between two updates on the same completions, whose prompts are saved
        ({"num_iterations": 2, "reuse_prompt_pass": False, "save_steps": 3}, 3),
        (
            {
                "num_iterations": 2,
                "reuse_prompt_pass": False,
                "save_steps": 3,
                "engine": "trl",
                "prompts_per_device": 2,
            },
            3,
        ),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    settings: dict[str, Any], stop_after: int, tmp_path: Path
) -> None:
    assert_resumes_exactly(partial(resumed_run, settings=settings), tmp_path, stop_after)


def test_rewards_get_all_images(tmp_path: Path) -> None:
    rows = questions_about_several(tmp_path, (1, 3))
    for engine in ("shared-prefix", "trl"):
        trainer = tiny_trainer(
            tmp_path, rows=rows, engine=engine, reuse_prompt_pass=False, max_completion_length=16
        )
        found: list[int] = []

        def reward(
            completions: list[Any],
            images: list[list[Image.Image]],
            found: list[int] = found,
            **_: Any,
        ) -> list[float]:
            found += [len(each) for each in images]
            return [0.0] * len(completions)

        set_rewards(trainer, reward)
        trainer.train()
        assert found in ([1] * 4 + [3] * 4, [3] * 4 + [1] * 4)


def sft_trainer(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    small = {
        "num_generations": 2,
        "prompts_per_device": 2,
        "max_steps": 2,
        "num_train_epochs": 9.0,
        "reuse_prompt_pass": False,
    }
    sft = load_params(REPOSITORY / "params.yaml").sft.model_dump()
    sft |= {"lr_scheduler": "constant", "warmup_share": 0.0, "save_steps": 1, "learning_rate": 1e-3}
    return build_sft_trainer(
        settings.pop("policy", None) or embedded_policy(),
        processor(),
        rows,
        grpo_settings(**small | settings),
        Sft.model_validate(sft),
        "no-think",
        scratch=folder / "state",
        run_name="sft-ct",
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_sft_is_that_of_plain_transformers(family: str, tmp_path: Path) -> None:
    rows = questions_about_several(tmp_path, (2, 1), CONTEXTS)
    policy = random_policy(family)
    losses = []
    for row in rows:
        fields = encoded(row, "evaluate")
        target = processor().tokenizer("<answer> A </answer><|im_end|>", return_tensors="pt")
        ids = torch.cat([fields["input_ids"], target["input_ids"]], dim=1)
        types = fields["mm_token_type_ids"]
        types = torch.cat([types, torch.zeros_like(target["input_ids"])], dim=1)
        with torch.no_grad():
            logits = policy(
                input_ids=ids,
                mm_token_type_ids=types,
                pixel_values=fields["pixel_values"],
                image_grid_thw=fields["image_grid_thw"],
            ).logits
        count = target["input_ids"].shape[1]
        losses.append(
            torch.nn.functional.cross_entropy(logits[0, -count - 1 : -1], target["input_ids"][0])
        )
    trainer = sft_trainer(tmp_path, rows, max_steps=1, policy=policy)
    trainer.train()
    expected = float(torch.stack(losses).mean())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_sft_resumes_exactly(tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
        deterministic(1)
        rows = questions_about_several(folder, (8, 1, 2, 1), (*CONTEXTS, *CONTEXTS))
        trainer = sft_trainer(folder, rows, max_steps=3)
        weights = train_and_log(trainer, folder, **options)
        assert changed_names(embedded_policy().state_dict(), weights)
        return weights

    assert_resumes_exactly(run, tmp_path, 2)


def build(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    grpo = grpo_settings(prompts_per_device=1, save_steps=0, **settings)
    return build_trainer(
        embedded_policy(),
        processor(),
        train_dataset(rows, "no-think"),
        grpo,
        "no-think",
        scratch=folder / "state",
        run_name="ct",
    )


PURPOSES: list[tuple[Purpose, Any]] = [("train", build), ("evaluate", sft_trainer)]


def test_a_prompt_over_the_limit_is_refused_with_its_tokens_and_images(tmp_path: Path) -> None:
    rows = questions_about_several(tmp_path, (1, 8), (None, "Asthma."))
    # of one size, as the resize stage makes them
    for path in rows[1]["images"]:
        Image.open(rows[0]["images"][0]).save(path)
    for purpose, make in PURPOSES:
        tokens = encoded(rows[1], purpose)["input_ids"].shape[1]
        message = (
            rf"the prompt of 'Context: Asthma. How severe .*' with 8 images takes {tokens} tokens,"
            rf" more than grpo.max_prompt_length = {tokens - 1}: raise it, or lower volume.frames,"
            r" volume.max_images or base.max_pixels"
        )
        with pytest.raises(InputError, match=message):
            make(tmp_path, rows, max_prompt_length=tokens - 1)
        make(tmp_path, rows, max_prompt_length=tokens)
    tokens = encoded(rows[1], "train")["input_ids"].shape[1]
    completion = embedded_policy().config.text_config.max_position_embeddings - tokens + 1
    with pytest.raises(InputError, match=r"8 images.* context of .*max_completion_length, volume"):
        build(tmp_path, rows, max_completion_length=completion)


@pytest.mark.parametrize("several", [True, False])
def test_an_image_token_in_the_context_is_refused(several: bool, tmp_path: Path) -> None:
    rows = questions_about_several(tmp_path, (1, 2 if several else 1), (None, "A <|image_pad|>."))
    with pytest.raises(InputError, match=r"'Context: A .* contains <\|image_pad\|>, .* context"):
        build(tmp_path, rows)
    with pytest.raises(InputError, match=r"'Context: A .* contains <\|image_pad\|>, .* context"):
        sft_trainer(tmp_path, rows)


def test_an_image_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    rows = questions_about_several(tmp_path, (2, 2))
    Path(rows[1]["images"][1]).write_bytes(b"no image")
    trainer = tiny_trainer(tmp_path, rows=rows)
    with pytest.raises(InputError, match=r"1-1\.png"):
        trainer.train()
    assert not changed_names(embedded_policy().state_dict(), parameters(trainer))
