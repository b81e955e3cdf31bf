"""The embedded base: real classes, a lossless tokenizer, and the committed weights."""

import csv
import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages.pretraining.embedded import IMAGE_TOKENS, build_model, build_processor, build_tokenizer
from stages.prompts.styles import chat, prompt_text

BASE = Path(__file__).parents[2] / "infra" / "base"


def test_the_committed_base_is_a_small_qwen2_vl() -> None:
    model = AutoModelForImageTextToText.from_pretrained(BASE)
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert model.dtype == torch.bfloat16
    assert sum(path.stat().st_size for path in BASE.glob("*.safetensors")) <= 6 * 2**20
    assert type(AutoProcessor.from_pretrained(BASE)).__name__ == "Qwen2VLProcessor"


def test_the_committed_tokenizer_is_the_one_the_recipe_builds() -> None:
    committed = AutoProcessor.from_pretrained(BASE).tokenizer
    assert committed.get_vocab() == build_tokenizer().get_vocab()


def test_the_last_exam_of_the_log_is_between_45_and_70_percent() -> None:
    rows = list(csv.DictReader((BASE / "pretraining.csv").open(encoding="utf-8")))
    assert rows[-1]["lesson"] == "saved"
    assert 0.45 <= float(rows[-1]["exam"]) <= 0.70


build_tokenizer_once = functools.cache(build_tokenizer)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_round_trips_through_the_tokenizer(text: str) -> None:
    tokenizer = build_tokenizer_once()
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_an_image_costs_its_16_tokens_and_options_are_whole_words() -> None:
    tokenizer = build_tokenizer_once()
    processor = build_processor(tokenizer)
    text = processor.apply_chat_template(
        chat(prompt_text("x A)Cyst, B)MRI", "no-think", "train")),
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = processor(text=[text], images=[Image.new("RGB", (384, 384))])["input_ids"][0]
    assert ids.count(processor.image_token_id) == IMAGE_TOKENS == 16
    assert {")Cyst", ")MRI"} <= set(tokenizer.convert_ids_to_tokens(ids))


def test_untrained_weights_depend_on_the_seed_only() -> None:
    tokenizer = build_tokenizer_once()
    first, second, other = (build_model(tokenizer, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_conversation_is_formatted_as_by_qwen2_vl() -> None:
    text = build_processor(build_tokenizer_once()).apply_chat_template(
        chat("Hi"), add_generation_prompt=True, tokenize=False
    )
    assert (
        text == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("lesson", ["read", "see", "answer"])
def test_the_loss_of_every_lesson_falls(lesson: str) -> None:
    rows = list(csv.DictReader((BASE / "pretraining.csv").open(encoding="utf-8")))
    losses = [float(row["loss"]) for row in rows if row["lesson"] == lesson]
    assert losses[-1] < losses[0]
