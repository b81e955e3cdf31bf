"""SFT on the answers: loss mask, prompt order, and otherwise GRPO's trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.core.errors import InputError
from stages.core.params import Grpo, Sft, load_params
from stages.corpus.dataset.problems import format_solution
from stages.grpo.resume import newest_checkpoint
from stages.grpo.sft import build_sft_trainer, sft_config, sft_dataset, target
from stages.grpo.trainer import (
    LOGGED,
    build_trainer,
    deterministic,
    save_policy,
    train_dataset,
    write_log,
)
from stages.policy.loading import load_processor
from stages.prompts.styles import Style, chat, prompt_text
from tests.grpo.tiny import BASE, REPOSITORY, embedded_policy, processor, questions

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


def tiny_trainer(
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
def test_the_loss_covers_the_answer_and_the_end_token_alone(style: Style, tmp_path: Path) -> None:
    rows = questions(tmp_path)
    rows[1]["gold"] = "C"
    trainer = tiny_trainer(tmp_path, rows, style)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    tokenizer = processor().tokenizer
    for row, labels, ids, real in zip(
        rows, batch["labels"], batch["input_ids"], batch["attention_mask"], strict=True
    ):
        learnt = labels[labels != -100]
        assert tokenizer.decode(learnt) == format_solution(row["gold"]) + "<|im_end|>"
        assert learnt[-1] in embedded_policy().generation_config.eos_token_id
        # it stands at the end of what is real, and before it the prompt as evaluation words it
        length = int(real.sum())
        assert torch.equal(ids[length - len(learnt) : length], learnt)
        assert (labels[: length - len(learnt)] == -100).all()
        assert (labels[length:] == -100).all()
        text = tokenizer.decode(ids[: length - len(learnt)]).replace("<|image_pad|>", "")
        asked = processor().apply_chat_template(
            chat(prompt_text(row["problem"], style, "evaluate")),
            add_generation_prompt=True,
            tokenize=False,
        )
        assert text == asked.replace("<|image_pad|>", "")


def test_the_prompt_has_the_tokens_that_evaluation_gives_it(tmp_path: Path) -> None:
    from PIL import Image

    rows = questions(tmp_path)[:1]
    trainer = tiny_trainer(tmp_path, rows * 2)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    asked = processor().apply_chat_template(
        chat(prompt_text(rows[0]["problem"], "no-think", "evaluate")),
        add_generation_prompt=True,
        tokenize=False,
    )
    expected = processor()(text=[asked], images=[Image.open(rows[0]["image"])], return_tensors="pt")
    prompt = batch["input_ids"][0][batch["labels"][0] == -100]
    assert torch.equal(prompt, expected["input_ids"][0])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])


def test_images_are_opened_and_processed_by_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    images = type(processor().image_processor)
    original = images.preprocess

    def counting(self: Any, images: list[Any], *rest: Any, **options: Any) -> Any:
        counted.append(len(images))
        return original(self, images, *rest, **options)

    trainer = tiny_trainer(tmp_path, grpo={"prompts_per_device": 1, "max_steps": 3})
    monkeypatch.setattr(images, "preprocess", counting)
    trainer.train()
    assert sum(counted) <= 4, "three prompts, and one that the loader may have ready"
    assert len(counted) >= 3


@pytest.mark.parametrize(
    "grpo",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "reuse_prompt_pass": False},
        {"num_iterations": 2, "reuse_prompt_pass": False},
    ],
)
def test_prompts_come_in_the_order_of_grpo(grpo: dict[str, Any], tmp_path: Path) -> None:
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
    group, parts = budget.num_generations, by_grpo.args.steps_per_generation
    ours = list(by_sft._get_train_sampler())
    # TRL draws what it generates for at once again for each of the steps that share it
    theirs = list(by_grpo._get_train_sampler())[::group]
    chunk = budget.prompts_per_device * parts
    generations = [theirs[start : start + chunk] for start in range(0, len(theirs), chunk * parts)]
    assert ours == [prompt for each in generations for prompt in each]
    # an epoch has as many steps
    assert len(by_sft.get_train_dataloader()) == len(by_grpo.get_train_dataloader())


def test_it_learns_and_writes_the_columns_of_a_training_log(tmp_path: Path) -> None:
    deterministic(1)
    trainer = tiny_trainer(tmp_path, grpo={"max_steps": 12}, sft={"learning_rate": 1e-3})
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


def test_the_first_loss_is_the_mean_over_the_answers_tokens(tmp_path: Path) -> None:
    rows = questions(tmp_path)
    trainer = tiny_trainer(tmp_path, rows)
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


class Stopped(Exception):
    pass


def run(
    folder: Path, grpo: dict[str, Any], stop_after: int | None = None, resume: bool = False
) -> dict[str, torch.Tensor]:
    deterministic(1)
    rows = [row | {"gold": gold} for row, gold in zip(questions(folder) * 2, "ABBA", strict=True)]
    trainer = tiny_trainer(
        folder,
        rows,
        grpo=grpo,
        sft={"save_steps": 2, "learning_rate": 1e-3, "lr_scheduler": "cosine", "warmup_share": 0.3},
    )
    original, count = trainer.training_step, [0]

    def step(*arguments: Any, **options: Any) -> Any:
        if count[0] == stop_after:
            raise Stopped
        count[0] += 1
        return original(*arguments, **options)

    trainer.training_step = step
    checkpoint = newest_checkpoint(folder / "state") if resume else None
    assert bool(checkpoint) == resume
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    write_log(trainer.state.log_history, folder / "log.csv")
    return {
        name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()
    }


@pytest.mark.parametrize(
    ("grpo", "stop_after"),
    [
        ({"prompts_per_device": 2}, 3),  # four prompts, two a step: step 3 lies in the second epoch
        ({"prompts_per_device": 1, "gradient_accumulation_steps": 2}, 9),
        ({"lora": {"rank": 2, "alpha": 4, "dropout": 0.5, "target_modules": ["q_proj"]}}, 5),
    ],
)
def test_a_stopped_run_ends_as_an_undisturbed_one_bit_for_bit(
    grpo: dict[str, Any], stop_after: int, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    grpo = {"max_steps": 6} | grpo
    undisturbed = run(whole, grpo)
    with pytest.raises(Stopped):
        run(parts, grpo, stop_after=stop_after)
    assert not list((parts / "state").glob("*/rollout-*")), "there are no completions to keep"
    resumed = run(parts, grpo, resume=True)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert (whole / "log.csv").read_bytes() == (parts / "log.csv").read_bytes()


def test_a_frozen_tower_does_not_move(tmp_path: Path) -> None:
    trainer = tiny_trainer(
        tmp_path, grpo={"freeze_vision_tower": True, "max_steps": 2}, sft={"learning_rate": 1e-3}
    )
    trainer.train()
    before = embedded_policy().state_dict()
    moved = {
        name
        for name, parameter in trainer.model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert moved
    assert not any("visual" in name for name in moved)


def test_an_adapter_learns_and_is_merged_into_the_checkpoint(tmp_path: Path) -> None:
    from stages.policy.loading import load_policy

    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    trainer = tiny_trainer(
        tmp_path, grpo={"lora": lora, "max_steps": 2}, sft={"learning_rate": 1e-2}
    )
    trainer.train()
    save_policy(trainer, processor(), tmp_path / "out")
    before, after = (
        embedded_policy().state_dict(),
        load_policy(tmp_path / "out", dtype="float32", attention="sdpa").state_dict(),
    )
    changed = {
        name.rpartition(".")[0].rpartition(".")[2]
        for name in before
        if not torch.equal(before[name], after[name])
    }
    assert changed == {"q_proj", "v_proj"}


def test_mixed_precision_trains(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, grpo={"bf16": True, "max_steps": 2})
    trainer.train()
    assert trainer.args.bf16
    assert all(math.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)


def test_med_r1s_published_settings_can_be_said(tmp_path: Path) -> None:
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
    assert config.max_length is None, "nothing is cut"
    assert not config.packing


@pytest.mark.parametrize("gold", list("ABCD"))
def test_the_target_is_the_splits_own_solution(gold: str) -> None:
    assert target(gold) == f"<answer> {gold} </answer>"


def test_prompts_over_the_limit_and_too_few_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"takes \d+ tokens, more than grpo.max_prompt_length = 50"
    ):
        tiny_trainer(tmp_path, grpo={"max_prompt_length": 50})
    with pytest.raises(
        InputError, match="sft-ct: 2 training questions are fewer than one step takes"
    ):
        tiny_trainer(tmp_path, grpo={"prompts_per_device": 3})


def test_a_target_that_no_generation_would_end_at_is_refused(tmp_path: Path) -> None:
    other = load_processor(BASE)
    other.tokenizer.eos_token = "<|im_start|>"
    grpo, sft = settings()
    with pytest.raises(
        InputError,
        match=r"targets end in '<\|im_start\|>' .* set eos_token in its tokenizer_config.json",
    ):
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


def test_the_dataset_names_no_chat_template_words_twice(tmp_path: Path) -> None:
    row = sft_dataset(questions(tmp_path), "no-think", processor())[0]
    assert row["completion"] == "<answer> A </answer><|im_end|>"
    assert row["prompt"].endswith("<|im_start|>assistant\n")
    assert row["image"].size == (384, 384)
