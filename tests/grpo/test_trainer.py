"""Our settings in TRL's words, and what sampling must never produce."""

from pathlib import Path

import pytest
import torch

from stages.errors import InputError
from stages.grpo.policy import check_policy_files, load_policy, load_processor, vision_token_ids
from stages.grpo.trainer import build_trainer, grpo_config, train_dataset
from stages.params import Grpo, load_params

REPOSITORY = Path(__file__).parents[2]
BASE = REPOSITORY / "infra" / "base"


@pytest.fixture
def grpo() -> Grpo:
    return load_params(REPOSITORY / "params.yaml").grpo


def test_prompts_a_device_become_completions_a_device(grpo: Grpo, tmp_path: Path) -> None:
    config = grpo_config(grpo.model_copy(update={"prompts_per_device": 3, "num_generations": 4}), tmp_path, "ct")
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
    }
    config = grpo_config(Grpo.model_validate(grpo.model_dump() | published), tmp_path, "ct")
    assert config.loss_type == "grpo"
    assert config.scale_rewards == "group"
    assert config.beta == 0.04
    assert config.reward_weights == [1.0, 1.0]
    assert config.generation_batch_size == 8


def test_placeholders_of_pictures_are_never_sampled(grpo: Grpo, tmp_path: Path) -> None:
    policy, processor = load_policy(BASE, dtype="float32", attention="sdpa"), load_processor(BASE)
    ids = vision_token_ids(processor)
    names = processor.tokenizer.convert_ids_to_tokens(ids)
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"} <= set(names)
    assert policy.config.image_token_id in ids
    image = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (384, 384)).save(image)
    rows = [{"image": str(image), "problem": "Scan? A)CT, B)MRI", "gold": "A", "options": ["CT", "MRI"]}] * 8
    trainer = build_trainer(
        policy, processor, train_dataset(rows, "no-think"), grpo, "no-think", scratch=tmp_path, log=tmp_path / "log.csv", run_name="ct"
    )
    assert set(trainer.generation_config.suppress_tokens) == set(ids)


def test_the_policy_opens_in_the_wanted_dtype() -> None:
    assert load_policy(BASE, dtype="float32", attention="eager").dtype == torch.float32


def test_a_folder_without_weights_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json, tokenizer_config.json missing"):
        check_policy_files(tmp_path)
