"""SFT on the answers: what the loss covers, the order of prompts, and GRPO's settings."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stages.core.errors import InputError
from stages.core.params import Grpo, Sft, load_params
from stages.corpus.dataset.problems import format_solution
from stages.grpo.data.dataset import train_dataset
from stages.grpo.sft import build_sft_trainer, sft_config, sft_dataset, target
from stages.grpo.trainer import (
    LOGGED,
    build_trainer,
    deterministic,
    save_policy,
    write_log,
)
from stages.policy.determinism import deterministic_mode
from stages.policy.loading import load_policy, load_processor
from stages.prompts.styles import Style, chat, prompt_text
from tests.grpo.tiny import (
    BASE,
    REPOSITORY,
    assert_resumes_exactly,
    backward_mode,
    changed_names,
    count_processed_images,
    embedded_policy,
    layer_names,
    parameters,
    processor,
    questions,
    train_and_log,
)

PARAMS = load_params(REPOSITORY / "params.yaml")
SMALL: dict[str, Any] = {
    "num_generations": 2,
    "prompts_per_device": 2,
    "max_steps": 1,
    "save_steps": 0,
    "num_train_epochs": 100.0,
}


def settings(
    grpo: dict[str, Any] | None = None, sft: dict[str, Any] | None = None
) -> tuple[Grpo, Sft]:
    constant = {"lr_scheduler": "constant", "warmup_share": 0.0, "save_steps": 0}
    return (
        Grpo.model_validate(PARAMS.grpo.model_dump() | SMALL | (grpo or {})),
        Sft.model_validate(PARAMS.sft.model_dump() | constant | (sft or {})),
    )


def sft_trainer(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    style: Style = "no-think",
    **options: dict[str, Any],
) -> Any:
    grpo, sft = settings(**options)
    return build_sft_trainer(
        embedded_policy(),
        processor(),
        rows or questions(folder),
        grpo,
        sft,
        style,
        scratch=folder / "state",
        run_name="sft-ct",
    )


@pytest.mark.parametrize("style", ["no-think", "think", "think-after"])
def test_the_loss_covers_only_the_answer_and_the_end_token(style: Style, tmp_path: Path) -> None:
    rows = questions(tmp_path)
    rows[1]["gold"] = "C"
    trainer = sft_trainer(tmp_path, rows, style)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    tokenizer = processor().tokenizer
    for row, labels, ids, mask in zip(
        rows, batch["labels"], batch["input_ids"], batch["attention_mask"], strict=True
    ):
        target_ids = labels[labels != -100]
        assert tokenizer.decode(target_ids) == format_solution(row["gold"]) + "<|im_end|>"
        assert target_ids[-1] in embedded_policy().generation_config.eos_token_id
        # the target ends the row, behind the prompt as in evaluation
        end = int(mask.sum())
        start = end - len(target_ids)
        assert torch.equal(ids[start:end], target_ids)
        assert (labels[:start] == -100).all()
        assert (labels[end:] == -100).all()
        text = tokenizer.decode(ids[:start]).replace("<|image_pad|>", "")
        assert text == evaluation_prompt(row, style).replace("<|image_pad|>", "")


def evaluation_prompt(row: dict[str, Any], style: Style) -> str:
    text: str = processor().apply_chat_template(
        chat(prompt_text(row["problem"], style, "evaluate")),
        add_generation_prompt=True,
        tokenize=False,
    )
    return text


def test_the_prompt_has_the_tokens_of_evaluation(tmp_path: Path) -> None:
    rows = questions(tmp_path)[:1]
    trainer = sft_trainer(tmp_path, rows * 2)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    text = evaluation_prompt(rows[0], "no-think")
    expected = processor()(text=[text], images=[Image.open(rows[0]["image"])], return_tensors="pt")
    prompt = batch["input_ids"][0][batch["labels"][0] == -100]
    assert torch.equal(prompt, expected["input_ids"][0])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])


def test_images_are_opened_and_processed_batch_by_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = sft_trainer(tmp_path, grpo={"prompts_per_device": 1, "max_steps": 3})
    counts = count_processed_images(monkeypatch)
    trainer.train()
    assert sum(counts) <= 4, "three prompts, and one that the loader may have prefetched"
    assert len(counts) >= 3


@pytest.mark.parametrize(
    "grpo",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "reuse_prompt_pass": False},
        {"num_iterations": 2, "reuse_prompt_pass": False},
    ],
)
def test_prompts_are_in_the_order_of_grpo(grpo: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        row | {"problem": f"{number}: {row['problem']}"}
        for number, row in enumerate(questions(tmp_path)[:1] * 11)
    ]
    budget, sft = settings(grpo | {"prompts_per_device": 2})
    by_sft = build_sft_trainer(
        embedded_policy(),
        processor(),
        rows,
        budget,
        sft,
        "no-think",
        scratch=tmp_path / "a",
        run_name="sft-ct",
    )
    by_grpo = build_trainer(
        embedded_policy(),
        processor(),
        train_dataset(rows, "no-think"),
        budget,
        "no-think",
        scratch=tmp_path / "b",
        run_name="ct",
    )
    group = budget.num_generations
    parts = by_grpo.args.steps_per_generation
    ours = list(by_sft._get_train_sampler())
    theirs = list(by_grpo._get_train_sampler())[::group]
    # TRL repeats the prompts of a generation for each of the `parts` steps that share it
    chunk = budget.prompts_per_device * parts
    expected: list[int] = []
    for start in range(0, len(theirs), chunk * parts):
        expected += theirs[start : start + chunk]
    assert ours == expected
    # an epoch has as many steps
    assert len(by_sft.get_train_dataloader()) == len(by_grpo.get_train_dataloader())


def test_it_learns_and_logs_the_columns_of_a_training_log(tmp_path: Path) -> None:
    deterministic(1)
    trainer = sft_trainer(tmp_path, grpo={"max_steps": 12}, sft={"learning_rate": 1e-3})
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    losses = [row["loss"] for row in logged]
    assert losses[-1] < 0.2 * losses[0]
    write_log(trainer.state.log_history, tmp_path / "log.csv")
    header, first, *_ = (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines()
    values = dict(zip(header.split(","), first.split(","), strict=True))
    assert header.split(",") == ["step", *LOGGED.values()]
    assert {name for name, value in values.items() if value} == {
        "step",
        "loss",
        "entropy",
        "grad_norm",
        "learning_rate",
    }


def test_the_first_loss_is_the_mean_over_answer_tokens(tmp_path: Path) -> None:
    rows = questions(tmp_path)
    trainer = sft_trainer(tmp_path, rows)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    with torch.no_grad():
        logits = embedded_policy()(
            **{name: value for name, value in batch.items() if name != "labels"}
        ).logits
    labels = batch["labels"][:, 1:]
    by_hand = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels, ignore_index=-100
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(by_hand), abs=1e-4)


def run(folder: Path, grpo: dict[str, Any], **options: Any) -> dict[str, torch.Tensor]:
    deterministic(1)
    rows = [row | {"gold": gold} for row, gold in zip(questions(folder) * 2, "ABBA", strict=True)]
    sft = {"save_steps": 2, "learning_rate": 1e-3, "lr_scheduler": "cosine", "warmup_share": 0.3}
    weights = train_and_log(sft_trainer(folder, rows, grpo=grpo, sft=sft), folder, **options)
    assert not list((folder / "state").glob("*/rollout-*")), "SFT has no completions to save"
    return weights


@pytest.mark.parametrize(
    ("grpo", "stop_after"),
    [
        ({"prompts_per_device": 2}, 3),  # four prompts, two per step: step 3 is in the second epoch
        ({"prompts_per_device": 1, "gradient_accumulation_steps": 2}, 9),
        ({"lora": {"rank": 2, "alpha": 4, "dropout": 0.5, "target_modules": ["q_proj"]}}, 5),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    grpo: dict[str, Any], stop_after: int, tmp_path: Path
) -> None:
    assert_resumes_exactly(partial(run, grpo={"max_steps": 6} | grpo), tmp_path, stop_after)


def test_a_frozen_tower_does_not_change(tmp_path: Path) -> None:
    trainer = sft_trainer(
        tmp_path, grpo={"freeze_vision_tower": True, "max_steps": 2}, sft={"learning_rate": 1e-3}
    )
    trainer.train()
    changed = changed_names(embedded_policy().state_dict(), parameters(trainer))
    assert changed
    assert not any("visual" in name for name in changed)


def test_an_adapter_is_trained_and_merged_into_the_checkpoint(tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    trainer = sft_trainer(
        tmp_path, grpo={"lora": lora, "max_steps": 2}, sft={"learning_rate": 1e-2}
    )
    trainer.train()
    save_policy(trainer, processor(), tmp_path / "out")
    before = embedded_policy().state_dict()
    after = load_policy(tmp_path / "out", dtype="float32", attention="sdpa").state_dict()
    assert layer_names(changed_names(before, after)) == {"q_proj", "v_proj"}


def test_mixed_precision_trains(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, grpo={"bf16": True, "max_steps": 2})
    trainer.train()
    assert trainer.args.bf16
    assert all(math.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)


def test_med_r1s_published_settings_can_be_expressed(tmp_path: Path) -> None:
    published = {"learning_rate": 2e-5, "lr_scheduler": "cosine", "warmup_share": 0.1}
    grpo, sft = settings(
        {
            "max_steps": -1,
            "num_train_epochs": 1.0,
            "prompts_per_device": 4,
            "gradient_accumulation_steps": 16,
        },
        published,
    )
    config = sft_config(grpo, sft, tmp_path, "sft-ct")
    assert config.get_warmup_steps(1000) == 100
    assert config.lr_scheduler_type == "cosine"
    assert config.max_length is None, "no truncation"
    assert not config.packing


@pytest.mark.parametrize("gold", list("ABCD"))
def test_the_target_is_the_splits_own_solution(gold: str) -> None:
    assert target(gold) == f"<answer> {gold} </answer>"


def test_prompts_over_the_limit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes \d+ tokens.* grpo\.max_prompt_length = 50"):
        sft_trainer(tmp_path, grpo={"max_prompt_length": 50})


def test_too_few_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sft-ct: 2 .*3 = grpo\.prompts_per_device"):
        sft_trainer(tmp_path, grpo={"prompts_per_device": 3})


def test_an_end_token_that_does_not_end_generation_is_refused(tmp_path: Path) -> None:
    other = load_processor(BASE)
    other.tokenizer.eos_token = "<|im_start|>"
    grpo, sft = settings()
    with pytest.raises(InputError, match=r"'<\|im_start\|>' .* eos_token .*tokenizer_config\.json"):
        build_sft_trainer(
            embedded_policy(),
            other,
            questions(tmp_path),
            grpo,
            sft,
            "no-think",
            scratch=tmp_path,
            run_name="sft-ct",
        )


def test_dataset_rows_contain_the_chat_template_once(tmp_path: Path) -> None:
    row = sft_dataset(questions(tmp_path), "no-think", processor())[0]
    assert row["completion"] == "<answer> A </answer><|im_end|>"
    assert row["prompt"].endswith("<|im_start|>assistant\n")
    assert row["image"].size == (384, 384)


def test_backward_passes_are_deterministic_and_do_not_only_warn(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path)
    with deterministic_mode(enabled=True, warn_only=True):
        assert backward_mode(trainer) == 2
