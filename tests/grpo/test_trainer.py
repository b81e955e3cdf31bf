"""Our settings in TRL's words, and what sampling must never produce."""

from pathlib import Path

import pytest
import torch

from stages.core.errors import InputError
from stages.core.params import Grpo, load_params
from stages.grpo.trainer import build_trainer, grpo_config, train_dataset
from stages.policy.loading import check_policy_files, load_policy, load_processor, vision_token_ids
from stages.policy.prompt_batch import process_prompts
from tests.grpo.tiny import chats, processor, questions, tiny_trainer

REPOSITORY = Path(__file__).parents[2]
BASE = REPOSITORY / "infra" / "base"


@pytest.fixture
def grpo() -> Grpo:
    return load_params(REPOSITORY / "params.yaml").grpo


def test_prompts_a_device_become_completions_a_device(grpo: Grpo, tmp_path: Path) -> None:
    config = grpo_config(
        grpo.model_copy(update={"prompts_per_device": 3, "num_generations": 4}), tmp_path, "ct"
    )
    assert config.per_device_train_batch_size == 12
    assert config.num_generations == 4


def test_med_r1s_published_settings_can_be_said(grpo: Grpo, tmp_path: Path) -> None:
    published = {
        "num_generations": 4,
        "prompts_per_device": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1.0,
        "max_steps": -1,
        "learning_rate": 1e-6,
        "beta": 0.04,
        "max_completion_length": 256,
        "bf16": False,
        "reuse_prompt_pass": False,
    }
    config = grpo_config(Grpo.model_validate(grpo.model_dump() | published), tmp_path, "ct")
    assert config.loss_type == "grpo"
    assert config.scale_rewards == "group"
    assert config.beta == 0.04
    assert config.reward_weights == [1.0, 1.0]
    assert config.generation_batch_size == 8


def test_placeholders_of_images_are_never_sampled(grpo: Grpo, tmp_path: Path) -> None:
    policy, processor = load_policy(BASE, dtype="float32", attention="sdpa"), load_processor(BASE)
    ids = vision_token_ids(processor)
    names = processor.tokenizer.convert_ids_to_tokens(ids)
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"} <= set(names)
    assert policy.config.image_token_id in ids
    image = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (384, 384)).save(image)
    rows = [
        {"image": str(image), "problem": "Scan? A)CT, B)MRI", "gold": "A", "options": ["CT", "MRI"]}
    ] * 8
    trainer = build_trainer(
        policy,
        processor,
        train_dataset(rows, "no-think"),
        grpo,
        "no-think",
        scratch=tmp_path,
        run_name="ct",
    )
    assert set(trainer.generation_config.suppress_tokens) == set(ids)


def test_the_policy_opens_in_the_wanted_dtype() -> None:
    assert load_policy(BASE, dtype="float32", attention="eager").dtype == torch.float32


def test_a_folder_without_weights_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json, tokenizer_config.json missing"):
        check_policy_files(tmp_path)


def test_a_question_that_holds_a_placeholder_is_refused_by_name(tmp_path: Path) -> None:
    rows = questions(tmp_path)
    rows[1]["problem"] = "What is <|image_pad|> here? A)CT, B)MRI"
    policy = load_policy(BASE, dtype="float32", attention="sdpa")
    grpo = load_params(REPOSITORY / "params.yaml").grpo.model_copy(update={"prompts_per_device": 2})
    with pytest.raises(
        InputError,
        match=r"What is <\|image_pad\|> here.* contains <\|image_pad\|>, which stands for an image",
    ):
        build_trainer(
            policy,
            processor(),
            train_dataset(rows, "no-think"),
            grpo,
            "no-think",
            scratch=tmp_path,
            run_name="ct",
        )


def test_a_prompt_and_completion_beyond_the_models_context_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"more than the 4096 the model was made for: lower grpo.max_completion_length",
    ):
        tiny_trainer(tmp_path, max_completion_length=4090)


@pytest.mark.parametrize("wrong", ["no image", "two images for one placeholder"])
def test_placeholders_that_do_not_fit_the_images_name_the_question(
    wrong: str, tmp_path: Path
) -> None:
    rows = chats(questions(tmp_path))
    if wrong == "no image":
        rows[1][0]["content"] = rows[1][0]["content"][1:]
        message = (
            r"How severe is the lesion.* has 0 tokens that stand for images, its images need 0:"
            r" every question needs an image"
        )
    else:
        rows[1][0]["content"][1]["text"] += "<|image_pad|>"
        message = "image_pad.* tokens in the prompts should be the same as the number of images"
    with pytest.raises((InputError, ValueError, StopIteration, IndexError), match=message):
        process_prompts(
            processor(),
            load_policy(BASE, dtype="float32", attention="sdpa"),
            rows,
            torch.device("cpu"),
        )
