"""Settings become TRL's, and what a policy must never sample or see is refused."""

from pathlib import Path

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from stages.core.errors import InputError
from stages.grpo.batch import ExampleBatch, PromptCollator
from stages.grpo.data.dataset import train_dataset
from stages.grpo.trainer import build_trainer, grpo_config
from stages.policy.determinism import deterministic_mode
from stages.policy.loading import check_policy_files, load_policy, vision_token_ids
from stages.policy.prompt_batch import process_prompts
from tests.grpo.tiny import (
    BASE,
    backward_mode,
    chats,
    embedded_policy,
    grpo_settings,
    processor,
    questions,
    tiny_trainer,
)


def test_prompts_per_device_become_completions_per_device(tmp_path: Path) -> None:
    config = grpo_config(grpo_settings(prompts_per_device=3, num_generations=4), tmp_path, "ct")
    assert config.per_device_train_batch_size == 12
    assert config.num_generations == 4


def test_med_r1s_published_settings_can_be_expressed(tmp_path: Path) -> None:
    published = {
        "num_generations": 4,
        "prompts_per_device": 1,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1.0,
        "max_steps": -1,
        "learning_rate": 1e-6,
        "beta": 0.04,
        "max_completion_length": 256,
        "top_k": 50,
        "bf16": False,
        "reuse_prompt_pass": False,
    }
    config = grpo_config(grpo_settings(**published), tmp_path, "ct")
    assert config.loss_type == "grpo"
    assert config.scale_rewards == "group"
    assert config.beta == 0.04
    assert config.reward_weights == [1.0, 1.0]
    assert config.generation_batch_size == 8
    assert config.top_k == 50


@pytest.mark.parametrize(
    ("workers", "reference_steps", "batches"), [(0, 8, None), (1, 1, 2), (2, 8, 5), (3, 8, 4)]
)
def test_workers_prepare_what_the_reference_takes_at_once_and_one_batch_more(
    tmp_path: Path, workers: int, reference_steps: int, batches: int | None
) -> None:
    grpo = grpo_settings(loader_workers=workers, reference_steps=reference_steps, draft_nodes=64)
    assert grpo_config(grpo, tmp_path, "ct").dataloader_prefetch_factor == batches


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_are_forked_whatever_pythons_default(tmp_path: Path, workers: int) -> None:
    trainer = tiny_trainer(tmp_path, loader_workers=workers)
    context = trainer.get_train_dataloader().base_dataloader.multiprocessing_context
    assert (context and context.get_start_method()) == ("fork" if workers else None)


def test_a_loader_pins_the_tensors_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = train_dataset(questions(tmp_path), "no-think")
    batch = PromptCollator(processor(), embedded_policy(), 1)([dataset[0], dataset[1]])
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        """As on a machine with a GPU."""
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    moved = pin_memory(batch)
    assert isinstance(moved, ExampleBatch)
    assert moved == batch
    tensors = {name: each for name, each in vars(moved.prompts).items() if torch.is_tensor(each)}
    assert {id(each) for each in tensors.values()} == {id(each) for each in pinned}
    assert all(torch.equal(each, getattr(batch.prompts, name)) for name, each in tensors.items())


def test_image_tokens_are_suppressed_in_sampling(tmp_path: Path) -> None:
    ids = vision_token_ids(processor())
    names = processor().tokenizer.convert_ids_to_tokens(ids)
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"} <= set(names)
    trainer = tiny_trainer(tmp_path)
    assert trainer.model.config.image_token_id in ids
    assert set(trainer.generation_config.suppress_tokens) == set(ids)


def test_the_policy_is_loaded_in_the_wanted_dtype() -> None:
    assert load_policy(BASE, dtype="float32", attention="eager").dtype == torch.float32


def test_a_folder_without_weights_is_not_a_policy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json, tokenizer_config\.json missing"):
        check_policy_files(tmp_path)


def test_a_question_with_an_image_token_is_refused_by_name(tmp_path: Path) -> None:
    rows = questions(tmp_path)
    rows[1]["problem"] = "What is <|image_pad|> here? A)CT, B)MRI"
    dataset = train_dataset(rows, "no-think")
    grpo = grpo_settings(prompts_per_device=2)
    with pytest.raises(InputError, match=r"What is .* here.* contains <\|image_pad\|>"):
        build_trainer(
            embedded_policy(),
            processor(),
            dataset,
            grpo,
            "no-think",
            scratch=tmp_path,
            run_name="ct",
        )


def test_a_prompt_and_completion_beyond_the_models_context_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"4090.* 4096.* grpo\.max_completion_length"):
        tiny_trainer(tmp_path, max_completion_length=4090)


def test_a_question_without_an_image_is_refused(tmp_path: Path) -> None:
    rows = chats(questions(tmp_path))
    rows[1][0]["content"] = rows[1][0]["content"][1:]
    with pytest.raises(InputError, match=r"How severe is the lesion.* 0 image tokens.* need 0"):
        process_prompts(processor(), embedded_policy(), rows, torch.device("cpu"))


def test_more_image_tokens_than_images_are_refused(tmp_path: Path) -> None:
    rows = chats(questions(tmp_path))
    rows[1][0]["content"][1]["text"] += "<|image_pad|>"
    message = "image_pad.* tokens in the prompts should be the same as the number of images"
    with pytest.raises((InputError, ValueError, StopIteration, IndexError), match=message):
        process_prompts(processor(), embedded_policy(), rows, torch.device("cpu"))


def test_backward_passes_are_deterministic_and_do_not_only_warn(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    failing = torch.ones(1, requires_grad=True)
    failing.register_hook(lambda _: 1 / 0)
    with deterministic_mode(enabled=True, warn_only=True):
        assert backward_mode(trainer) == 2, "an error"
        assert torch.get_deterministic_debug_mode() == 1, "a warning"
        with pytest.raises(ZeroDivisionError):
            trainer.accelerator.backward(failing.sum())
        assert torch.get_deterministic_debug_mode() == 1
    with deterministic_mode(enabled=False):
        assert backward_mode(trainer) == 0, "where nobody asked for it"
